"""A service's answer is made once for all who ask, and is the same object until it says something else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from controller.inventory import Inventory
from controller.rpc import answers
from controller.rpc.answers import Answers, Target
from controller.rpc.directory import DirectoryService
from graph.directory import Destination
from graph.errors import InvalidValue
from graph.model import Protocol
from graph.wire import hedgerow_pb2 as pb
from graph.wire.codec import destination_from_message
from tests.controller.mesh import INVENTORY, edited, inventory
from tests.controller.running import eventually

CART: Target = ("10.1.0.1", 80, Protocol.TCP)


class World:
    """An inventory that changes, and how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inventory = inventory()
        self.resolved: list[str] = []
        self.written: list[Destination] = []
        resolve, write = Inventory.resolve, answers.destination_to_message

        def counted(inventory: Inventory, *target: Any) -> Destination:
            self.resolved.append(target[0])
            return resolve(inventory, *target)

        def told(answer: Destination) -> pb.Destination:
            self.written.append(answer)
            return write(answer)

        monkeypatch.setattr(Inventory, "resolve", counted)
        monkeypatch.setattr(answers, "destination_to_message", told)
        self.answers = Answers(lambda: self.inventory)

    def change(self, *edits: tuple[str, str]) -> None:
        self.inventory = replace(edited(*edits), revision=self.inventory.revision + 1)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_a_service_is_looked_up_and_written_once_for_all(world: World) -> None:
    first = world.answers.of(CART)
    message = world.answers.message(CART, first)
    for _ in range(100):
        assert world.answers.of(CART) is first
        assert world.answers.message(CART, first) is message
    assert len(world.resolved) == len(world.written) == 1
    assert destination_from_message(message) == first == inventory().resolve(*CART)


def test_what_says_the_same_after_a_change_is_the_same(world: World) -> None:
    first = world.answers.of(CART)
    message = world.answers.message(CART, first)
    world.change(("front-0", "front-9"))
    for _ in range(10):
        assert world.answers.of(CART) is first
    assert world.answers.message(CART, first) is message
    assert len(world.resolved) == 2
    assert len(world.written) == 1


def test_what_says_something_else_is_another(world: World) -> None:
    first = world.answers.of(CART)
    message = world.answers.message(CART, first)
    world.change(("10.0.0.3", "10.0.0.33"))
    second = world.answers.of(CART)
    assert second != first
    assert second == world.inventory.resolve(*CART)
    assert second.version == 1
    assert destination_from_message(world.answers.message(CART, second)) == second
    assert destination_from_message(message) == first, "who is still being told of it has his own"
    world.change()
    third = world.answers.of(CART)
    assert (third.endpoints, third.version) == (first.endpoints, 2), "what was so once before is no answer of before"


def test_an_answer_that_is_not_the_one_in_force_is_written_for_itself(world: World) -> None:
    first = world.answers.of(CART)
    world.change(("10.0.0.3", "10.0.0.33"))
    second = world.answers.of(CART)
    assert destination_from_message(world.answers.message(CART, first)) == first
    assert destination_from_message(world.answers.message(CART, second)) == second


@pytest.mark.parametrize(
    "target",
    [
        ("192.0.2.{}", 80),  # outside
        ("10.0.0.2", 10_000),  # any port of an instance
        ("10.1.0.1", 20_000),  # ports that the service does not have
    ],
)
def test_what_could_be_asked_without_end_is_not_kept(world: World, target: tuple[str, int]) -> None:
    for number in range(200):
        asked = (target[0].format(number), target[1] + number, Protocol.TCP)
        world.answers.message(asked, world.answers.of(asked))
    assert not world.answers._kept
    assert not world.answers._messages


def test_an_address_has_one_spelling(world: World) -> None:
    world.inventory = inventory(
        INVENTORY.replace("address: 10.1.0.1", "address: 'fd00::1'").replace("10.0.0.", "fd00::1")
    )
    several = world.answers.of(("fd00::1", 80, Protocol.TCP))
    assert len(several.endpoints) == 2
    for spelt in ("FD00::1", "fd00:0::1", "fd00:0:0:0:0:0:0:1"):
        assert world.answers.of((spelt, 80, Protocol.TCP)).endpoints == several.endpoints
    assert list(world.answers._kept) == [("fd00::1", 80, Protocol.TCP)]


def test_what_nobody_asks_for_any_more_is_forgotten(world: World) -> None:
    world.answers.message(CART, world.answers.of(CART))
    for _ in range(2):
        world.change()
        world.answers.of(("10.0.0.2", 80, Protocol.TCP))
    assert not world.answers._kept
    assert not world.answers._before
    assert not world.answers._messages


def test_bad_addresses_are_refused_as_ever(world: World) -> None:
    for target in (("cart", 80, Protocol.TCP), ("10.1.0.1", 0, Protocol.TCP)):
        with pytest.raises(InvalidValue):
            world.answers.of(target)


class Recorder:
    """Takes what one stream writes."""

    def __init__(self) -> None:
        self.told: list[pb.Destination] = []

    async def write(self, message: pb.Destination) -> None:
        self.told.append(message)


async def test_streams_hold_one_answer_between_them_and_are_told_what_changed(world: World) -> None:
    service = DirectoryService(type("Engine", (), {"view": world})(), None)  # type: ignore[arg-type]  # what they ask

    async def asked():
        yield pb.WatchRequest(target=pb.ResolveRequest(address=CART[0], port=CART[1], protocol="TCP"))

    watches = [(service.watch(), Recorder()) for _ in range(20)]
    for watch, _ in watches:
        await watch.read(asked())
    writing = [asyncio.create_task(watch.write(recorder)) for watch, recorder in watches]

    async def told(times: int) -> None:
        for watch, _ in watches:
            for target in watch._told:
                watch._mark(target)
        await eventually(lambda: not any(watch._due for watch, _ in watches))
        await eventually(lambda: all(len(recorder.told) == times for _, recorder in watches))

    try:
        await told(1)
        world.change(("front-0", "front-9"))
        await told(1)
        world.change(("10.0.0.3", "10.0.0.33"))
        await told(2)
    finally:
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)
    assert len(world.resolved) == 3
    assert len(world.written) == 2
    assert len({id(watch._told[CART]) for watch, _ in watches}) == 1
