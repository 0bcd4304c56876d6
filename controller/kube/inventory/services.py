"""One service of the inventory, from its object and its EndpointSlices. Pure.

Where a service's connections go is what its slices say, and nothing else: they know which pods are ready, which port a
name means in each of them, and endpoints that people write by hand. Whose an endpoint is, the inventory says by its
address.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from controller.inventory.ports import OPAQUE
from controller.kube.inventory.objects import ServiceFacts, ServicePortFacts, SliceFacts
from graph.model import Protocol, Service, ServiceEndpoint, ServicePort, WorkloadRef
from graph.wire.bounds import MAX_ENDPOINTS

#: Endpoints of all ports of a service together: who writes EndpointSlices could multiply many by many.
MAX_PLACES = 40_000
#: What Linkerd calls it, and people who expect that there is such a name.
_OPAQUE = frozenset({"opaque", "linkerd.io/opaque", "linkerd.io/tcp"})
_APP_PROTOCOL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,251}[A-Za-z0-9])?")

type SpokenInParts = tuple[Mapping[tuple[int, Protocol], str], ...]
"""``appProtocol`` by port; a later part wins over those before it."""


def service_of(facts: ServiceFacts, slices: Iterable[SliceFacts], workload: WorkloadRef | None) -> Service | None:
    """The service; None when nobody can connect to it by itself (no ports, or a name in DNS only).

    :param workload: whose its endpoints are, where that is one workload
    """
    if not facts.ports:
        return None
    behind: dict[tuple[str, Protocol], list[tuple[SliceFacts, int]]] = {}
    for each in slices:
        for named in each.ports:
            behind.setdefault((named.name, named.protocol), []).append((each, named.number))
    most = min(MAX_ENDPOINTS, MAX_PLACES // len(facts.ports))
    ports = {
        (port.number, port.protocol): _port(port, behind.get((port.name, port.protocol), ()), most)
        for port in facts.ports
    }
    return Service(
        facts.namespace,
        facts.name,
        facts.addresses[0] if facts.addresses else "",
        workload,
        tuple(ports.values()),
        facts.addresses[1:],
    )


def _port(facts: ServicePortFacts, behind: Sequence[tuple[SliceFacts, int]], most: int) -> ServicePort:
    """:param behind: the slices that have a port of its name, each with the number
    :param most: endpoints of each IP family that are looked at
    """
    ready: dict[tuple[str, int], bool] = {}
    ending: dict[tuple[str, int], bool] = {}
    room = [most, most]
    for each, number in behind:
        for endpoint in each.endpoints:
            for address in endpoint.addresses[:1]:  # the others are the same place (discovery.k8s.io/v1)
                at, version = (address, number), int(":" in address)
                if at not in ready:
                    if not room[version]:
                        continue
                    room[version] -= 1
                ready[at] = ready.get(at, False) or endpoint.ready
                ending[at] = ending.get(at, False) or endpoint.serving
    numbers = Counter(number for _, number in ready)
    target = min(numbers, key=lambda number: (-numbers[number], number), default=facts.target or facts.number)
    four, six = (
        _family([at for at in sorted(ready) if (":" in at[0]) is each], ready, ending) for each in (False, True)
    )
    return ServicePort(facts.number, target, facts.protocol, facts.name, _within_bounds(four, six, most))


def _family(
    places: list[tuple[str, int]], ready: dict[tuple[str, int], bool], ending: dict[tuple[str, int], bool]
) -> list[ServiceEndpoint]:
    """The endpoints of one IP family. A connection to a service's address of one has no use for those of the other, so
    each is judged by itself: where all that is left is ending, it serves to the end, as with kube-proxy."""
    said = ready if any(ready[at] for at in places) else ending
    return [ServiceEndpoint(*at, said[at]) for at in places]


def _within_bounds(four: list[ServiceEndpoint], six: list[ServiceEndpoint], most: int) -> tuple[ServiceEndpoint, ...]:
    """As many as can be told of, of both families where there are both."""
    kept = four[: max(most // 2, most - len(six))]
    return (*kept, *six[: most - len(kept)])


def endpoint_addresses(slices: Iterable[SliceFacts]) -> set[str]:
    """Where slices lead to: of each endpoint its first address, the others are the same place."""
    return {address for each in slices for endpoint in each.endpoints for address in endpoint.addresses[:1]}


def owner_of(
    facts: ServiceFacts, found: Iterable[WorkloadRef | None], selected: Callable[[], Iterable[WorkloadRef]]
) -> WorkloadRef | None:
    """The one workload behind a service; None when there is none, more than one, or an address that is nobody's.

    :param found: whose its endpoints are
    :param selected: the workloads of the namespace that its selector selects, with or without pods
    """
    refs = set(found)
    if facts.selector and None not in refs:
        refs |= set(selected())
    if len(refs) != 1:
        return None
    ref = next(iter(refs))
    return ref if ref is not None and ref.namespace == facts.namespace else None


def spoken_by(facts: ServiceFacts, slices: Iterable[SliceFacts]) -> dict[str, SpokenInParts]:
    """``appProtocol`` by address, as the service says it of what is behind it; :data:`OPAQUE` for its ports that it has
    annotated as such. What a slice says of all its endpoints is there once, however many they are."""
    opaque = facts.said.opaque or ()
    said = {
        (port.name, port.protocol): OPAQUE if port.number in opaque else _plain(port.app_protocol)
        for port in facts.ports
    }
    found: dict[str, SpokenInParts] = {}
    for each in slices:
        names = {
            (port.number, port.protocol): name
            for port in each.ports
            if (name := said.get((port.name, port.protocol)) or _plain(port.app_protocol))
        }
        for address in endpoint_addresses((each,)) if names else ():
            found[address] = (*found.get(address, ()), names)
    return found


def _plain(said: str) -> str:
    """One name for one protocol; empty when it is none."""
    if not _APP_PROTOCOL.fullmatch(said):
        return ""
    name = said if "/" in said else said.lower()  # names of no domain are IANA's, where case says nothing
    return OPAQUE if name in _OPAQUE else name
