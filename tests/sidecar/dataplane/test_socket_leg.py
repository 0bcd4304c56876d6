"""A plain socket as a leg of a lane, with a real connection and a lane that notes what it is told."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from sidecar.dataplane.legs import NOBODY
from sidecar.dataplane.socket_leg import SocketLeg
from tests.sidecar.dataplane.leg_rigs import SocketRig, reset

MEGABYTE = 1 << 20


@pytest.fixture
async def rigs():
    """Makes rigs, and looks at each of them at the end."""
    made: list[SocketRig] = []

    def make(**options) -> SocketRig:
        made.append(SocketRig(asyncio.get_running_loop(), **options))
        return made[-1]

    yield make
    for rig in made:
        rig.check()
        rig.stop()
        assert rig.held == 0, "what was held was not given back"


async def test_bytes_go_both_ways(rigs):
    rig = rigs()
    rig.far_write(b"question")
    await rig.until(lambda: rig.lane.data == b"question")
    rig.write(b"answer")
    await rig.until(lambda: rig.taken == b"answer", take=True)
    assert rig.lane.events == ["received"]
    assert rig.leg.reached
    assert not rig.leg.closed


async def test_what_is_taken_at_once_is_not_said_to_be_drained(rigs):
    rig = rigs()
    rig.write(b"x")
    assert rig.leg.unsent == 0
    await rig.until(lambda: rig.taken == b"x", take=True)
    assert rig.lane.events == []


async def test_what_is_not_taken_is_held_counted_and_drained_once(rigs):
    rig = rigs(buffers=8192)
    data = os.urandom(MEGABYTE)
    rig.write(data)
    rig.write(b"and more")
    assert 0 < rig.leg.unsent <= len(data) + 8
    assert rig.held == rig.leg.unsent
    await rig.until(lambda: rig.lane.events, take=True)
    await rig.until(lambda: len(rig.taken) == len(data) + 8, take=True)
    assert bytes(rig.taken) == data + b"and more"
    assert (rig.leg.unsent, rig.lane.events) == (0, ["drained"])


async def test_a_paused_leg_tells_nothing_until_it_is_resumed(rigs):
    rig = rigs()
    rig.do(rig.leg.pause)
    sent = rig.far_write(b"one")
    await rig.batch()
    sent += rig.far_write(b"two")
    await rig.batch()
    assert rig.lane.events == []
    rig.do(rig.leg.resume)
    assert rig.lane.events == [], "what happened is told in the next batch"
    await rig.until(lambda: len(rig.lane.data) == sent)
    assert rig.lane.data == b"onetwo"


async def test_pausing_within_a_read_stops_the_sender(rigs):
    rig = rigs(buffers=8192)
    rig.lane.then["received"] = lambda leg: leg.pause()
    data = os.urandom(MEGABYTE)
    sent = rig.far_write(data)
    await rig.until(lambda: rig.lane.data)
    seen = len(rig.lane.data)
    while taken := rig.far_write(data[sent:]):
        sent += taken
        await rig.batch()
    assert len(rig.lane.data) == seen
    assert sent < len(data)
    rig.lane.then.clear()
    rig.do(rig.leg.resume)
    while sent < len(data):
        sent += rig.far_write(data[sent:])
        await asyncio.sleep(0)
    await rig.until(lambda: len(rig.lane.data) == len(data))
    assert bytes(rig.lane.data) == data


async def test_the_lane_ends_first(rigs):
    rig = rigs()
    rig.write(b"last words")
    rig.do(rig.leg.end)
    await rig.until(lambda: rig.saw_end, take=True)
    assert rig.taken == b"last words"
    rig.far_write(b"still here")
    await rig.until(lambda: rig.lane.data == b"still here")
    assert not rig.leg.closed
    rig.far_end()
    await rig.until(lambda: rig.leg.closed)
    assert rig.lane.events == ["received", "ended"]


async def test_the_other_end_ends_first(rigs):
    rig = rigs()
    rig.far_write(b"last words")
    rig.far_end()
    await rig.until(lambda: rig.lane.events[-1:] == ["ended"])
    assert not rig.leg.closed
    rig.write(b"still here")
    rig.do(rig.leg.end)
    assert rig.leg.closed
    await rig.until(lambda: rig.saw_end, take=True)
    assert rig.taken == b"still here"
    assert rig.lane.events == ["received", "ended"]


async def test_the_lane_ends_while_it_is_told_of_the_end(rigs):
    rig = rigs()
    rig.lane.then["ended"] = lambda leg: leg.end()
    rig.far_end()
    await rig.until(lambda: rig.saw_end, take=True)
    assert rig.leg.closed
    assert rig.lane.events == ["ended"]


async def test_an_end_comes_behind_what_is_held_and_so_does_the_close(rigs):
    rig = rigs(buffers=8192)
    data = os.urandom(MEGABYTE)
    rig.write(data)
    rig.do(rig.leg.end)
    rig.write(b"after the end")
    rig.far_end()
    await rig.until(lambda: "ended" in rig.lane.events)
    assert not rig.leg.closed
    await rig.until(lambda: rig.saw_end, take=True)
    assert bytes(rig.taken) == data
    assert rig.leg.closed
    assert rig.lane.events == ["ended", "drained"]


async def test_a_reset_of_the_lane_is_one_and_nothing_is_told_any_more(rigs):
    rig = rigs(buffers=8192)
    rig.write(os.urandom(MEGABYTE))
    rig.far_write(b"too late")
    rig.do(rig.leg.reset)
    assert rig.leg.closed
    assert (rig.leg.unsent, rig.held) == (0, 0)
    await rig.until(lambda: rig.saw_reset, take=True)
    rig.do(rig.leg.reset)
    rig.write(b"into nothing")
    rig.do(rig.leg.end)
    rig.do(rig.leg.resume)
    await rig.batch()
    assert rig.lane.events == []
    assert rig.leg.lane is NOBODY


@pytest.mark.parametrize("paused", [False, True])
async def test_what_was_said_before_a_reset_is_told_before_it(rigs, paused):
    rig = rigs()
    if paused:
        rig.do(rig.leg.pause)
    rig.far_write(b"last words")
    rig.far_reset()
    if paused:
        await rig.batch()
        rig.do(rig.leg.resume)
    await rig.until(lambda: rig.lane.events[-1:] == ["lost"])
    assert rig.lane.events == ["received", "lost"]
    assert rig.lane.data == b"last words"
    assert rig.leg.lane is NOBODY


async def test_a_reset_is_known_before_what_was_said_before_it_is_told(rigs):
    rig = rigs()
    rig.do(rig.leg.pause)
    assert not rig.leg.gone
    rig.far_write(b"last words")
    rig.far_reset()
    await rig.until(lambda: rig.leg.gone)
    assert rig.lane.events == []
    rig.do(rig.leg.resume)
    await rig.until(lambda: rig.lane.events[-1:] == ["lost"])
    assert rig.lane.data == b"last words"


@pytest.mark.parametrize("paused", [False, True])
async def test_what_was_said_before_a_reset_is_told_also_when_a_write_finds_it(rigs, paused):
    """A server that refuses an upload answers first; nobody reads between its answer and our next write."""
    rig = rigs()
    rig.do(rig.leg.pause)
    rig.far_write(b"refused")
    rig.far_reset()
    rig.write(b"the rest of it")
    rig.write(b"and more")
    rig.do(rig.leg.end)
    assert (rig.leg.unsent, rig.held) == (0, 0)
    assert rig.leg.gone
    if not paused:
        rig.do(rig.leg.resume)
    else:
        await rig.batch()
        assert rig.lane.events == []
        rig.do(rig.leg.resume)
    await rig.until(lambda: rig.lane.events[-1:] == ["lost"])
    assert rig.lane.events == ["received", "lost"], "no end is told where a reset was"
    assert rig.lane.data == b"refused"


async def test_an_end_that_can_not_be_sent_is_a_loss(rigs):
    rig = rigs()
    rig.do(rig.leg.pause)
    rig.far_reset()
    await rig.batch()
    rig.do(rig.leg.end)
    assert rig.lane.events == []
    rig.do(rig.leg.resume)
    await rig.until(lambda: rig.lane.events == ["lost"])


async def test_a_reset_after_its_end_is_told(rigs):
    rig = rigs()
    rig.far_end()
    await rig.until(lambda: rig.lane.events == ["ended"])
    rig.far_reset()
    await rig.until(lambda: rig.lane.events == ["ended", "lost"])


async def test_beyond_the_budget_it_is_reset_and_no_end_is_sent(rigs):
    """What is held is taken before the leg is ended; an end behind it would be taken for the end of all."""
    rig = rigs(budget=300_000, buffers=8192)
    data = os.urandom(200_000)
    rig.write(data)
    assert not rig.lane.events
    rig.write(data)
    rig.do(rig.leg.end)
    assert rig.lane.events == [], "not within the call"
    rig.far_take()
    rig.leg.on_event(4)  # the kernel takes the rest before the leg is ended
    await rig.until(lambda: rig.lane.events == ["lost"])
    await rig.until(lambda: rig.saw_reset, take=True)
    assert not rig.saw_end
    assert rig.budget.counters.buffers_exhausted == 1


async def test_it_is_ended_from_outside_once(rigs):
    rig = rigs()
    rig.leg.abort("a limit")
    rig.leg.abort("another")
    assert rig.lane.events == ["lost"]
    await rig.until(lambda: rig.saw_reset, take=True)


async def test_the_lane_may_be_exchanged_in_the_middle(rigs):
    rig, other = rigs(), rigs()
    rig.far_write(b"first")
    await rig.until(lambda: rig.lane.data == b"first")
    rig.leg.lane = other.lane
    rig.far_write(b"second")
    await rig.until(lambda: other.lane.data == b"second")
    assert rig.lane.data == b"first"


# Connecting -----------------------------------------------------------------------------------------------------------


def calling(address) -> tuple[socket.socket, socket.socket]:
    """A socket whose connect is under way, and another that stands for the far end."""
    near = socket.socket()
    near.setblocking(False)
    near.connect_ex(address)
    return near, socket.socket()


async def test_what_is_written_while_it_connects_is_held_and_flushed(rigs):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        rig = rigs(pair=calling(listener.getsockname()), connecting=20.0)
        assert not rig.leg.reached
        rig.write(b"in ")
        rig.write(b"order")
        rig.do(rig.leg.end)
        assert (rig.leg.unsent, rig.held) == (8, 8)
        await rig.until(lambda: rig.reached)
        rig.far.close()
        rig.far, _ = listener.accept()
        rig.far.setblocking(False)
        await rig.until(lambda: rig.saw_end, take=True)
        assert rig.taken == b"in order"
        assert rig.lane.events == ["drained"]
        assert rig.leg.reached


async def test_nobody_listens(rigs):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    rig = rigs(pair=calling(address), connecting=20.0)
    rig.write(b"is anybody there?")
    await rig.until(lambda: rig.lane.events == ["lost"])
    assert not rig.leg.reached
    assert not rig.reached


async def test_nobody_answers_in_time(rigs):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [calling(listener.getsockname()) for _ in range(3)]  # the queue is full: ours is not answered
        rig = rigs(pair=calling(listener.getsockname()), connecting=0.05)
        await rig.until(lambda: rig.lane.events == ["lost"])
        assert not rig.leg.reached
        for pair in fillers:
            for sock in pair:
                sock.close()


async def test_who_answers_and_resets_at_once_was_reached_and_heard(rigs):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near, far = calling(listener.getsockname())
        server, _ = listener.accept()
        server.sendall(b"220 ready\r\n")
        reset(server)
        rig = rigs(pair=(near, far), connecting=20.0)
        rig.write(b"is anybody there?")
        await rig.until(lambda: rig.lane.events[-1:] == ["lost"])
        assert rig.lane.data == b"220 ready\r\n"
        assert rig.reached == [True]
        assert rig.leg.reached


async def test_a_socket_may_be_registered_already(rigs):
    rig = rigs()
    other = rigs()
    rig.reactor.forget(rig.near)
    rig.reactor.register(rig.near, 1, other.leg)
    leg = SocketLeg(rig.reactor, rig.near, rig.budget, rig.lane, registered=True)
    rig.leg = leg
    rig.far_write(b"hello")
    await rig.until(lambda: rig.lane.data == b"hello")


async def test_a_paused_leg_whose_other_end_resets_says_that_what_is_held_will_not_be_taken(rigs):
    """Else a lane that waits for that before it reads on waits for ever, and the reset is never told."""
    rig = rigs(buffers=8192)
    rig.write(os.urandom(MEGABYTE))
    rig.do(rig.leg.pause)
    rig.far_reset()
    await rig.until(lambda: rig.lane.events == ["drained"])
    assert rig.leg.unsent == 0
    rig.do(rig.leg.resume)
    await rig.until(lambda: rig.lane.events == ["drained", "lost"])
