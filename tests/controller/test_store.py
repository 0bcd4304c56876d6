"""The store gives back what it was given, writes all or nothing, and touches no file that is not its own.

Over 400 lines: each way to spoil a database is tried on the one that holds everything.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import create_engine, inspect

from controller import audit, join_tokens
from controller.errors import StoreError
from controller.learner import LearnedEdge, observe, step
from controller.overrides import rule_of
from controller.store import Mark, Position, SqliteStore, Stored, Writes, migrations, schema
from controller.view import Override, WorkloadMode
from graph.accounts import EdgeTotals
from graph.flow import EdgeKey
from graph.model import Direction, InboundTls, Mode, Protocol, Verdict
from graph.views import EdgeVerdict, OperationView
from graph.windows import Counts
from tests.controller.mesh import CART, FRONT, GATE, NOW, REDIS, flow, instance, inventory

KEY = EdgeKey(FRONT, CART, 8080)


def learned() -> LearnedEdge:
    edge = observe(None, flow(FRONT, CART, reporter="cart-0"), NOW, source_replicas=1)
    assert edge is not None
    return step(edge, GATE, NOW + 20)


def override() -> Override:
    return Override(
        "override/1",
        Verdict.DENY,
        FRONT,
        REDIS,
        None,
        Protocol.TCP,
        "ann",
        "why",
        NOW,
        NOW + 60,
        NOW + 1,
        "bob",
        "x",
        True,
        ("DELETE /cart/{id}", "PUT /"),
    )


def everything() -> Writes:
    entry = audit.append(None, NOW, "ann", "mode.set", "shop/cart", {"reason": "ä"})
    totals = EdgeTotals(
        KEY,
        Direction.INBOUND,
        Counts(5, 5, 1, 2, 3, 4, 2**63 - 1),
        EdgeVerdict.WOULD_DENY,
        NOW,
        NOW + 1,
        ("a",),
        ("b",),
    )
    return Writes(
        generation=7,
        trust_domain="hedgerow.test",
        inventory=inventory().to_dict(),
        inventory_revision=3,
        edges={KEY: learned()},
        traffic={(KEY, Direction.INBOUND): replace(totals, reporters=("cart-1", "cart-0"), judged_at=NOW)},
        windows={(KEY, 10, 1_700_000_000): Counts(1, 2, 3, 4, 5, 6, 7)},
        operations={KEY: (OperationView("GET /ä/{id}", 1, 2, 3, NOW, NOW + 1), OperationView("other", 2**63 - 1))},
        modes={CART: WorkloadMode(Mode.ENFORCE, Mode.AUDIT, InboundTls.STRICT)},
        overrides={"override/1": override()},
        tokens={token.id: token for _, token in [join_tokens.make(instance("cart-0"), 60.0, "ann", NOW)]},
        positions={("shop/cart-0", "boot"): Position(12, NOW)},
        marks={CART: Mark(4, "d" * 64, NOW)},
        documents={("declaration", "AccessOverride/shop/a"): {"ä": [1, None]}, ("fence", "shop"): {}},
        audit=[entry, audit.append(entry, NOW + 1, "learner", "edge.active", str(KEY), {})],
    )


def test_everything_comes_back_after_a_restart(tmp_path: Path) -> None:
    writes = everything()
    with SqliteStore(tmp_path / "controller.db") as store:
        assert store.load() == Stored()
        store.commit(writes)
    with SqliteStore(tmp_path / "controller.db") as store:
        assert store.load() == Stored(
            generation=7,
            trust_domain="hedgerow.test",
            inventory=inventory().to_dict(),
            inventory_revision=3,
            edges=(learned(),),
            traffic=tuple(each for each in writes.traffic.values() if each is not None),
            windows=writes.windows,
            operations=writes.operations,
            modes=writes.modes,
            overrides=(override(),),
            tokens=tuple(each for each in writes.tokens.values() if each is not None),
            positions=writes.positions,
            marks=writes.marks,
            documents=writes.documents,
            audit_head=writes.audit[-1],
        )
        assert store.audit_page(10) == tuple(reversed(writes.audit))
        assert store.audit_page(1) == (writes.audit[1],)
        assert store.audit_verified(writes.audit[-1]).intact


def test_a_later_value_replaces_the_earlier_and_none_deletes_it(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "controller.db") as store:
        store.commit(everything())
        store.commit(Writes(generation=8, overrides={"override/1": replace(override(), reason="other")}))
        assert [each.reason for each in store.load().overrides] == ["other"]
        first = everything()
        store.commit(
            Writes(
                generation=9,
                edges=dict.fromkeys(first.edges),
                traffic=dict.fromkeys(first.traffic),
                windows=dict.fromkeys(first.windows),
                overrides=dict.fromkeys(first.overrides),
                tokens=dict.fromkeys(token.id for token in store.load().tokens),
                positions=dict.fromkeys(first.positions),
                modes=dict.fromkeys(first.modes),
                documents=dict.fromkeys(first.documents),
            )
        )
        left = store.load()
        assert (left.generation, left.modes, left.documents, left.marks) == (9, {}, {}, first.marks)
        assert (left.edges, left.traffic, left.overrides, left.tokens) == ((), (), (), ())
        assert (left.windows, left.positions) == ({}, {})


def test_a_write_that_fails_leaves_nothing_of_itself(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "controller.db") as store:
        first = everything()
        store.commit(first)
        before = store.load()
        again = Writes(generation=8, modes={FRONT: WorkloadMode()}, audit=[first.audit[0]])  # an entry is written once
        with pytest.raises(StoreError, match="could not write"):
            store.commit(again)
        assert store.load() == before


def test_the_audit_log_is_checked_as_it_is_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    with SqliteStore(path) as store:
        writes = everything()
        store.commit(writes)
        with sqlite3.connect(path) as other:
            other.execute("UPDATE audit SET actor = 'bob' WHERE sequence = 1")
        other.close()
        found = store.audit_verified(writes.audit[-1])
        assert "entry 1 was changed" in found.problem


def test_the_tables_are_those_that_the_migrations_make(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    SqliteStore(path).close()
    engine = create_engine(f"sqlite:///{path}")
    try:
        found = inspect(engine)
        assert set(found.get_table_names()) == set(schema.metadata.tables)
        for name, table in schema.metadata.tables.items():
            columns = [(each["name"], bool(each["nullable"])) for each in found.get_columns(name)]
            assert columns == [(each.name, bool(each.nullable)) for each in table.columns]
            assert found.get_pk_constraint(name)["constrained_columns"] == [each.name for each in table.primary_key]
    finally:
        engine.dispose()


def test_writes_are_durable_and_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "controller.db"
    with SqliteStore(path) as store:
        store.commit(everything())
        assert store._open().exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert store._open().exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        store._open().rollback()
        for name in (path, path.with_name("controller.db-wal"), path.with_name("controller.db.lock")):
            assert stat.S_IMODE(name.stat().st_mode) == 0o600, name
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# --- migrations


STEP = ("CREATE TABLE more (a TEXT)", "INSERT INTO more VALUES ('x')")


def test_an_older_database_is_brought_forward(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    with SqliteStore(path) as store:
        store.commit(everything())
    with SqliteStore(path, (*migrations.MIGRATIONS, STEP)) as store:
        assert store.load().generation == 7
        assert store._open().exec_driver_sql("SELECT a FROM more").scalar_one() == "x"
        store._open().rollback()


def test_a_database_from_before_operations_is_brought_forward(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    SqliteStore(path, migrations.MIGRATIONS[:1]).close()
    with sqlite3.connect(path) as other:
        other.execute(
            "INSERT INTO overrides VALUES ('override/1', 'deny', 'shop/front', 'data/redis', NULL, 'TCP', 'ann', 'why',"
            f" {NOW}, {NOW + 60}, {NOW + 1}, 'bob', 'x', 1)"
        )
    other.close()
    with SqliteStore(path) as store:
        assert store.load().overrides == (replace(override(), operations=()),)
        assert store.load().operations == {}


def test_operations_of_an_edge_that_went_are_forgotten(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "controller.db") as store:
        store.commit(everything())
        store.commit(Writes(operations={KEY: None}))
        assert store.load().operations == {}


@pytest.mark.parametrize("asked", ["", "{}", '[["GET /", 1]]', '[["GET /", "x", 0, 0, 0, 0]]', "null"])
def test_damaged_operations_are_named(tmp_path: Path, asked: str) -> None:
    path = tmp_path / "controller.db"
    with SqliteStore(path) as store:
        store.commit(everything())
        rechecked(store, "operations", "asked", asked)
        if asked == "{}":  # nothing to read in it, and nothing to guess
            assert store.load().operations == {KEY: ()}
        else:
            with pytest.raises(StoreError, match=r"controller\.db: the table operations has a damaged row"):
                store.load()


def rechecked(store: SqliteStore, table: str, column: str, value: object) -> None:
    """Put a value into every row of a table, with the checksum of it: what a program of ours would have written."""
    found = schema.metadata.tables[table]
    names = ", ".join(each.name for each in found.columns[:-1])
    with store._open().begin():
        store._open().exec_driver_sql(f"UPDATE {table} SET {column} = ?", (value,))
        store._open().exec_driver_sql(f"UPDATE {table} SET checksum = hedgerow_checksum('{table}', {names})")


def test_a_newer_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    with SqliteStore(path, (*migrations.MIGRATIONS, STEP)) as store:
        store.commit(everything())
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"version 5.*knows up to 4; start the newer hedgerow"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    with SqliteStore(path) as store:
        store.commit(everything())
        before = store.load()
    with pytest.raises(StoreError, match="could not open"):
        SqliteStore(path, (*migrations.MIGRATIONS, ("CREATE TABLE more (a TEXT)", "CREATE TABLE meta (a TEXT)")))
    with SqliteStore(path) as store:
        assert store.load() == before
        assert store._open().exec_driver_sql("SELECT count(*) FROM sqlite_schema WHERE name = 'more'").scalar_one() == 0
        store._open().rollback()


# --- what is not ours


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    for content in (b"hello", b"x" * 5000, b"SQLite format 3\x00" + b"\x00" * 50):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"controller\.db is not a database; move it away"):
            SqliteStore(path)
        assert path.read_bytes() == content


def test_another_programs_database_is_left_as_it_is(tmp_path: Path) -> None:
    for number, statement in enumerate(("PRAGMA application_id = 5", "CREATE TABLE theirs (a TEXT)")):
        path = tmp_path / f"{number}.db"
        with sqlite3.connect(path) as other:
            other.execute(statement)
        other.close()
        before = path.read_bytes()
        with pytest.raises(StoreError, match="another program"):
            SqliteStore(path)
        assert path.read_bytes() == before


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    with SqliteStore(path) as store:
        store.commit(everything())
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"restore it from a backup"):
        SqliteStore(path)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("overrides", "effect", "allow"),
        ("overrides", "destination", "data/redir"),
        ("overrides", "port", 6380),
        ("overrides", "expires_at", NOW + 1e6),
        ("overrides", "ended", 0),
        ("modes", "inbound", "audit"),
        ("modes", "workload", "shop/carr"),
        ("edges", "state", "active"),
        ("join_tokens", "used_at", None),
        ("join_tokens", "expires_at", NOW + 1e6),
        ("positions", "sequence", 11),
        ("snapshots", "version", 5),
        ("documents", "document", '{"a":1}'),
        ("meta", "value", "8"),
        ("traffic", "verdict", "allowed"),
        ("overrides", "checksum", ""),
        ("audit", "subject", "shop/carr"),
    ],
)
def test_a_row_that_reads_well_and_is_not_what_was_written_is_refused(
    tmp_path: Path, table: str, column: str, value: object
) -> None:
    path = tmp_path / "controller.db"
    with SqliteStore(path) as store:
        store.commit(replace(everything(), tokens={"t": replace(only(everything().tokens), used_at=NOW)}))
    with sqlite3.connect(path) as other:
        changed = other.execute(
            f"UPDATE {table} SET {column} = ? WHERE rowid = (SELECT max(rowid) FROM {table})",
            (value,),
        )
        assert changed.rowcount == 1
    other.close()
    with SqliteStore(path) as store, pytest.raises(StoreError, match=rf"controller\.db: the table {table} has a damag"):
        store.load()


def only[K, V](values: Mapping[K, V]) -> V:
    (value,) = values.values()
    return value


def test_no_bit_that_changes_makes_another_policy(tmp_path: Path) -> None:
    """Of all bits of the file, at random: it is refused, or what is read is what was written."""
    path = tmp_path / "controller.db"
    with SqliteStore(path) as store:
        store.commit(replace(everything(), windows={}))  # counts have no checksum
        written = store.load()
    intact = path.read_bytes()
    places = Random(7)
    used = [place for place, value in enumerate(intact) if value] + [*range(100)]  # most of the file is nothing yet
    refused: list[tuple[int, StoreError]] = []
    for place in places.choices(used, k=400):
        damaged = bytearray(intact)
        damaged[place] ^= 1 << places.randrange(8)
        path.write_bytes(damaged)
        try:
            with SqliteStore(path) as store:
                assert store.load() == written, place
        except StoreError as error:
            refused.append((place, error))
        for log in (path.with_name("controller.db-wal"), path.with_name("controller.db-shm")):
            log.unlink(missing_ok=True)
    assert len(refused) > 100
    assert all(str(path) in error.problem and error.remedy for _, error in refused)


def test_a_database_from_before_checksums_gets_them(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    with SqliteStore(path) as store:
        store.commit(everything())
        written = store.load()
    with sqlite3.connect(path) as other:
        for name, table in schema.metadata.tables.items():
            if "checksum" in table.columns:
                other.execute(f"ALTER TABLE {name} DROP COLUMN checksum")
        other.execute("PRAGMA user_version = 3")
    other.close()
    with SqliteStore(path) as store:
        assert store.load() == written


# --- what was lost


@pytest.mark.parametrize("size", [1, 99, 100, 4095, 4096, 8192, 40_960])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "controller.db"
    with SqliteStore(path) as store:
        store.commit(everything())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(StoreError, match=r"controller\.db.*backup"):
        SqliteStore(path)
    assert path.stat().st_size == size


def killed(path: Path) -> None:
    """Commit everything and then generations 101 to 105, and end as after a power cut: with the log unmerged."""
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from controller.store import SqliteStore, Writes; from tests.controller.test_store import everything\n"
        "store = SqliteStore(Path(sys.argv[1])); store.commit(everything())\n"
        "store.commit(Writes(generation=8, documents={('declaration', 'large'): {'a': 'x' * 100_000}}))\n"
        "for one in range(101, 106): store.commit(Writes(generation=one, modes=everything().modes))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_an_empty_file_or_none_beside_a_log_is_never_a_new_database(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    killed(path)
    log = path.with_name("controller.db-wal")
    before = log.read_bytes()
    path.unlink()
    with pytest.raises(StoreError, match=r"controller\.db is gone, and its log controller\.db-wal is there; restore"):
        SqliteStore(path)
    path.write_bytes(b"")
    with pytest.raises(StoreError, match=r"controller\.db is empty.*; restore"):
        SqliteStore(path)
    assert log.read_bytes() == before
    log.unlink()
    with pytest.raises(StoreError, match=r"controller\.db is empty.*; restore"):
        SqliteStore(path)
    path.unlink()
    SqliteStore(path).close()  # as the message says


def test_what_is_left_of_an_interrupted_beginning_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    for name in ("controller.db.new", "controller.db.new-wal", "controller.db.new-shm"):
        path.with_name(name).write_bytes(b"half of it")
    with SqliteStore(path) as store:
        store.commit(everything())
    with SqliteStore(path) as store:
        assert store.load().generation == 7
    assert not path.with_name("controller.db.new").exists()


def test_a_checkpoint_that_was_interrupted_is_no_damage(tmp_path: Path) -> None:
    """SQLite copies pages from its log in their order: a crash, or a full disk, leaves the first of them copied."""
    path = tmp_path / "controller.db"
    killed(path)
    log = path.with_name("controller.db-wal").read_bytes()
    newest: dict[int, bytes] = {}
    for place in range(32, len(log), 24 + 4096):
        newest[int.from_bytes(log[place : place + 4])] = log[place + 24 : place + 24 + 4096]
    pages = max(newest)
    assert pages * 4096 > path.stat().st_size, "the database has to grow for this"
    for number, content in sorted(newest.items())[: len(newest) // 2]:
        with path.open("r+b") as file:
            file.seek((number - 1) * 4096)
            file.write(content)
    with SqliteStore(path) as store:
        assert store.load().generation == 105


def test_a_log_that_lost_what_was_acknowledged_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    killed(path)
    log = path.with_name("controller.db-wal")
    database, intact = path.read_bytes(), log.read_bytes()

    def put(content: bytes | bytearray) -> None:
        path.write_bytes(database)
        log.write_bytes(content)
        path.with_name("controller.db-shm").unlink(missing_ok=True)

    frame = 24 + 4096
    places = Random(11)
    for place in [*places.choices(range(len(intact) - 4 * frame), k=16), 3, 17, 40, 60]:
        damaged = bytearray(intact)
        damaged[place] ^= 1 << places.randrange(8)
        put(damaged)
        with pytest.raises(StoreError, match=r"controller\.db-wal is damaged: .*; restore it and the database"):
            SqliteStore(path)
        assert log.read_bytes() == damaged
    for content in (intact, intact + b"\0" * frame, intact + intact[-frame:-1]):  # and what a power cut may leave
        put(content)
        with SqliteStore(path) as store:
            assert store.load().generation == 105
    put(intact[:-100])  # the last write was not finished
    with SqliteStore(path) as store:
        assert store.load().generation == 104


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    with SqliteStore(path) as store:
        store.commit(everything())
        with sqlite3.connect(path) as other:
            other.execute("UPDATE modes SET inbound = 'open'")
        other.close()
        with pytest.raises(StoreError, match=r"the table modes has a damaged row 'shop/cart'.*backup"):
            store.load()


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "controller.db").mkdir()
    with pytest.raises(StoreError, match="not a regular file"):
        SqliteStore(tmp_path / "controller.db")


def test_a_place_where_nothing_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="state_dir"):
        SqliteStore(tmp_path / "file" / "controller.db")


def test_two_controllers_do_not_share_it(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    with SqliteStore(path) as store:
        with pytest.raises(StoreError, match=rf"in use by another controller \(process {os.getpid()}\)"):
            SqliteStore(path)
        store.commit(everything())
    SqliteStore(path).close()


def test_the_lock_ends_with_the_process_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "controller.db"
    program = (
        "import sys; from pathlib import Path; from controller.store import SqliteStore\n"
        "store = SqliteStore(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match=rf"process {child.pid}"):
            SqliteStore(path)
    finally:
        child.kill()
        child.communicate()
    SqliteStore(path).close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "controller.db")
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.load()
    with pytest.raises(StoreError, match="closed"):
        store.audit_page(1)


def test_a_rule_can_be_made_of_a_stored_override(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "controller.db") as store:
        store.commit(everything())
        assert rule_of(store.load().overrides[0]) == rule_of(override())
