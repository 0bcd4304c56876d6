"""Legs whose reads take long: whoever is quick, or comes meanwhile, waits for one such read and not for all of them."""

from __future__ import annotations

import select
import socket
from time import monotonic
from types import SimpleNamespace

import pytest

from sidecar.dataplane.leg_relay import LegRelay
from sidecar.dataplane.portion import LEAST, SHORT
from sidecar.dataplane.reactor import EDGE, IN
from sidecar.dataplane.socket_leg import SocketLeg
from tests.sidecar.dataplane.applications import until


class Plenty:
    """A budget that is never used up."""

    def hold(self, owner, size):
        return True

    def release(self, owner, size): ...

    def drop(self, owner): ...


class Working:
    """A lane that works for so long on each read."""

    def __init__(self, name, seconds, seen, first=None):
        self._name, self.seconds, self._seen, self.first = name, seconds, seen, first

    def received(self, leg, data):
        self._seen.append((self._name, len(data)))
        if self.first is not None:
            first, self.first = self.first, None
            first()
        end = monotonic() + self.seconds
        while monotonic() < end:
            pass

    def drained(self, leg): ...

    def ended(self, leg): ...

    def lost(self, leg, why): ...


class Quick:
    """A source of the reactor that takes no time."""

    def __init__(self, reactor, seen):
        self.mine, self.other = socket.socketpair()
        self.mine.setblocking(False)
        self._seen = seen
        reactor.register(self.mine, IN | EDGE, self)

    def on_event(self, events):
        self._seen.append(("quick", len(self.mine.recv(100))))

    def abort(self, why):
        raise AssertionError(why)


@pytest.fixture
def legs(reactor):
    """Makes legs, each with the socket of its other end."""
    made = []

    def make(lane):
        mine, other = socket.socketpair()
        mine.setblocking(False)
        leg = SocketLeg(reactor, mine, Plenty(), lane)
        made.append((leg, other))
        return leg, other

    yield make
    for leg, other in made:
        leg.reset()
        other.close()


async def test_nobody_waits_for_more_than_one_of_many_who_are_new(reactor, legs):
    """Nobody knows yet what their reads cost."""
    seen = []
    quick = Quick(reactor, seen)
    lanes = [Working(number, 4 * SHORT, seen) for number in range(20)]
    lanes[0].first = lambda: quick.other.send(b"x")
    for lane in lanes:
        legs(lane)[1].send(b"question")
    await until(lambda: len(seen) == 21)
    assert [name for name, _ in seen] == [0, "quick", *range(1, 20)]
    reactor.close(quick.mine)
    quick.other.close()


async def test_nor_of_many_whose_reads_took_long(reactor, legs):
    seen = []
    quick = Quick(reactor, seen)
    lanes = [Working(number, 4 * SHORT, seen) for number in range(4)]
    for lane in lanes:
        legs(lane)[1].send(bytes(4 * LEAST))
    lanes[1].first = lambda: quick.other.send(b"x")
    await until(lambda: sum(size for _, size in seen) == 16 * LEAST + 1)
    names = [name for name, _ in seen]
    assert names[:3] == [0, 1, "quick"], "between the first reads"
    rest = [name for name in names if name != "quick"]
    assert rest == [0, 1, 2, 3] * 4, "and they go round"
    assert {size for name, size in seen if name != "quick"} == {LEAST}, "their reads do not grow"
    reactor.close(quick.mine)
    quick.other.close()


async def test_who_was_slow_and_is_quick_again_is_served_with_the_others(reactor, legs):
    seen = []
    lane = Working("leg", 4 * SHORT, seen)
    leg, other = legs(lane)
    other.send(b"one")
    await until(lambda: len(seen) == 1)
    assert leg._slow
    lane.seconds = 0.0
    for number in range(2, 100):  # a machine that has something else to do makes it slow once more
        other.send(b"more")
        await until(lambda number=number: len(seen) == number)
        if not leg._slow:
            return
    raise AssertionError("it stays behind the others")


async def test_what_is_relayed_is_served_with_the_others_whatever_was_before(reactor, legs):
    """As behind a response 101: the lane before had work with what it read."""
    seen = []
    (client, sends), (server, takes) = legs(Working("client", 4 * SHORT, seen)), legs(Working("server", 0, seen))
    sends.send(b"GET /chat")
    await until(lambda: seen)
    assert client._slow
    LegRelay(Ended(), client, server)
    for _ in range(100):  # a machine that has something else to do makes it slow once more
        sends.send(b"message")
        await until(lambda: takes.recv(100, socket.MSG_DONTWAIT) if readable(takes) else b"")
        if not client._slow:
            return
    raise AssertionError("it stays behind the others")


class Ended:
    """Stands for the connection, of which nothing is asked but what it has carried."""

    def __init__(self):
        self.record = SimpleNamespace(bytes_sent=0, bytes_received=0)

    def owned_by(self, end): ...

    def finish(self, *, failed): ...

    def half_closed(self, loop): ...


def readable(sock):
    return bool(select.select([sock], [], [], 0)[0])
