"""How a database of any earlier version becomes one of this version: forward only, each step one transaction.

A step is plain SQL that is never edited after a release; a change of the tables is a new step. The version of a
database is SQLite's ``user_version``; ``application_id`` says that it is ours at all.
"""

from __future__ import annotations

from sqlalchemy import Connection

from controller.errors import StoreError
from controller.store.checksums import SQL_NAME

#: "HdgR": so that another program's database is never taken for ours, nor ours for another's.
APPLICATION_ID = 0x48646752

_COUNTERS = """
    connections BIGINT NOT NULL, verified BIGINT NOT NULL, failed BIGINT NOT NULL, denied BIGINT NOT NULL,
    would_deny BIGINT NOT NULL, bytes_sent BIGINT NOT NULL, bytes_received BIGINT NOT NULL
"""

_FIRST = (
    "CREATE TABLE meta (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE edges (edge TEXT NOT NULL PRIMARY KEY, state TEXT NOT NULL, learned TEXT NOT NULL)",
    f"""CREATE TABLE traffic (edge TEXT NOT NULL, direction TEXT NOT NULL, {_COUNTERS}, verdict TEXT NOT NULL,
    first_seen FLOAT NOT NULL, last_seen FLOAT NOT NULL, judged_at FLOAT NOT NULL, source_identities TEXT NOT NULL,
    destination_identities TEXT NOT NULL, reporters TEXT NOT NULL, PRIMARY KEY (edge, direction))""",
    f"""CREATE TABLE windows (edge TEXT NOT NULL, width INTEGER NOT NULL, start BIGINT NOT NULL, {_COUNTERS},
    PRIMARY KEY (edge, width, start)) WITHOUT ROWID""",
    """CREATE TABLE modes (workload TEXT NOT NULL PRIMARY KEY, inbound TEXT NOT NULL, outbound TEXT NOT NULL,
    inbound_tls TEXT NOT NULL)""",
    """CREATE TABLE overrides (id TEXT NOT NULL PRIMARY KEY, effect TEXT NOT NULL, source TEXT NOT NULL,
    destination TEXT NOT NULL, port INTEGER, protocol TEXT NOT NULL, owner TEXT NOT NULL, reason TEXT NOT NULL,
    created_at FLOAT NOT NULL, expires_at FLOAT, revoked_at FLOAT, revoked_by TEXT NOT NULL,
    revoke_reason TEXT NOT NULL, ended INTEGER NOT NULL)""",
    """CREATE TABLE join_tokens (id TEXT NOT NULL PRIMARY KEY, digest TEXT NOT NULL, workload TEXT NOT NULL,
    instance TEXT NOT NULL, owner TEXT NOT NULL, created_at FLOAT NOT NULL, expires_at FLOAT NOT NULL,
    used_at FLOAT)""",
    """CREATE TABLE positions (instance TEXT NOT NULL, boot_id TEXT NOT NULL, sequence BIGINT NOT NULL,
    at FLOAT NOT NULL, PRIMARY KEY (instance, boot_id))""",
    """CREATE TABLE snapshots (workload TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL, digest TEXT NOT NULL,
    issued_at FLOAT NOT NULL)""",
    """CREATE TABLE audit (sequence INTEGER NOT NULL PRIMARY KEY, at FLOAT NOT NULL, actor TEXT NOT NULL,
    action TEXT NOT NULL, subject TEXT NOT NULL, detail TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL)""",
)

#: What is asked over connections, and overrides about it.
_OPERATIONS = (
    "CREATE TABLE operations (edge TEXT NOT NULL PRIMARY KEY, asked TEXT NOT NULL)",
    "ALTER TABLE overrides ADD COLUMN operations TEXT NOT NULL DEFAULT '[]'",
)

#: What a cluster declares, and which NetworkPolicies were applied to it, each a JSON document by its kind and key.
_DOCUMENTS = (
    "CREATE TABLE documents (kind TEXT NOT NULL, key TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (kind, key))",
)

_COUNTS = "connections, verified, failed, denied, would_deny, bytes_sent, bytes_received"
#: The columns that tables had when their rows got checksums.
_CHECKED = {
    "meta": "key, value",
    "edges": "edge, state, learned",
    "traffic": f"edge, direction, {_COUNTS}, verdict, first_seen, last_seen, judged_at, source_identities,"
    " destination_identities, reporters",
    "operations": "edge, asked",
    "modes": "workload, inbound, outbound, inbound_tls",
    "overrides": "id, effect, source, destination, port, protocol, owner, reason, created_at, expires_at, revoked_at,"
    " revoked_by, revoke_reason, ended, operations",
    "join_tokens": "id, digest, workload, instance, owner, created_at, expires_at, used_at",
    "positions": "instance, boot_id, sequence, at",
    "snapshots": "workload, version, digest, issued_at",
    "documents": "kind, key, document",
}
#: What was written before is taken as it is: from now on a byte that changes is noticed.
_CHECKSUMS = tuple(
    statement
    for table, columns in _CHECKED.items()
    for statement in (
        f"ALTER TABLE {table} ADD COLUMN checksum TEXT NOT NULL DEFAULT ''",
        f"UPDATE {table} SET checksum = {SQL_NAME}('{table}', {columns})",  # noqa: S608 - names of ours
    )
)

#: One entry a version, in order: the statements that lead from the version before to it.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _OPERATIONS, _DOCUMENTS, _CHECKSUMS)


def version_of(connection: Connection) -> int:
    """The version of the database; 0 is a new one.

    :raises StoreError: when it is another program's
    """
    application = int(connection.exec_driver_sql("PRAGMA application_id").scalar_one())
    version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    tables = int(connection.exec_driver_sql("SELECT count(*) FROM sqlite_schema").scalar_one())
    if application != APPLICATION_ID and (application or version or tables):
        raise StoreError("the database belongs to another program", remedy="set state_dir to a directory of its own")
    return version


def migrate(connection: Connection, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS) -> int:
    """Bring the database to the newest version.

    :return: the version that it had
    :raises StoreError: when it is newer than this program or not ours; nothing was changed
    """
    with connection.begin():
        found = version_of(connection)
    check_not_newer(found, len(migrations))
    for version in range(found + 1, len(migrations) + 1):
        with connection.begin():
            for statement in migrations[version - 1]:
                connection.exec_driver_sql(statement)
            connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.exec_driver_sql(f"PRAGMA user_version = {version}")
    return found


def check_not_newer(found: int, newest: int) -> None:
    """:raises StoreError: when the database has a version that this program does not know"""
    if found > newest:
        raise StoreError(
            f"the database has version {found}, and this program knows up to {newest}",
            remedy="start the newer hedgerow that wrote it, or restore a backup of this version",
        )
