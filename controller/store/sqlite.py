"""The store in one SQLite file (SQLAlchemy Core): WAL, synchronous=FULL, one writer, one controller.

Opening looks before it touches: a file that is no database, is another program's, is newer than this program, or is in
use by another controller is refused as it is. So is one that lost something: an empty file, a log without its database,
a page that does not hang together, a row that is not what was written. Nothing is ever begun anew in its place.

Writes go through one connection; reads of the audit log have their own, which WAL lets run beside a write.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, Table, bindparam, create_engine, delete, event, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from controller import audit
from controller.errors import StoreError
from controller.store import checksums, migrations, rows, schema, write_ahead
from controller.store.records import Stored, Writes
from controller.view import AuditEntry

BUSY_SECONDS = 10.0
_MAGIC = b"SQLite format 3\x00"
_PAGE = 1_000


class SqliteStore:
    """See :class:`controller.store.records.Store`.

    :param path: of the database; made, readable by its owner only, when it is not there. Its directory is made too.
    :raises StoreError: when it can not be used
    """

    def __init__(self, path: Path, steps: tuple[tuple[str, ...], ...] = migrations.MIGRATIONS) -> None:
        self._path = path
        self._lock = -1
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        try:
            self._lock = _locked(path)
            if not _look(path, len(steps)):
                _make(path, steps)
            elif write_ahead.loses(_logs(path)[0]):
                raise StoreError(
                    f"{_logs(path)[0]} is damaged: what was written last is not all there any more",
                    remedy="restore it and the database from a backup",
                )
            self._engine = _engine(path)
            with self._translated("open"):
                self._connection = self._engine.connect()
                self._prepare(self._connection, steps)
        except OSError as error:
            self.close()
            raise StoreError(
                f"{path} can not be used: {error.strerror}",
                remedy="set state_dir to a directory that hedgerow may write",
            ) from None
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path:
        return self._path

    def _prepare(self, connection: Connection, steps: tuple[tuple[str, ...], ...]) -> None:
        checked = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
        connection.rollback()
        if checked != "ok":
            said = " ".join(str(checked).replace("*** in database main ***", "").split())
            raise StoreError(f"{self._path} is damaged: {said}", remedy="restore it from a backup")
        found = migrations.migrate(connection, steps)
        if found != len(steps):  # so that the next start sees the version without reading the log
            cursor = connection.connection.cursor()  # a checkpoint is not possible inside a transaction
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            cursor.close()

    def close(self) -> None:
        """Close the database and let another controller use it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- reading

    def load(self) -> Stored:
        with self._translated("read"), self._open().begin():
            meta = dict(self._rows(schema.meta, lambda row: (str(row["key"]), str(row["value"]))))
            head = next(iter(self._audit_page(self._open(), 1)), None)
            if head is not None and audit.entry_hash(head) != head.hash:  # what follows would hang on nothing
                raise StoreError(
                    f"the table audit has a damaged row {head.sequence}: its hash is that of another",
                    remedy="restore the database from a backup",
                )
            return Stored(
                generation=_whole(meta, "generation"),
                trust_domain=meta.get("trust_domain", ""),
                inventory=_json(meta, "inventory"),
                inventory_revision=_whole(meta, "inventory_revision"),
                edges=tuple(self._rows(schema.edges, rows.learned_of)),
                traffic=tuple(self._rows(schema.traffic, rows.traffic_of)),
                windows=dict(self._rows(schema.windows, rows.window_of)),
                operations=dict(self._rows(schema.operations, rows.operations_of)),
                modes=dict(self._rows(schema.modes, rows.mode_of)),
                overrides=tuple(self._rows(schema.overrides, rows.override_of)),
                tokens=tuple(self._rows(schema.join_tokens, rows.token_of)),
                positions=dict(self._rows(schema.positions, rows.position_of)),
                marks=dict(self._rows(schema.snapshots, rows.mark_of)),
                documents=dict(self._rows(schema.documents, rows.document_of)),
                audit_head=head,
            )

    def audit_page(self, limit: int) -> tuple[AuditEntry, ...]:
        with self._translated("read"), self._reading() as connection:
            return self._audit_page(connection, limit)

    def audit_verified(self, head: AuditEntry | None) -> audit.Verified:
        with self._translated("read"), self._reading() as connection:
            query = select(schema.audit).order_by(schema.audit.c.sequence).execution_options(yield_per=_PAGE)
            found = connection.execute(query).mappings()
            return audit.verify((rows.read("audit", dict(row), rows.audit_of) for row in found), head)

    def _audit_page(self, connection: Connection, limit: int) -> tuple[AuditEntry, ...]:
        query = select(schema.audit).order_by(schema.audit.c.sequence.desc()).limit(limit)
        found = connection.execute(query).mappings()
        return tuple(rows.read("audit", dict(row), rows.audit_of) for row in found)

    def _rows[T](self, table: Table, reader: Callable[[rows.Row], T]) -> Iterator[T]:
        for row in self._open().execute(select(table)).mappings():
            yield rows.read(table.name, checksums.checked(table, dict(row)), reader)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if self._engine is None:
            raise _closed()
        with self._engine.connect() as connection, connection.begin():
            yield connection

    # --- writing

    def commit(self, writes: Writes) -> None:
        with self._translated("write"), self._open().begin():
            self._commit(self._open(), writes)

    def _commit(self, connection: Connection, writes: Writes) -> None:
        meta = {"generation": str(writes.generation)}
        if writes.trust_domain is not None:
            meta["trust_domain"] = writes.trust_domain
        if writes.inventory is not None:
            meta["inventory"] = rows.dumps(writes.inventory)
        if writes.inventory_revision is not None:
            meta["inventory_revision"] = str(writes.inventory_revision)
        _put(connection, schema.meta, [{"key": key, "value": value} for key, value in meta.items()])
        _put(connection, schema.edges, [rows.learned_row(edge) for edge in writes.edges.values() if edge])
        _drop(connection, schema.edges, [(str(key),) for key, edge in writes.edges.items() if edge is None])
        _put(
            connection, schema.traffic, [rows.traffic_row(each) for each in writes.traffic.values() if each is not None]
        )
        _drop(
            connection,
            schema.traffic,
            [(str(key), str(direction)) for (key, direction), each in writes.traffic.items() if each is None],
        )
        kept = [(key, counts) for key, counts in writes.windows.items() if counts is not None]
        _put(connection, schema.windows, [rows.window_row(key, counts) for key, counts in kept])
        _drop(
            connection,
            schema.windows,
            [(str(key), width, start) for (key, width, start), counts in writes.windows.items() if counts is None],
        )
        asked = [(key, views) for key, views in writes.operations.items() if views is not None]
        _put(connection, schema.operations, [rows.operations_row(key, views) for key, views in asked])
        _drop(connection, schema.operations, [(str(key),) for key, views in writes.operations.items() if views is None])
        _put(connection, schema.modes, [rows.mode_row(ref, mode) for ref, mode in writes.modes.items() if mode])
        _drop(connection, schema.modes, [(str(ref),) for ref, mode in writes.modes.items() if mode is None])
        _put(connection, schema.overrides, [rows.override_row(each) for each in writes.overrides.values() if each])
        _drop(connection, schema.overrides, [(key,) for key, each in writes.overrides.items() if each is None])
        _put(connection, schema.join_tokens, [rows.token_row(each) for each in writes.tokens.values() if each])
        _drop(connection, schema.join_tokens, [(key,) for key, each in writes.tokens.items() if each is None])
        _put(connection, schema.positions, [rows.position_row(key, p) for key, p in writes.positions.items() if p])
        _drop(connection, schema.positions, [key for key, each in writes.positions.items() if each is None])
        _put(connection, schema.snapshots, [rows.mark_row(ref, mark) for ref, mark in writes.marks.items()])
        kept_documents = [(key, document) for key, document in writes.documents.items() if document is not None]
        _put(connection, schema.documents, [rows.document_row(key, document) for key, document in kept_documents])
        _drop(connection, schema.documents, [key for key, document in writes.documents.items() if document is None])
        if writes.audit:  # never an upsert: what is written there is written once
            connection.execute(schema.audit.insert(), [rows.audit_row(entry) for entry in writes.audit])

    # --- inside

    def _open(self) -> Connection:
        if self._connection is None:
            raise _closed()
        return self._connection

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Foreign errors become ours here, and nowhere else; ours name the file."""
        try:
            yield
        except StoreError as error:
            if str(self._path) in error.problem:
                raise
            raise StoreError(f"{self._path}: {error.problem}", remedy=error.remedy) from None
        except DBAPIError as error:
            raise _translate(self._path, doing, error.orig) from None
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter even of SQLite's own words about damage
            raise _translate(self._path, doing, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _put(connection: Connection, table: Table, values: Sequence[dict[str, Any]]) -> None:
    """Insert rows, replacing those that have the same key."""
    if not values:
        return
    statement = insert(table)
    keys = [column.name for column in table.primary_key]
    changes = {column.name: statement.excluded[column.name] for column in table.columns if column.name not in keys}
    connection.execute(
        statement.on_conflict_do_update(index_elements=keys, set_=changes),
        [checksums.with_checksum(table, each) for each in values],
    )


def _drop(connection: Connection, table: Table, keys: Sequence[tuple[Any, ...]]) -> None:
    """Delete rows by their keys, which are in the order of the primary key."""
    if not keys:
        return
    columns = list(table.primary_key)
    statement = delete(table).where(*(column == bindparam(f"key_{column.name}") for column in columns))
    names = [f"key_{column.name}" for column in columns]
    connection.execute(statement, [dict(zip(names, key, strict=True)) for key in keys])


def _engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=NullPool,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _connected(raw: sqlite3.Connection, _record: object) -> None:
        raw.isolation_level = None  # transactions are ours, DDL included; the driver's own handling leaves it out
        raw.execute("PRAGMA journal_mode = WAL")
        raw.execute("PRAGMA synchronous = FULL")
        raw.execute("PRAGMA foreign_keys = ON")
        raw.execute("PRAGMA trusted_schema = OFF")
        raw.create_function(checksums.SQL_NAME, -1, checksums.sql_function, deterministic=True)

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def _locked(path: Path) -> int:
    """Take the lock that ends with this process, however it ends."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise StoreError(
            f"{path} is in use by another controller{f' (process {holder})' if holder.isdigit() else ''}",
            remedy="stop that one first, or give this one a state_dir of its own",
        ) from None
    os.truncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _make(path: Path, steps: tuple[tuple[str, ...], ...]) -> None:
    """Make a new database. It has its name once it is whole, so that an empty file of that name is always a loss."""
    new = path.with_name(path.name + ".new")
    for each in (new, *_logs(new)):
        each.unlink(missing_ok=True)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    engine = _engine(new)
    try:
        with engine.connect() as connection:
            migrations.migrate(connection, steps)
    except DBAPIError as error:
        raise _translate(path, "make", error.orig) from None
    finally:
        engine.dispose()
    new.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _logs(path: Path) -> tuple[Path, Path]:
    """What SQLite keeps beside a database."""
    return path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")


