"""A database that was restored from a backup: what sidecars hold is newer than all that it knows, and they do not go
back.

The sidecars here take and refuse what the real one does (``sidecar/snapshots.py``), and nothing else of them matters.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controller.engine import Engine
from controller.engine.sidecars import AHEAD
from graph.model import Mode
from tests.controller.mesh import CART, FRONT, REDIS, Clock, instance, running


class Sidecar:
    """Of an instance, with the newest snapshot that it took."""

    def __init__(self, name: str, boot: str = "boot") -> None:
        self.instance = instance(name)
        self.boot = boot
        self.version = 0
        self.mode = Mode.ENFORCE

    async def connect(self, engine: Engine) -> None:
        await engine.sidecar_connected(self.instance, self.boot, self.version, "test")
        await self.follow(engine)

    async def follow(self, engine: Engine) -> None:
        """Be pushed what is newest."""
        snapshot = engine.view.snapshots[self.instance.workload]
        await engine.sidecar_pushed(self.instance, self.boot, snapshot.version)
        if snapshot.version < self.version:
            said = f"version: {snapshot.version} is older than {self.version}, which is in force"
            await engine.sidecar_nacked(self.instance, self.boot, snapshot.version, said)
        else:
            self.version, self.mode = snapshot.version, snapshot.inbound_mode
            await engine.sidecar_acked(self.instance, self.boot, snapshot.version)


@contextmanager
def restored(path: Path) -> Iterator[None]:
    """What happens in between is forgotten by the database, as it was before."""
    backup = path.with_name("backup")
    shutil.copytree(path, backup)
    yield
    shutil.rmtree(path)
    shutil.copytree(backup, path)


async def change(engine: Engine, mode: Mode) -> None:
    await engine.set_mode(CART, None, mode, None, "ann", "x")


async def renumbered(engine: Engine) -> list[str]:
    return [each.subject for each in (await engine.audit(1000)).entries if each.action == "policy.renumber"]


def state_directory(path: Path) -> Path:
    made = path / "state"
    made.mkdir()
    return made


async def begun(path: Path, clock: Clock) -> None:
    """A mesh with a database in which cart only observes."""
    async with running(path, clock) as engine:
        await change(engine, Mode.AUDIT)


async def test_a_change_after_a_restore_is_newer_than_what_was_pushed_in_between(tmp_path: Path, clock: Clock) -> None:
    path, sidecar = state_directory(tmp_path), Sidecar("cart-0")
    await begun(path, clock)
    with restored(path):
        clock.now += 86400
        async with running(path, clock) as engine:
            for mode in (Mode.LEARN, Mode.ENFORCE, Mode.LEARN):
                await change(engine, mode)
            await sidecar.connect(engine)
    clock.now += 60
    async with running(path, clock) as engine:
        await change(engine, Mode.QUARANTINE)  # before it is there
        await sidecar.connect(engine)
        assert sidecar.mode is Mode.QUARANTINE
        assert await engine.wait_pushed([CART], 1)
        assert await renumbered(engine) == [], "the clock's number was enough"


async def test_a_restored_policy_is_taken_where_nothing_changes_after_the_restore(tmp_path: Path, clock: Clock) -> None:
    path, sidecars = state_directory(tmp_path), [Sidecar("cart-0"), Sidecar("cart-1"), Sidecar("redis-0")]
    await begun(path, clock)
    with restored(path):
        clock.now += 86400
        async with running(path, clock) as engine:
            for mode in (Mode.AUDIT, Mode.ENFORCE) * 10 + (Mode.LEARN,):  # many within a second
                await change(engine, mode)
                for sidecar in sidecars:
                    await sidecar.connect(engine)
    async with running(path, clock) as engine:
        for sidecar in sidecars:
            await sidecar.connect(engine)
        assert [each.mode for each in sidecars] == [Mode.AUDIT, Mode.AUDIT, Mode.LEARN]
        assert await engine.wait_pushed([CART], 1)
        assert await renumbered(engine) == ["shop/cart"], "once, and only where it was needed"
        given = engine.view.snapshots[CART].version
    async with running(path, clock) as engine:
        assert engine.view.snapshots[CART].version == given, "it is stored"
        await change(engine, Mode.ENFORCE)
        await sidecars[0].connect(engine)
        assert sidecars[0].mode is Mode.ENFORCE


async def test_a_version_that_was_never_given_out_moves_nothing_and_counts_for_nothing(
    tmp_path: Path, clock: Clock
) -> None:
    async with running(tmp_path, clock) as engine:
        before = engine.view.snapshots
        sidecar = Sidecar("cart-0")
        for made_up in (int(clock.now) + AHEAD + 1, 2**62, 2**64 - 1):
            sidecar.version = made_up
            await sidecar.connect(engine)
            assert engine.view.snapshots == before
            assert not await engine.wait_pushed([CART], 1), "it does not have what was pushed"
        assert engine.view.sidecars["shop/cart-0"].nack
        assert await renumbered(engine) == []


async def test_whatever_an_instance_makes_up_numbers_its_own_workload_on_once_in_a_run(
    tmp_path: Path, clock: Clock
) -> None:
    async with running(tmp_path, clock) as engine:
        before, began = engine.view.snapshots, int(clock.now)
        for second in range(200):
            clock.now += 60
            for made_up in (engine.view.snapshots[CART].version + 1, int(clock.now), began + AHEAD, began + second):
                await engine.sidecar_connected(instance("cart-0"), "boot", made_up, "test")
        assert engine.view.snapshots[CART].version == began + AHEAD + 1
        assert engine.view.snapshots[CART].rules == before[CART].rules
        assert [engine.view.snapshots[ref] for ref in (FRONT, REDIS)] == [before[ref] for ref in (FRONT, REDIS)]
        assert await renumbered(engine) == ["shop/cart"]


async def test_an_older_or_equal_version_moves_nothing(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        before = engine.view.snapshots
        for held in (0, 1, before[CART].version):
            await engine.sidecar_connected(instance("cart-0"), "boot", held, "test")
            assert engine.view.sidecars["shop/cart-0"].held_version == held
        assert engine.view.snapshots == before
