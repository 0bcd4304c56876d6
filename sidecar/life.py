"""How far the end of a run has come."""

from __future__ import annotations

import asyncio


class Life:
    """Three steps of the end, each of which may be waited for."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        #: We are to end in good order.
        self.ending = asyncio.Event()
        #: We are to end now, whatever runs.
        self.at_once = asyncio.Event()
        #: We end because another process has taken over.
        self.replaced = False

    def end(self) -> None:
        """Begin the orderly end; the second call ends at once what is left."""
        if self.told.is_set():
            self.at_once.set()
        self.told.set()
        self.ending.set()
