"""Stands where the application's leg will be, as long as there is no reason to call the application."""

from __future__ import annotations

from sidecar.dataplane.legs import NOBODY, Lane, Leg


class Uncalled:
    """Implements :class:`sidecar.dataplane.legs.Leg`. What is written waits for that leg; whoever writes bounds it.

    :ivar held: how many bytes wait
    """

    __slots__ = ("_data", "_ended")

    #: They wait for the client's sake, and not because somebody is slow.
    unsent = 0
    #: Nobody was called, so that there is nobody who could not be reached.
    reached = True
    gone = closed = False

    def __init__(self) -> None:
        self._data = bytearray()
        self._ended = False

    @property
    def lane(self) -> Lane:
        """Nobody: nothing is ever told, and so nothing is kept alive."""
        return NOBODY

    @lane.setter
    def lane(self, lane: Lane) -> None: ...

    @property
    def held(self) -> int:
        return len(self._data)

    def give_to(self, leg: Leg) -> None:
        """The application is called: ``leg`` gets what waits."""
        leg.write(self._data)
        self._data = bytearray()
        if self._ended:
            leg.end()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._data += data

    def end(self) -> None:
        self._ended = True

    def pause(self) -> None:
        """There is nothing that could come."""

    def resume(self) -> None: ...

    def give_way(self) -> None: ...

    def give_way_no_more(self) -> None: ...

    def reset(self) -> None:
        self._data = bytearray()
