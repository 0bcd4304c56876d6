"""A stream of a tunnel as a leg of a lane; its frames are read and written here, and a lane notes what it is told."""

from __future__ import annotations

import asyncio
import os

import pytest

from sidecar.dataplane.frames import WINDOW, WINDOW_LIMIT, FrameError
from sidecar.dataplane.legs import NOBODY
from sidecar.dataplane.stream import MAX_WINDOW
from tests.sidecar.dataplane.leg_rigs import ACK, DATA, FIN, RST, UPDATE, TunnelRig, reset

MEGABYTE = 1 << 20


@pytest.fixture
async def rigs():
    """Makes rigs, and looks at each of them at the end."""
    made: list[TunnelRig] = []

    def make(**options) -> TunnelRig:
        made.append(TunnelRig(asyncio.get_running_loop(), **options))
        return made[-1]

    yield make
    for rig in made:
        rig.check()
        assert rig.detached == rig.leg.closed
        rig.stop()
        assert rig.held == 0, "what was held was not given back"


async def flow(rig: TunnelRig, data: bytes) -> None:
    """The far end writes ``data`` as the windows let it."""
    sent = 0
    while sent < len(data):
        sent += rig.far_write(data[sent:])
        if sent < len(data):
            await rig.until(lambda: rig.credit, take=True)


async def test_bytes_go_both_ways(rigs):
    rig = rigs()
    rig.far_write(b"question")
    assert rig.lane.data == b"question"
    rig.write(b"answer")
    await rig.until(lambda: rig.taken == b"answer", take=True)
    assert rig.told == [(UPDATE, ACK, 0), (DATA, 0, 6)], "the first byte says that the application was reached"
    assert rig.lane.events == ["received"]


async def test_acceptance_is_said_once(rigs):
    rig = rigs()
    rig.do(rig.leg.accept)
    rig.do(rig.leg.accept)
    rig.write(b"x")
    await rig.until(lambda: rig.taken, take=True)
    assert rig.told == [(UPDATE, ACK, 0), (DATA, 0, 1)]


async def test_no_more_is_sent_than_the_peer_granted(rigs):
    rig = rigs()
    rig.grants = False
    data = os.urandom(WINDOW + 100_000)
    rig.write(data)
    rig.write(b"more")
    await rig.until(lambda: len(rig.taken) == WINDOW, take=True)
    await rig.batch()
    assert rig.far_take() == 0
    assert rig.leg.unsent == rig.held == 100_004
    rig.leg.granted(100_000)
    assert rig.leg.unsent == 4
    assert rig.lane.events == []
    rig.leg.granted(10)
    assert rig.lane.events == ["drained"]
    await rig.until(lambda: len(rig.taken) == WINDOW + 100_004, take=True)
    assert bytes(rig.taken) == data + b"more"


async def test_a_tunnel_that_does_not_take_holds_the_lane_and_goes_on(rigs):
    rig = rigs(buffers=8192)
    data = os.urandom(WINDOW)
    rig.write(data)
    await rig.batch()
    rig.write(b"and the end")
    rig.do(rig.leg.end)
    assert rig.leg.unsent == rig.held > 0
    await rig.until(lambda: rig.saw_end, take=True)
    assert bytes(rig.taken) == data + b"and the end"
    assert rig.lane.events == ["drained"]
    assert rig.told[-1] == (UPDATE, FIN, 0)


async def test_the_lane_ends_first(rigs):
    rig = rigs()
    rig.write(b"last words")
    rig.do(rig.leg.end)
    rig.do(rig.leg.end)
    rig.write(b"after the end")
    rig.far_write(b"still here")
    await rig.until(lambda: rig.saw_end, take=True)
    assert (rig.taken, rig.lane.data) == (b"last words", b"still here")
    assert not rig.leg.closed
    rig.far_end()
    assert rig.leg.closed
    assert rig.lane.events == ["received", "ended"]
    assert rig.leg.lane is NOBODY


async def test_the_other_end_ends_first(rigs):
    rig = rigs()
    rig.far_write(b"last words")
    rig.far_end()
    assert rig.lane.events == ["received", "ended"]
    rig.write(b"still here")
    rig.do(rig.leg.end)
    assert rig.leg.closed
    await rig.until(lambda: rig.saw_end, take=True)
    assert rig.taken == b"still here"


async def test_the_lane_ends_while_it_is_told_of_the_end(rigs):
    rig = rigs()
    rig.lane.then["ended"] = lambda leg: leg.end()
    rig.far_end()
    assert rig.leg.closed
    await rig.until(lambda: rig.saw_end, take=True)
    assert rig.told == [(UPDATE, ACK, 0), (UPDATE, FIN, 0)]


async def test_a_paused_leg_grants_nothing_and_tells_later(rigs):
    rig = rigs()
    rig.do(rig.leg.pause)
    data = os.urandom(WINDOW)
    await flow(rig, data)
    assert rig.credit == 0
    rig.far_end()
    assert (rig.lane.events, rig.held) == ([], WINDOW)
    rig.do(rig.leg.resume)
    assert rig.lane.events == [], "what happened is told in the next batch"
    await rig.until(lambda: rig.lane.events == ["received", "ended"])
    assert bytes(rig.lane.data) == data
    rig.far_take()
    assert rig.credit == 0, "who has ended is granted nothing"


