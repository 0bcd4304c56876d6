"""What stands behind each service, by address, and which protocol services say is spoken there. Pure.

Followed as services and their EndpointSlices change. Every change answers with the services of which something may be
different now, and with the addresses of which they say something else than before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from controller.inventory.ports import OPAQUE
from controller.kube.inventory.addresses import claimed
from controller.kube.inventory.objects import PodFacts, ServiceFacts, SliceFacts
from controller.kube.inventory.services import SpokenInParts, endpoint_addresses, spoken_by
from controller.kube.inventory.workloads import Spoken
from controller.kube.reflector import Changed, Key
from graph.model import Protocol


@dataclass(frozen=True, slots=True)
class Moved:
    """What a change concerns.

    :param services: their keys
    :param addresses: of which services say something else now
    """

    services: set[Key]
    addresses: set[str]


class Backends:
    """Services and slices as they are, and what follows from them by address."""

    def __init__(self) -> None:
        self._services: dict[Key, ServiceFacts] = {}
        self._services_in: dict[str, set[Key]] = {}
        self._slices: dict[Key, SliceFacts] = {}
        self._slices_of: dict[Key, set[Key]] = {}  # by service
        self._leading: dict[str, tuple[Key, ...]] = {}  # services by the addresses that they lead to; mostly one
        self._spoken: dict[Key, dict[str, SpokenInParts]] = {}  # by service, then address

    # --- what changed

    def services(self, changes: Iterable[Changed[ServiceFacts]]) -> Moved:
        """Follow services."""
        moved = Moved(set(), set())
        for each in changes:
            named = self._services_in.setdefault(each.key[0], set())
            if each.after is None:
                self._services.pop(each.key, None)
                named.discard(each.key)
            else:
                self._services[each.key] = each.after
                named.add(each.key)
            if not named:
                del self._services_in[each.key[0]]
            self._lead(moved, each.key)
        return moved

    def slices(self, changes: Iterable[Changed[SliceFacts]]) -> Moved:
        """Follow slices."""
        concerned = set()
        for each in changes:
            for facts, there in ((each.before, False), (each.after, True)):
                if facts is None:
                    continue
                service = facts.namespace, facts.service
                held = self._slices_of.setdefault(service, set())
                (held.add if there else held.discard)(each.key)
                if not held:
                    del self._slices_of[service]
                concerned.add((service, frozenset(endpoint_addresses((facts,)))))
            if each.after is None:
                self._slices.pop(each.key, None)
            else:
                self._slices[each.key] = each.after
        moved = Moved(set(), set())
        for service, addresses in concerned:
            self._lead(moved, service, addresses)
        return moved

    def _lead(self, moved: Moved, service: Key, gone: Iterable[str] = ()) -> None:
        """Follow where a service leads to.

        :param moved: gets what it concerns
        :param gone: where it led to, and may lead no more
        """
        moved.services.add(service)
        facts, slices = self._services.get(service), self.slices_of(service)
        now = endpoint_addresses(slices) if facts is not None else set()
        before = self._spoken.pop(service, {})
        said = spoken_by(facts, slices) if facts is not None else {}
        if said:
            self._spoken[service] = said
        moved.addresses.update(address for address in {*before, *said} if before.get(address) != said.get(address))
        for address in set(gone) - now:
            leading = tuple(each for each in self._leading.get(address, ()) if each != service)
            if leading:
                self._leading[address] = leading
            else:
                self._leading.pop(address, None)
        for address in now:
            leading = self._leading.get(address, ())
            if service not in leading:
                self._leading[address] = (*leading, service)

    # --- as it is now

    def service(self, key: Key) -> ServiceFacts | None:
        """What is known of a service."""
        return self._services.get(key)

    def services_in(self, namespace: str) -> Collection[Key]:
        """The services of a namespace."""
        return self._services_in.get(namespace, ())

    def slices_of(self, service: Key) -> list[SliceFacts]:
        """A service's slices, sorted by key."""
        return [self._slices[key] for key in sorted(self._slices_of.get(service, ()))]

    def leading(self, address: str) -> Collection[Key]:
        """The services that lead to an address."""
        return self._leading.get(address, ())

    def spoken_of(self, pods: Iterable[PodFacts]) -> Spoken:
        """What services say is spoken at the ports of these pods; of a port of which they disagree, nothing."""
        said: dict[tuple[int, Protocol], set[str]] = {}
        for pod in pods:
            for address in claimed(pod):  # on the node's network it has none of its own that anybody could speak of
                for service in self.leading(address):
                    if service[0] != pod.namespace:
                        continue  # slices may name any address, and are no word of its owner's there
                    names: dict[tuple[int, Protocol], str] = {}
                    for part in self._spoken.get(service, {}).get(address, ()):
                        names.update(part)
                    for port, name in names.items():
                        said.setdefault(port, set()).add(name)
        opaque = {port: OPAQUE for port, names in said.items() if OPAQUE in names}
        return {port: names.pop() for port, names in said.items() if len(names) == 1} | opaque
