"""Connections of a listener that anybody in the cluster can reach: so many, and who only sits there makes room.

An HTTP server waits for a request as long as its client likes. Were newcomers turned away when all places are taken,
whoever takes all of them, and says nothing, would keep out the API server, or the kubelet's probes. So the one that has
said nothing for longest is ended instead: those that never asked anything first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol


class Seat(Protocol):
    """A connection, as aiohttp has it (``web.RequestHandler``)."""

    @property
    def transport(self) -> _Transport | None: ...


class _Transport(Protocol):
    def abort(self) -> None: ...


class Seats[S: Seat]:
    """:param most: connections at one time
    :param live: gives those that are open, the oldest first
    """

    def __init__(self, most: int, live: Callable[[], Sequence[S]]) -> None:
        self._most = most
        self._live = live
        self._asked: dict[S, None] = {}  # the one that asked lately last
        self._answering: set[S] = set()
        self._ended: set[S] = set()  # and their end has not been heard of yet

    @contextmanager
    def answering(self, seat: S) -> Iterator[None]:
        """It has asked something, and is not ended while the block runs."""
        self._answering.add(seat)
        try:
            yield
        finally:
            self._answering.discard(seat)
            self._asked.pop(seat, None)
            self._asked[seat] = None

    def make_room(self) -> bool:
        """One more is to come. :return: whether there is a place for it"""
        live = dict.fromkeys(self._live())
        if len(live) < self._most:
            return True
        self._asked = {each: None for each in self._asked if each in live}
        self._ended &= live.keys()
        over = len(live) - len(self._ended) - self._most + 1
        for each in [*(each for each in live if each not in self._asked), *self._asked]:
            if over <= 0:
                break
            if each in self._answering or each in self._ended or each.transport is None:
                continue
            self._ended.add(each)
            each.transport.abort()
            over -= 1
        return over <= 0
