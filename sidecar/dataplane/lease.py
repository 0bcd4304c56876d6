"""How long a tunnel may live: the rule alone. Pure: time and chance are arguments, seconds since the epoch.

Rules:

1. A tunnel's lease ends at the first end of the two certificates that were shown in its handshake.
2. A later handshake of the same pair extends it to the first end of the two certificates shown there, if that is
   later. The same pair is the same identity and the same instance at both ends, met at the same place: a renewed
   certificate extends what its owner began, and nobody else's.
3. A certificate that names no instance extends nothing: two replicas could not be told apart.
4. A lease that is over stays over.

So connections live on through any number of renewals, and a peer that can not prove itself again (its certificate was
not renewed, or is another's now) loses them when the last proof of it expires. Each end goes by its own clock and by
what it saw itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Final, Protocol

from certs.spiffe import SpiffeId

#: The part of a lease after which the pair proves itself again, whoever's certificate it is that ends. Renewals of
#: either end bring a handshake sooner; this is for those that were not heard of.
PROVE_AT: Final = (0.7, 0.85)
#: Seconds between two attempts, at least and at most.
SHORTEST_WAIT: Final = 0.05
LONGEST_WAIT: Final = 30.0

#: Seconds between two handshakes of a pair that count as made at the same time: as long as one may take.
AT_ONCE: Final = 10.0
#: Pairs whose last handshake elsewhere is remembered for that.
MOST_HEARD: Final = 1024

type Pair = tuple[SpiffeId, str, SpiffeId, str, str]


@dataclass(frozen=True, slots=True)
class Shown:
    """What the certificate that one end showed in a handshake says.

    :param instance: the replica that it was signed for; empty when it names none
    :param not_after: when it ends
    :param certificate: SHA-256 of it, hexadecimal, where it is the peer's
    """

    spiffe_id: SpiffeId
    instance: str
    not_after: float
    certificate: str = ""


@dataclass(frozen=True, slots=True)
class Proof:
    """A completed handshake, seen from one of its ends.

    :param place: of the peer: the address and port that we dialled, or the address that it came from
    :param certificates: all that the peer showed, in DER, its own first; empty where they were too large to be kept
    :param at: when
    """

    ours: Shown
    peer: Shown
    place: str
    certificates: tuple[bytes, ...] = ()
    at: float = 0.0

    @property
    def end(self) -> float:
        """Until when it proves anything."""
        return min(self.ours.not_after, self.peer.not_after)

    @property
    def pair(self) -> Pair | None:
        """Between whom it was; None when an end can not be told apart from its replicas."""
        ours, peer = self.ours, self.peer
        if not ours.instance or not peer.instance:
            return None
        return ours.spiffe_id, ours.instance, peer.spiffe_id, peer.instance, self.place


@dataclass(frozen=True, slots=True)
class Lease:
    """How long one tunnel may live.

    :param proof: the handshake that it began with; ``latest`` the one that it goes by now
    """

    proof: Proof
    end: float
    latest: Proof

    @classmethod
    def of(cls, proof: Proof) -> Lease:
        return cls(proof, proof.end, proof)

    def extended(self, fresh: Proof, now: float) -> Lease:
        """The lease after a later handshake; itself when that does not extend it."""
        if fresh.end <= self.end or now >= self.end:
            return self
        pair = self.proof.pair
        if pair is None or fresh.pair != pair:
            return self
        return replace(self, end=fresh.end, latest=fresh)


def prove_after(end: float, now: float, random: Random) -> float:
    """Seconds from ``now`` until the pair of a lease that ends at ``end`` should prove itself again."""
    return max(SHORTEST_WAIT, (end - now) * random.uniform(*PROVE_AT))


def retry_after(end: float, now: float) -> float:
    """Seconds to wait after an attempt that failed: often enough to succeed before ``end``, seldom if that is far."""
    return min(LONGEST_WAIT, max(SHORTEST_WAIT, (end - now) / 8))


class Holder(Protocol):
    """A tunnel, as far as its lease goes."""

    @property
    def lease(self) -> Lease: ...

    def extend(self, lease: Lease) -> None:
        """Live by ``lease`` from now on."""


class Leases:
    """The live tunnels of each pair, so that a handshake finds the earlier ones that it speaks for."""

    __slots__ = ("_groups", "_heard")

    def __init__(self) -> None:
        self._groups: dict[Pair, _Group] = {}
        self._heard: dict[Pair, tuple[Proof, float]] = {}

    def enter(self, holder: Holder, now: float) -> None:
        """The handshake of ``holder`` is complete: extend what is there of its pair already."""
        proof = holder.lease.proof
        pair = proof.pair
        if pair is None:
            return
        group = self._groups.get(pair)
        if group is None:
            group = self._groups[pair] = _Group()
        group.extend(proof, now)
        group.add(holder)
        late, at = self._heard.get(pair, (proof, now))
        if now - at <= AT_ONCE:
            group.extend(late, now)

    def heard(self, proof: Proof, now: float) -> None:
        """Another process of ours has seen a handshake: extend what is here of its pair, or will be in a moment, whose
        own handshake was on its way at the same time."""
        pair = proof.pair
        if pair is None:
            return
        self._heard.pop(pair, None)
        while len(self._heard) >= MOST_HEARD:
            del self._heard[next(iter(self._heard))]
        self._heard[pair] = (proof, now)
        group = self._groups.get(pair)
        if group is not None:
            group.extend(proof, now)

    def leave(self, holder: Holder) -> None:
        """The tunnel is gone. Calling it again changes nothing."""
        pair = holder.lease.proof.pair
        group = self._groups.get(pair) if pair is not None else None
        if group is None or pair is None:
            return
        group.holders.pop(holder, None)
        if not group.holders:
            del self._groups[pair]


class _Group:
    """The tunnels of one pair.

    :ivar earliest: no lease of them ends before; one that ends later costs a look at all of them, not a connection
    """

    __slots__ = ("earliest", "holders")

    def __init__(self) -> None:
        self.holders: dict[Holder, None] = {}
        self.earliest = float("inf")

    def extend(self, proof: Proof, now: float) -> None:
        if proof.end <= self.earliest:
            return  # as a peer can make handshakes without end, but not newer certificates
        for holder in tuple(self.holders):
            lease = holder.lease.extended(proof, now)
            if lease is not holder.lease:
                holder.extend(lease)
        self.earliest = min((holder.lease.end for holder in self.holders), default=float("inf"))

    def add(self, holder: Holder) -> None:
        self.holders[holder] = None
        self.earliest = min(self.earliest, holder.lease.end)
