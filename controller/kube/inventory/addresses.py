"""Whose an address is, when several pods say that they have it. Pure.

Addresses are given again when a pod is gone, and an object can outlive its pod. One that is ending gives way to one
that is not; where two are left, the address is nobody's until one of them goes.
"""

from __future__ import annotations

from controller.kube.inventory.objects import PodFacts
from controller.kube.reflector import Key


class AddressBook:
    """Claims of pods to addresses. Pods on their node's network claim none: that address is not theirs alone."""

    def __init__(self) -> None:
        self._claims: dict[str, tuple[Key, ...]] = {}  # nearly always one: a tuple is the least that holds it
        self._ending: set[Key] = set()

    def put(self, key: Key, before: PodFacts | None, after: PodFacts | None) -> set[Key]:
        """Follow a changed pod. :return: the other pods whose addresses may have changed hands"""
        others: set[Key] = set()
        old, new = claimed(before), claimed(after)
        for address in old - new:
            left = tuple(each for each in self._claims[address] if each != key)
            others.update(left)
            if left:
                self._claims[address] = left
            else:
                del self._claims[address]
        ending = after is not None and after.ending
        turned = ending != (key in self._ending)
        (self._ending.add if ending else self._ending.discard)(key)
        for address in new:
            claims = self._claims.get(address, ())
            if key not in claims:
                claims = self._claims[address] = (*claims, key)
            elif not turned:
                continue
            others.update(claims)
        return others - {key}

    def of(self, key: Key, pod: PodFacts) -> tuple[str, ...]:
        """The addresses that are this pod's alone."""
        return tuple(address for address in pod.addresses if self._holder(address) == key)

    def _holder(self, address: str) -> Key | None:
        claims = self._claims.get(address)
        if not claims:
            return None
        if len(claims) == 1:
            return claims[0]
        staying = [key for key in claims if key not in self._ending]
        return staying[0] if len(staying) == 1 else None

    def claimants(self, address: str) -> tuple[Key, ...]:
        """The pods that say that they have it."""
        return self._claims.get(address, ())

    def contested(self) -> int:
        """How many addresses are claimed by more than one pod."""
        return sum(1 for claims in self._claims.values() if len(claims) > 1)


def claimed(pod: PodFacts | None) -> set[str]:
    """The addresses that a pod says are its own; on its node's network it has none."""
    return set() if pod is None or pod.spec.host_network else set(pod.addresses)
