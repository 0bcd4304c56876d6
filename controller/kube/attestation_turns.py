"""Whose turn it is to have the API server asked about a token.

The API server is everybody's: it is asked about few tokens at once, and about fewer of one address, so that whoever
sends many from one leaves turns to others. An address may be a node's, with hundreds of pods behind it that all begin
now: none of them is refused here, they wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class _Address:
    """:ivar inside: who has its turn or waits for it"""

    slots: asyncio.Semaphore
    inside: int = 0


class AddressTurns:
    """:param at_once: turns at one time
    :param of_each: of them, those of one address; nobody of it waits among the others meanwhile
    """

    def __init__(self, at_once: int, of_each: int) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._of_each = of_each
        self._addresses: dict[str, _Address] = {}

    def __len__(self) -> int:
        """Addresses that have somebody inside; others are not remembered."""
        return len(self._addresses)

    @asynccontextmanager
    async def of(self, address: str) -> AsyncIterator[None]:
        """Wait for a turn, which lasts as long as the block."""
        found = self._addresses.get(address)
        if found is None:
            found = self._addresses[address] = _Address(asyncio.Semaphore(self._of_each))
        found.inside += 1
        try:
            async with found.slots, self._slots:
                yield
        finally:
            found.inside -= 1
            if not found.inside:
                del self._addresses[address]
