"""Join tokens: each works once, for one instance, for its time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controller.errors import InvalidRequest, JoinTokenError
from graph.model import WorkloadRef
from tests.controller.mesh import CART, LEGACY, Clock, instance, running, without


async def test_a_join_token_works_once_also_over_a_restart(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        text = await engine.create_join_token(CART, "cart-0", 600.0, "ann")
        assert text.encode() not in (tmp_path / "controller.db-wal").read_bytes()
        assert text.rpartition(".")[2].encode() not in (tmp_path / "controller.db-wal").read_bytes()
    async with running(tmp_path, clock) as engine:
        assert await engine.redeem_join_token(text) == instance("cart-0")
        with pytest.raises(JoinTokenError) as caught:
            await engine.redeem_join_token(text)
        assert caught.value.code == "join-token-used"
    async with running(tmp_path, clock) as engine:
        with pytest.raises(JoinTokenError, match="used before"):
            await engine.redeem_join_token(text)
        assert [e.action for e in (await engine.audit()).entries][:2] == ["join-token.redeem", "join-token.create"]


async def test_of_many_who_redeem_a_token_at_once_one_succeeds(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        text = await engine.create_join_token(CART, "shop/cart-0", 600.0, "ann")
        found = await asyncio.gather(*(engine.redeem_join_token(text) for _ in range(50)), return_exceptions=True)
        assert [each for each in found if not isinstance(each, JoinTokenError)] == [instance("cart-0")]


async def test_an_expired_and_an_orphaned_token_say_so(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        expired = await engine.create_join_token(CART, "cart-0", 10.0, "ann")
        orphan = await engine.create_join_token(CART, "cart-1", 600.0, "ann")
        clock.now += 10
        await engine.set_inventory(without("cart-1"), "test")
        for text, code in (
            (expired, "join-token-expired"),
            (orphan, "join-token-orphaned"),
            ("x", "join-token-unknown"),
        ):
            with pytest.raises(JoinTokenError) as caught:
                await engine.redeem_join_token(text)
            assert caught.value.code == code
        clock.now += 3600 * 24 * 30
        await engine.tick()
        with pytest.raises(JoinTokenError, match="not one of"):  # long gone: forgotten
            await engine.redeem_join_token(expired)


@pytest.mark.parametrize(
    ("workload", "name", "field", "remedy"),
    [
        (WorkloadRef("shop", "crt"), "cart-0", "workload", "shop/cart"),
        (CART, "cart-7", "instance", "cart-"),
        (CART, "front-0", "instance", "cart-"),
        (LEGACY, "legacy-0", "workload", "meshed"),
    ],
)
async def test_a_token_for_nobody_is_refused(
    tmp_path: Path, clock: Clock, workload: WorkloadRef, name: str, field: str, remedy: str
) -> None:
    async with running(tmp_path, clock) as engine:
        with pytest.raises(InvalidRequest) as caught:
            await engine.create_join_token(workload, name, 60.0, "ann")
        assert caught.value.field == field
        assert remedy in caught.value.remedy
