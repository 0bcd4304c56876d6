"""How far the demo is, for people, on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


class Progress:
    """One line for each phase; on a terminal it moves, elsewhere it is printed when the phase ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._note = ""

    @contextmanager
    def phase(self, title: str) -> Iterator[None]:
        """Show ``title`` while the block runs, and how long it took."""
        self._note = ""
        started = time.monotonic()
        with self._console.status(title) as status:
            self._status = status
            self._title = title
            yield
        took = time.monotonic() - started
        said = f" [dim]{escape(self._note)}[/]" if self._note else ""
        self._console.print(f"[green]✓[/] {title} [dim]({took:.1f} s)[/]{said}")

    def note(self, text: str) -> None:
        """Say where the running phase is; the last note stays."""
        if text != self._note:
            self._note = text
            self._status.update(f"{self._title} [dim]{escape(text)}[/]")
