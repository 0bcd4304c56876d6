"""Who reaches whom, tried with real connections from inside the pods."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from e2e.cluster import shop
from e2e.harness.cluster import Cluster
from hedgerow.local.description import WorkloadSpec

_KINDS = {"cache": "cache", "database": "database"}
#: Tries each target once, a few at a time, and says of each how many bytes of the application came back.
_PROGRAM = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from hedgerow.local.probe import try_once
targets = json.loads(sys.argv[1])
with ThreadPoolExecutor(4) as pool:
    answers = list(pool.map(lambda each: try_once(each[0], each[1], each[2], timeout=6.0), targets))
print(json.dumps([[each.bytes, each.error] for each in answers]))
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A service of the shop.

    :param edge_port: the port of the pods behind it, which edges and rules name
    """

    workload: str
    kind: str
    host: str
    port: int
    edge_port: int


def targets() -> list[Target]:
    """Everything in the shop that listens, by its Service."""
    return [
        Target(
            str(spec.ref),
            _KINDS.get(spec.ref.name, spec.ports[0].app_protocol),
            f"{spec.services[0].name}.{spec.ref.namespace}.svc.cluster.local",
            spec.services[0].ports[0][0],
            spec.ports[0].number,
        )
        for spec in shop.WORKLOADS
        if spec.services
    ]


def reached(cluster: Cluster, namespace: str, pod: str, container: str, tried: Iterable[Target]) -> dict[str, str]:
    """Try targets from a container.

    :param pod: as kubectl takes it: ``deployment/cart`` as well
    :returns: by workload: empty when the application answered, else why not
    """
    listed = list(tried)
    asked = json.dumps([[each.kind, each.host, each.port] for each in listed])
    command = ["-n", namespace, "exec", pod, "-c", container, "--", "python", "-c", _PROGRAM, asked]
    answers = json.loads(cluster.kubectl(*command))
    return {
        each.workload: "" if count else (error or "no answer")
        for each, (count, error) in zip(listed, answers, strict=True)
    }


def matrix(cluster: Cluster) -> set[str]:
    """The edges of the shop that work: every workload tries every other."""

    def of(spec: WorkloadSpec) -> set[str]:
        kind = "statefulset" if spec.kind == "StatefulSet" else "deployment"
        source = str(spec.ref)
        others = [each for each in targets() if each.workload != source]
        found = reached(cluster, spec.ref.namespace, f"{kind}/{spec.ref.name}", spec.ref.name, others)
        return {f"{source}->{each.workload}:{each.edge_port}/TCP" for each in others if not found[each.workload]}

    with ThreadPoolExecutor(3) as pool:
        return set().union(*pool.map(of, shop.WORKLOADS))
