"""The tables, as the newest migration leaves them. What made them is in :mod:`controller.store.migrations`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, Table, Text

from controller.store import checksums

metadata = MetaData()


def _key(name: str) -> Column[str]:
    return Column(name, Text, primary_key=True, nullable=False)


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _number(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _time(name: str, *, nullable: bool = False) -> Column[float]:
    return Column(name, Float, nullable=nullable)


def _checksum() -> Column[str]:
    """The last column of every table but the audit log's and the windows'; see :mod:`controller.store.checksums`."""
    return Column(checksums.COLUMN, Text, nullable=False, server_default="")


def _counters() -> tuple[Column[int], ...]:
    names = ("connections", "verified", "failed", "denied", "would_deny", "bytes_sent", "bytes_received")
    return tuple(_number(name) for name in names)


meta = Table("meta", metadata, _key("key"), _text("value"), _checksum())

edges = Table("edges", metadata, _key("edge"), _text("state"), _text("learned"), _checksum())

traffic = Table(
    "traffic",
    metadata,
    _key("edge"),
    _key("direction"),
    *_counters(),
    _text("verdict"),
    _time("first_seen"),
    _time("last_seen"),
    _time("judged_at"),
    _text("source_identities"),
    _text("destination_identities"),
    _text("reporters"),
    _checksum(),
)

operations = Table("operations", metadata, _key("edge"), _text("asked"), _checksum())

windows = Table(
    "windows",
    metadata,
    _key("edge"),
    Column("width", Integer, primary_key=True, nullable=False),
    Column("start", BigInteger, primary_key=True, nullable=False),
    *_counters(),
)

modes = Table(
    "modes", metadata, _key("workload"), _text("inbound"), _text("outbound"), _text("inbound_tls"), _checksum()
)

overrides = Table(
    "overrides",
    metadata,
    _key("id"),
    _text("effect"),
    _text("source"),
    _text("destination"),
    Column("port", Integer, nullable=True),
    _text("protocol"),
    _text("owner"),
    _text("reason"),
    _time("created_at"),
    _time("expires_at", nullable=True),
    _time("revoked_at", nullable=True),
    _text("revoked_by"),
    _text("revoke_reason"),
    Column("ended", Integer, nullable=False),
    _text("operations"),
    _checksum(),
)

join_tokens = Table(
    "join_tokens",
    metadata,
    _key("id"),
    _text("digest"),
    _text("workload"),
    _text("instance"),
    _text("owner"),
    _time("created_at"),
    _time("expires_at"),
    _time("used_at", nullable=True),
    _checksum(),
)

positions = Table(
    "positions", metadata, _key("instance"), _key("boot_id"), _number("sequence"), _time("at"), _checksum()
)

snapshots = Table(
    "snapshots", metadata, _key("workload"), _number("version"), _text("digest"), _time("issued_at"), _checksum()
)

documents = Table("documents", metadata, _key("kind"), _key("key"), _text("document"), _checksum())

audit = Table(
    "audit",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=False, nullable=False),
    _time("at"),
    _text("actor"),
    _text("action"),
    _text("subject"),
    _text("detail"),
    _text("previous"),
    _text("hash"),
)
