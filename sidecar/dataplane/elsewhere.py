"""A client's connection that did not reach the application is tried elsewhere, with what the client has said so far.

An application that ends stops listening at once, and it takes a moment until everybody has heard that its pod ends. Who
calls it in that moment is told so by its sidecar (:data:`sidecar.dataplane.frames.UNREACHED`), which has delivered
nothing. Rules:

1. Nothing is said twice to anybody: a connection goes elsewhere only when the peer says that nothing of it was given
   on, and never once the peer has said that its application was reached, or has answered anything. That a tunnel is
   lost says nothing of the kind: then only who has not said a word yet goes elsewhere.
2. It is one connection, and is reported once, by who carries it in the end.
3. What is kept for it is bounded, by connection and in the budget of all.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from sidecar.dataplane.guards import Budget


class Elsewhere(Protocol):
    """Where a client's connection goes on."""

    def reached(self) -> None:
        """It has reached an application; this is not needed any more."""

    def begin_again(self, sock: socket.socket, early: bytes) -> None:
        """Nothing of it was delivered.

        :param sock: the client's, in nobody's hands
        :param early: what was read from it
        """


class Early:
    """What one client said, kept until it is delivered, and who wants to have it otherwise."""

    __slots__ = ("_budget", "_said", "elsewhere")

    def __init__(self, elsewhere: Elsewhere, budget: Budget) -> None:
        self.elsewhere = elsewhere
        self._budget = budget
        self._said = bytearray()

    def add(self, said: memoryview) -> bool:
        """Keep more; False, and nothing is kept any more, when it is too much."""
        size = len(said)
        if len(self._said) + size > self._budget.early or self._budget.left < size:
            self.drop()
            return False
        self._budget.left -= size
        self._said += said
        return True

    def drop(self) -> bytes:
        """All of it, kept no more."""
        said = bytes(self._said)
        self._budget.left += len(said)
        self._said.clear()
        return said


def replayed(early: bytes, recv_into: Callable[[memoryview], int]) -> Callable[[memoryview], int]:
    """Read ``early`` before what ``recv_into`` reads."""
    left = memoryview(early)

    def read(view: memoryview) -> int:
        nonlocal left
        size = min(len(left), len(view))
        if not size:
            return recv_into(view)
        view[:size] = left[:size]
        left = left[size:]
        return size

    return read
