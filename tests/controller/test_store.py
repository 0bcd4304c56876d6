"""The store gives back what it was given, writes all or nothing, and is brought forward."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

from controller.errors import StoreError
from controller.overrides import rule_of
from controller.store import SqliteStore, Stored, Writes, migrations, schema
from controller.view import WorkloadMode
from tests.controller.mesh import FRONT, NOW, inventory
from tests.controller.stored import KEY, everything, learned, override


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


# --- who uses it


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
