"""What the store refuses: files that are not its own, and its own where they were changed, cut, or lost something."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from controller.errors import StoreError
from controller.store import SqliteStore, schema
from tests.controller.mesh import NOW
from tests.controller.stored import KEY, everything, rechecked

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
