"""Turns: all busy connections together begin at once what one of them would, and the rest are chores."""

from __future__ import annotations

from sidecar.dataplane.chores import Chores
from sidecar.inspect.turns import Turns

SLICE = 0.001


class Reactor:
    """Looks at who has become ready when it is told to."""

    def __init__(self):
        self.batches = 0
        self.chores = Chores(lambda: None)

    def look(self, steps=1):
        self.batches += 1
        for _ in range(steps):
            self.chores.work(0.0)


def test_who_comes_first_is_served_at_once_until_a_slice_is_used():
    reactor, turns = Reactor(), Turns(SLICE)
    assert turns.free(reactor)
    turns.used(reactor, SLICE / 2)
    assert turns.free(reactor)
    turns.used(reactor, SLICE)
    assert not turns.free(reactor)
    reactor.look()
    assert turns.free(reactor), "others have had their turn"
    turns.used(reactor, SLICE / 2)
    assert turns.free(reactor), "what was used before is not counted again"


def test_who_waits_goes_before_who_comes():
    reactor, turns, called = Reactor(), Turns(SLICE), []
    turns.wait(reactor, lambda: called.append(1))
    assert not turns.free(reactor)
    assert not called, "not within the call"
    turns.wait(reactor, lambda: called.append(2))
    reactor.look()
    assert called == [1]
    assert not turns.free(reactor), "there is one before him"
    reactor.look()
    assert called == [1, 2]
    assert turns.free(reactor)


def test_those_who_wait_go_round_and_so_do_other_chores():
    reactor, turns, called = Reactor(), Turns(SLICE), []

    def busy(name, times):
        called.append(name)
        turns.used(reactor, 2 * SLICE)
        if times > 1:
            turns.wait(reactor, lambda: busy(name, times - 1))

    for name in "ab":
        turns.wait(reactor, lambda name=name: busy(name, 2))
    reactor.chores.soon(called.append, "chore")
    reactor.look(steps=10)
    assert called == ["a", "b", "chore", "a", "b"]
    reactor.look()
    assert turns.free(reactor)
