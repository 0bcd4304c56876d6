"""Where the engine's state outlives it. The protocol is :class:`Store`; SQLite keeps it."""

from __future__ import annotations

from controller.store.records import Mark, Position, Store, Stored, Writes
from controller.store.sqlite import SqliteStore

__all__ = ["Mark", "Position", "SqliteStore", "Store", "Stored", "Writes"]
