"""What people are shown of a view's graph, and of the ends of its connections. Pure."""

from __future__ import annotations

from controller.view import View
from graph.flow import EdgeKey
from graph.model import Peer, WorkloadRef
from graph.views import GraphView


def graph_of(view: View, now: float, namespace: str = "") -> GraphView:
    """The service graph, sorted.

    :param now: seconds since the epoch
    :param namespace: only its workloads, the edges that begin or end there, and the other ends of those
    """
    keys = sorted(key for key in view.traffic if not namespace or _touches(key, namespace))
    refs = {ref for ref in view.nodes if not namespace or ref.namespace == namespace}
    refs.update(end for key in keys for end in (key.source, key.destination) if end in view.nodes)
    return GraphView(
        view.generation,
        now,
        tuple(view.nodes[ref] for ref in sorted(refs)),
        tuple(view.traffic[key] for key in keys),
    )


def peer(view: View, ref: WorkloadRef, *, verified: bool = True) -> Peer:
    """An end of a connection as the inventory knows it; of several replicas the first one's address."""
    if ref.is_external:
        return Peer(address=ref.name)
    workload = view.inventory.workloads.get(ref)
    instances = view.inventory.instances_of(ref)
    return Peer(
        workload=ref,
        namespace=ref.namespace,
        service_account=workload.service_account if workload else "",
        address=instances[0].address if instances else "",
        verified=verified,
    )


def _touches(key: EdgeKey, namespace: str) -> bool:
    return namespace in (key.source.namespace, key.destination.namespace)
