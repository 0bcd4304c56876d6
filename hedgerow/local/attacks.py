"""Connections that were never learned, tried by an intruder and by a service that was broken into.

An attack has got through when the attacker received a single byte of the application. That is judged in the
attacker's pod; the deny verdicts that the sidecars reported are a second, independent witness. So that "nothing came
back" means something, the same probe is first sent from where it is allowed, and has to be answered there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graph.model import WorkloadRef
from hedgerow.local.description import WorkloadSpec
from hedgerow.local.errors import CommandFailed, NotReady
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.pod import Pod
from hedgerow.local.probe import Answer
from hedgerow.local.processes import python

#: A pod that is on the network and in nobody's books: no sidecar, no certificate, not in the inventory.
INTRUDER = WorkloadSpec(WorkloadRef("shop", "intruder"), meshed=False, listed=False)
_INTRUDER_POD = "shop/intruder-0"

#: How a probe speaks to a workload, and on which of its ports.
_SPEAKS = {
    "shop/front": ("http", 8080),
    "shop/catalogue": ("http", 8080),
    "shop/cart": ("http", 8080),
    "shop/checkout": ("http", 8080),
    "shop/payment": ("grpc", 50051),
    "shop/shipping": ("grpc", 50051),
    "shop/recommendation": ("grpc", 50051),
    "data/database": ("database", 5432),
    "data/cache": ("cache", 6379),
}

#: Who may reach each target, to prove that the probe would see an answer: pod and target.
CONTROLS = (
    ("shop/front-0", "shop/catalogue"),
    ("shop/front-0", "shop/cart"),
    ("shop/checkout-0", "shop/payment"),
    ("shop/report-0", "data/database"),
    ("shop/cart-0", "data/cache"),
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attack.

    :param pod: where it starts, ``namespace/name``
    :param target: the workload that is attacked
    :param service: by which service, as the pod's hosts file spells it; empty for the pod's own address
    :param forged: the identity of a self-made certificate to show; empty for none
    """

    pod: str
    target: str
    service: str = ""
    service_port: int = 0
    forged: str = ""


@dataclass(frozen=True, slots=True)
class Attack:
    """What became of it.

    :param blocked: nothing came back
    :param witnessed: a sidecar reported that it refused the connection
    :param how: by which way it was tried, and what the attacker saw
    """

    source: str
    destination: str
    port: int
    blocked: bool
    witnessed: bool
    how: str


def attempts(trust_domain: str) -> tuple[Attempt, ...]:
    """What is tried. Every target is one of :data:`CONTROLS`."""
    front = f"spiffe://{trust_domain}/ns/shop/sa/front/wl/front"
    return (
        Attempt(_INTRUDER_POD, "shop/catalogue"),
        Attempt(_INTRUDER_POD, "shop/payment"),
        Attempt(_INTRUDER_POD, "data/database"),
        Attempt(_INTRUDER_POD, "data/cache"),
        Attempt(_INTRUDER_POD, "shop/cart", forged=front),
        Attempt("shop/recommendation-0", "data/database", service="database.data", service_port=5432),
        Attempt("shop/recommendation-0", "shop/payment", service="payment", service_port=50051),
        Attempt("shop/shipping-0", "data/cache"),
        Attempt("shop/shipping-0", "shop/cart", service="cart", service_port=8000),
    )


async def probe(pod: Pod, kind: str, host: str, port: int, forged: str = "") -> Answer:
    """Try one connection from inside a pod.

    :raises CommandFailed: when the probe itself failed, which says nothing of the connection
    """
    options = ["--forge", forged] if forged else []
    argv = [*python(), "-m", "hedgerow.local.probe", kind, host, str(port), *options]
    done = await pod.exec(argv)
    if done.code != 0:
        raise CommandFailed(f"the probe in {pod.name} failed: {done.stderr.strip()}")
    return Answer(**json.loads(done.stdout))


def address_of(mesh: LocalMesh, target: str) -> str:
    """The address of a workload's first pod."""
    return mesh.pods_of(WorkloadRef.parse(target))[0].address


async def check_controls(mesh: LocalMesh) -> None:
    """Send each probe from where it is allowed.

    :raises NotReady: when one is not answered there: then no attack on that target would prove anything
    """
    for pod, target in CONTROLS:
        kind, port = _SPEAKS[target]
        service = next(service for service in mesh.services if str(service.workload) == target)
        placeholder = f"${{service:{service.name}.{service.namespace}}}"
        outer = next(outer for outer, inner in service.ports if inner == port)
        answer = await probe(mesh.pod(pod), kind, placeholder, outer)
        if not answer.bytes:
            raise NotReady(f"the probe from {pod} to {target}, which is allowed, got no answer: {answer.error}")


async def carry_out(mesh: LocalMesh, tried: Iterable[Attempt]) -> list[Attack]:
    """Try every attack, one after the other, then ask the sidecars' reports for their side of it."""
    answers = [(attempt, await _attack(mesh, attempt)) for attempt in tried]
    witnessed = await _witnesses(mesh, [attempt for attempt, _ in answers])
    return [
        Attack(
            source=_source(mesh, attempt),
            destination=attempt.target,
            port=_SPEAKS[attempt.target][1],
            blocked=answer.bytes == 0,
            witnessed=attempt in witnessed,
            how=f"{_way(attempt)}: {answer.said or answer.error}",
        )
        for attempt, answer in answers
    ]


async def _attack(mesh: LocalMesh, attempt: Attempt) -> Answer:
    kind, port = _SPEAKS[attempt.target]
    if attempt.service:
        return await probe(mesh.pod(attempt.pod), kind, f"${{service:{attempt.service}}}", attempt.service_port)
    return await probe(mesh.pod(attempt.pod), kind, address_of(mesh, attempt.target), port, attempt.forged)


def _source(mesh: LocalMesh, attempt: Attempt) -> str:
    return str(mesh.pod(attempt.pod).placed.spec.ref)


def _way(attempt: Attempt) -> str:
    if attempt.service:
        return f"by service {attempt.service}:{attempt.service_port}"
    return "by pod address, as " + attempt.forged if attempt.forged else "by pod address"


async def _witnesses(mesh: LocalMesh, tried: Sequence[Attempt], deadline: float = 60.0) -> set[Attempt]:
    """The attempts of which a sidecar reported a refusal. Reports take a moment: wait for them, but not for ever."""
    seen: set[Attempt] = set()
    try:
        async with asyncio.timeout(deadline):
            while len(seen) < len(tried):
                refused = await _refusals(mesh)
                seen = {attempt for attempt in tried if _reported(mesh, attempt, refused)}
                await asyncio.sleep(0.2)
    except TimeoutError:
        pass
    return seen


async def _refusals(mesh: LocalMesh) -> set[tuple[str, str, int]]:
    flows = (await mesh.api.get("/flows", {"verdict": "deny", "limit": 1000}))["flows"]
    return {(flow["source"], flow["destination"], int(flow["port"])) for flow in flows}


def _reported(mesh: LocalMesh, attempt: Attempt, refused: set[tuple[str, str, int]]) -> bool:
    """An intruder is nobody: its connections are reported as from its address."""
    source = _source(mesh, attempt)
    port = _SPEAKS[attempt.target][1]
    if mesh.pod(attempt.pod).meshed and (mesh.captures or attempt.service):
        return (source, attempt.target, port) in refused
    return any(
        (each == source or each.startswith("-/")) and (destination, number) == (attempt.target, port)
        for each, destination, number in refused
    )