async def test_pausing_within_a_piece_keeps_the_next_ones(rigs):
    rig = rigs()
    rig.lane.then["received"] = lambda leg: leg.pause()
    rig.far_write(b"one")
    rig.far_write(b"two")
    rig.far_write(b"three")
    assert rig.lane.data == b"one"
    rig.do(rig.leg.resume)
    await rig.until(lambda: rig.lane.data == b"onetwo")
    rig.far_write(b"four")
    await rig.batch()
    assert rig.lane.data == b"onetwo", "not before what came before it"
    rig.lane.then.clear()
    rig.do(rig.leg.resume)
    rig.far_write(b"five")
    assert rig.lane.data == b"onetwo", "nor when it is about to be told"
    await rig.until(lambda: rig.lane.data == b"onetwothreefourfive")


async def test_windows_widen_for_a_lane_that_takes_all(rigs):
    rig = rigs()
    total = 0
    while total < 4 * MAX_WINDOW:
        await flow(rig, bytes(WINDOW // 2))
        total += WINDOW // 2
        await rig.batch()
        rig.far_take()
    assert len(rig.lane.data) == total
    assert MAX_WINDOW // 2 < rig.credit <= MAX_WINDOW
    grants = [number for kind, flags, number in rig.told if kind == UPDATE and not flags]
    assert WINDOW + sum(grants) - total == rig.credit


async def test_a_reset_of_the_lane_is_one_and_nothing_is_told_any_more(rigs):
    rig = rigs()
    rig.grants = False
    rig.write(bytes(WINDOW + 1))
    rig.do(rig.leg.pause)
    rig.far_write(b"unread")
    rig.do(rig.leg.reset)
    assert (rig.leg.unsent, rig.held) == (0, 0)
    await rig.until(lambda: rig.saw_reset, take=True)
    rig.do(rig.leg.reset)
    rig.do(rig.leg.resume)
    rig.do(rig.leg.end)
    rig.write(b"into nothing")
    rig.leg.pump()
    await rig.batch()
    assert rig.lane.events == []
    assert [flags for kind, flags, _ in rig.told if kind == UPDATE].count(RST) == 1


async def test_a_reset_of_the_peer_is_told_once(rigs):
    rig = rigs()
    rig.far_write(b"last words")
    rig.leg.reset_by_peer()
    rig.leg.reset_by_peer()
    rig.leg.abort("and the tunnel is gone")
    assert rig.lane.events == ["received", "lost"]
    rig.far_take()
    assert not rig.saw_reset, "who has reset a stream is not told so"


async def test_unread_bytes_beyond_the_budget_end_it(rigs):
    rig = rigs(budget=100_000)
    rig.do(rig.leg.pause)
    rig.far_write(bytes(60_000))
    assert rig.held == 60_000
    rig.far_write(bytes(60_000))
    assert rig.lane.events == ["lost"]
    assert rig.budget.counters.buffers_exhausted == 1
    await rig.until(lambda: rig.saw_reset, take=True)


async def test_unsent_bytes_beyond_the_budget_end_it_and_no_end_is_sent(rigs):
    """The peer grants more before the leg is ended; an end behind what is held would be taken for the end of all."""
    rig = rigs(budget=100_000)
    rig.grants = False
    rig.write(bytes(WINDOW))
    rig.write(bytes(60_000))
    rig.write(bytes(60_000))
    rig.do(rig.leg.end)
    assert rig.lane.events == [], "not within the call"
    rig.leg.granted(MEGABYTE)
    await rig.until(lambda: rig.lane.events == ["lost"])
    await rig.until(lambda: rig.saw_reset, take=True)
    assert not rig.saw_end
    assert rig.budget.counters.buffers_exhausted == 1


@pytest.mark.parametrize("held", [False, True])
async def test_a_tunnel_that_breaks_within_a_write_is_told_of_later_and_holds_nothing(rigs, held):
    rig = rigs()
    rig.grants = False
    if held:
        rig.write(bytes(WINDOW + MEGABYTE))
        await rig.until(lambda: len(rig.taken) == WINDOW, take=True)
    reset(rig.far)
    if held:
        rig.leg.granted(MEGABYTE)  # the peer's last word, read after its reset
    else:
        rig.write(bytes(WINDOW))
    assert rig.failures
    assert (rig.leg.closed, rig.leg.unsent, rig.held) == (True, 0, 0)
    await rig.until(lambda: rig.lane.events == ["lost"])


async def test_a_tunnel_that_is_gone_is_a_loss(rigs):
    rig = rigs()
    rig.abort("the tunnel is gone")
    assert rig.lane.events == ["lost"]


@pytest.mark.parametrize(
    "breach",
    [
        lambda leg: (leg.finish(), leg.expect(1)),
        lambda leg: (leg.finish(), leg.finish()),
        lambda leg: leg.expect(WINDOW + 1),
        lambda leg: (leg.expect(WINDOW), leg.expect(1)),
        lambda leg: leg.accepted(),
        lambda leg: leg.granted(WINDOW_LIMIT),
    ],
    ids=["data after the end", "two ends", "too much", "too much in two", "an answer to nothing", "a window too wide"],
)
async def test_a_breach_of_the_protocol_is_said_to_the_tunnel(rigs, breach):
    rig = rigs()
    with pytest.raises(FrameError):
        breach(rig.leg)
