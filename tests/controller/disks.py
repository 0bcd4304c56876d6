"""A real store on a disk that can be made to fail."""

from __future__ import annotations

from controller.errors import StoreError
from controller.store import SqliteStore, Stored, Writes


class Faulty(SqliteStore):
    """``full`` and ``unreadable`` are of one store, or set on the class of all."""

    full = False
    unreadable = False

    def commit(self, writes: Writes) -> None:
        if self.full:
            raise StoreError("could not write: database or disk is full (SQLITE_FULL)", remedy="free space")
        super().commit(writes)

    def load(self) -> Stored:
        if self.unreadable:
            raise StoreError("could not read: disk I/O error", remedy="look at the disk")
        return super().load()
