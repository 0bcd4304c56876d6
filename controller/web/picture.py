"""What people are shown of a view's graph, and of the ends of its connections. Pure."""

from __future__ import annotations

import ipaddress

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


#: Addresses that are set aside for examples (RFC 5737, RFC 3849), and so are nobody's.
_NOBODYS = tuple(map(ipaddress.ip_address, ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1")))


def peer(view: View, ref: WorkloadRef, *, verified: bool = True) -> Peer:
    """An end of a connection as the inventory knows it; of several replicas the first one's address. A host is taken to
    lead to some address outside the cluster, as it does when its rules hold."""
    if ref.host:
        inside = [ipaddress.ip_network(cidr) for cidr in view.inventory.networks]
        beyond = (str(each) for each in _NOBODYS if not any(each in network for network in inside))
        return Peer(address=next(beyond, ""), host=ref.host)
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
