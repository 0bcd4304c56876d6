"""What a lane sees of a connection: two legs, each a stream of bytes in both directions, whatever carries them.

The ``stream`` lane has classes of its own, in which both legs are one (:mod:`sidecar.dataplane.stream`,
:mod:`sidecar.dataplane.relay`). Every lane that looks at bytes is written against these two protocols, so that it does
not know whether a leg is a stream of a tunnel, a plain socket or a TLS connection.

Rules:

1. A leg never blocks and never refuses what is written to it. What its other end does not take is held; the lane stops
   the leg that it reads from (:meth:`Leg.pause`) while :attr:`Leg.unsent` is not 0, and goes on at
   :meth:`Lane.drained`. So at most one read is held for each direction.
2. A leg tells its lane of nothing within a call of the lane to *that* leg; what happened is told in the next batch.
3. After :meth:`Leg.reset`, and after a leg was :meth:`lost <Lane.lost>` or both its directions have ended, it tells
   nothing any more.
4. A leg whose two directions have ended (:meth:`Leg.end` was called and everything sent, and :meth:`Lane.ended` was
   told) is closed by itself.
5. A closed leg has let go of its lane (:data:`NOBODY`), so that what a connection took is free at its end, and not when
   the collector of cycles comes round to it.
"""

from __future__ import annotations

from typing import Final, Protocol

#: Why a leg is lost whose other end does not take what is written, when all may hold no more.
TOO_MUCH_HELD: Final = "too much is held for receivers that do not read"


class Leg(Protocol):
    """One end of a connection."""

    lane: Lane
    """Who is told of what happens. May be exchanged at any time (a pooled connection has one lane after another)."""

    @property
    def unsent(self) -> int:
        """Bytes written that the other end has not taken, as far as it can be known here."""

    @property
    def reached(self) -> bool:
        """Whether the other end has taken the connection, as far as it can be known here. It stays so."""

    @property
    def gone(self) -> bool:
        """Whether the other end is known to have reset the connection, though what it said before may still be told."""

    @property
    def closed(self) -> bool:
        """Nothing can be read or written any more."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``, which may be changed once this returns. On a closed leg nothing happens."""

    def end(self) -> None:
        """Send no more after what was written."""

    def pause(self) -> None:
        """Tell nothing of bytes that come, which then wait at the sender."""

    def resume(self) -> None:
        """Take bytes again."""

    def give_way(self) -> None:
        """From now on, tell of what happens when those have had their turn who do not give way: where it can be known
        here whose turn it is."""

    def give_way_no_more(self) -> None:
        """Take part as all others do again: for a lane that does not look at bytes any more."""

    def reset(self) -> None:
        """Give up at once; the other end sees a reset."""


class Lane(Protocol):
    """Stands between two legs and decides what becomes of their bytes. No method may raise."""

    def received(self, leg: Leg, data: memoryview) -> None:
        """Bytes came, valid during the call only."""

    def ended(self, leg: Leg) -> None:
        """The other end will send no more."""

    def drained(self, leg: Leg) -> None:
        """Everything that was written has been taken; told only after ``unsent`` was not 0, and also when ``end`` was
        called meanwhile: before a leg that has nothing left to do closes itself."""

    def lost(self, leg: Leg, why: str) -> None:
        """The other end reset the connection, could not be reached, or a limit ended it. The leg is closed."""


class _Nobody:
    """Stands where a lane will be in a moment, or was; nothing is told to it."""

    def received(self, leg: Leg, data: memoryview) -> None: ...
    def ended(self, leg: Leg) -> None: ...
    def drained(self, leg: Leg) -> None: ...
    def lost(self, leg: Leg, why: str) -> None: ...


NOBODY: Final[Lane] = _Nobody()