def _look(path: Path, newest: int) -> bool:
    """Refuse what is plainly not ours before anything may change it, be it only its journal mode.

    The file alone is looked at, without the log beside it: after a crash in our first moments it may still be blank.

    :return: whether there is one
    """
    if not path.exists():
        log = _logs(path)[0]
        if log.exists() and log.stat().st_size:
            raise StoreError(
                f"{path} is gone, and its log {log.name} is there",
                remedy=f"restore it from a backup, or move {log.name} away to begin with nothing",
            )
        return False
    if not path.is_file():
        raise StoreError(f"{path} is not a regular file", remedy="move it away, or set another state_dir")
    with path.open("rb") as file:
        header = file.read(100)
    if not header:
        raise StoreError(
            f"{path} is empty, which no database of ours ever is",
            remedy=f"restore it from a backup, or move it and {_logs(path)[0].name} away to begin with nothing",
        )
    if len(header) < 100 or not header.startswith(_MAGIC):
        raise StoreError(f"{path} is not a database", remedy="move it away, or restore it from a backup")
    # from the header: while a checkpoint is unfinished, as a crash or a full disk leaves it, the rest of the file
    # is whole only together with its log
    version, application = struct.unpack_from(">I", header, 60)[0], struct.unpack_from(">I", header, 68)[0]
    tables = 0
    if not application and not version:
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as file_alone:
                tables = int(file_alone.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise _translate(path, "open", error) from None
    if application == migrations.APPLICATION_ID:
        try:
            migrations.check_not_newer(version, newest)
        except StoreError as error:
            raise StoreError(f"{path}: {error.problem}", remedy=error.remedy) from None
    elif application or version or tables:
        raise StoreError(f"{path} belongs to another program", remedy="set state_dir to a directory of its own")
    return True


def _translate(path: Path, doing: str, error: BaseException | None) -> StoreError:
    code = getattr(error, "sqlite_errorname", "") or type(error).__name__
    remedies = {
        "SQLITE_FULL": "free space on its disk; nothing is lost",
        "SQLITE_READONLY": "make the file and its directory writable for hedgerow",
        "SQLITE_BUSY": "find the program that keeps it locked and end it",
        "SQLITE_NOTADB": "move it away, or restore it from a backup",
        "SQLITE_CORRUPT": "restore it from a backup",
        "UnicodeDecodeError": "it is damaged; restore it from a backup",
        "SQLITE_CANTOPEN": "set state_dir to a directory that hedgerow may write",
    }
    name = next((known for known in remedies if code.startswith(known)), code)
    return StoreError(
        f"could not {doing} {path}: {error} ({code})", remedy=remedies.get(name, "look at the disk it is on")
    )


def _closed() -> StoreError:
    return StoreError("the database is closed", remedy="start the controller again")


def _whole(meta: dict[str, str], key: str) -> int:
    value = meta.get(key, "0")
    if not (value.isascii() and value.isdigit()):
        raise StoreError(f"the table meta has a damaged row {key!r}: {value!r:.80}", remedy="restore it from a backup")
    return int(value)


def _json(meta: dict[str, str], key: str) -> dict[str, Any] | None:
    if key not in meta:
        return None
    try:
        value = json.loads(meta[key])
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StoreError(f"the table meta has a damaged row {key!r}", remedy="restore the database from a backup")
    return value
