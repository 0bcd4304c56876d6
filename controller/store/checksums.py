"""A checksum in every row, so that a byte that changed on the disk is damage and never another policy.

SQLite finds pages that do not hang together; it can not see that a name, a port or a time of a row is another one than
was written. (It is no proof against a person: whoever may write the file may write the checksum.) Audit entries have
none: their chain of hashes is theirs (:mod:`controller.audit`). Nor have the counts of windows: there are ten times as
many of them as of all other rows, and nothing is decided by them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Float, Table

from controller.errors import StoreError

#: The column that holds it, always the last one.
COLUMN: Final = "checksum"
#: As steps of :mod:`controller.store.migrations` call it: the name of the table and the row's other values in order.
SQL_NAME: Final = "hedgerow_checksum"


def sql_function(table: str, *values: Any) -> str:
    """The checksum of values as SQLite gives them."""
    data = json.dumps((table, values), separators=(",", ":"))
    return hashlib.blake2b(data.encode("ascii"), digest_size=16).hexdigest()


def with_checksum(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """A row as it is written. :param row: all of its other columns"""
    return {**row, COLUMN: _of(table, row)} if COLUMN in table.columns else row


def checked(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """A row as it was read, without its checksum.

    :raises StoreError: naming table and row when it is not what was written
    """
    if COLUMN not in table.columns:
        return row
    given = row.pop(COLUMN)
    if given != _of(table, row):
        key = next(iter(row.values()), "")
        raise StoreError(
            f"the table {table.name} has a damaged row {key!r:.120}: its checksum is that of another",
            remedy="restore the database from a backup",
        )
    return row


def _of(table: Table, row: Mapping[str, Any]) -> str:
    return sql_function(table.name, *(_stored(column, row[column.name]) for column in table.columns[:-1]))


def _stored(column: Any, value: Any) -> Any:
    """A value as SQLite gives it back: a whole number in a column of type FLOAT is none any more."""
    return float(value) if value is not None and isinstance(column.type, Float) else value
