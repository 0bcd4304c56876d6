"""Legs under any order of events, against a model of two pipes of bytes.

Whatever a lane and the far end do, in whatever order: what arrives is a beginning of what was written, all of it once
both take what comes, an end arrives behind it and once, a reset is told once and is the last word, ``unsent`` is what
the far end has not taken at most, and nothing is held for who is gone. Nothing is told within a call of the lane.
"""

from __future__ import annotations

import asyncio
import time

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.sidecar.dataplane.leg_rigs import PATIENCE, Rig, SocketRig, TunnelRig
from tests.sidecar.dataplane.test_tunnel_model import pattern

SIZES = st.sampled_from([1, 100, 5_000, 65_536, 300_000])
#: Bytes one way in one run, at most.
MOST = 1_500_000


class LegModel(RuleBasedStateMachine):
    """What a lane and a far end may do. Subclasses say of which rig."""

    def rig_of(self, loop: asyncio.AbstractEventLoop) -> Rig:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.rig = self.rig_of(self.loop)
        self.seed = 0
        self.written = bytearray()  # by the lane, while that meant something
        self.far_written = bytearray()  # by the far end
        self.far_wants = bytearray()  # to be written by the far end
        self.ended = self.far_ended = self.far_wants_end = False
        self.was_reset = self.far_was_reset = False
        self.paused = False

    @property
    def live(self) -> bool:
        return not (self.was_reset or self.far_was_reset)

    def turn(self) -> None:
        """The loop once; the far end writes what it can."""
        self.far_step()
        self.loop.run_until_complete(asyncio.sleep(0))

    def far_step(self) -> None:
        if self.far_was_reset or self.rig.leg.closed:
            return
        while self.far_wants:
            sent = self.rig.far_write(bytes(self.far_wants[:65_536]))
            if not sent:
                return
            self.far_written += self.far_wants[:sent]
            del self.far_wants[:sent]
        if self.far_wants_end and not self.far_ended:
            self.far_ended = True
            self.rig.far_end()

    def next_bytes(self, size: int) -> bytes:
        self.seed += 1
        return pattern(self.seed, size)

    # the lane

    @precondition(lambda self: len(self.written) < MOST)
    @rule(size=SIZES)
    def write(self, size: int) -> None:
        data = self.next_bytes(size)
        if not (self.ended or self.rig.leg.closed):
            self.written += data
        self.rig.write(data)

    @rule()
    def pause(self) -> None:
        self.paused = True
        self.rig.do(self.rig.leg.pause)

    @rule()
    def resume(self) -> None:
        self.paused = False
        self.rig.do(self.rig.leg.resume)

    @precondition(lambda self: self.seed > 2)
    @rule()
    def end(self) -> None:
        self.ended = True
        self.rig.do(self.rig.leg.end)

    @precondition(lambda self: self.seed > 6)
    @rule()
    def reset(self) -> None:
        self.was_reset = True
        self.rig.do(self.rig.leg.reset)

    # the far end

    @precondition(lambda self: self.live and not self.far_wants_end and len(self.far_written) < MOST)
    @rule(size=SIZES)
    def far_write(self, size: int) -> None:
        self.far_wants += self.next_bytes(size)
        self.turn()

    @precondition(lambda self: self.seed > 2)
    @rule()
    def far_end(self) -> None:
        self.far_wants_end = True
        self.turn()

    @precondition(lambda self: self.live and self.seed > 6)
    @rule()
    def far_reset(self) -> None:
        self.far_was_reset = True
        if not self.rig.leg.closed:
            self.rig.far_reset()
        self.turn()

    @rule(most=SIZES)
    def far_take(self, most: int) -> None:
        self.rig.far_take(most)
        self.turn()

    # both

    @rule()
    def run(self) -> None:
        for _ in range(5):
            self.turn()

    @rule()
    def settle(self) -> None:
        """Everybody takes what comes: then all of it has come."""
        if self.paused:
            self.resume()
        if self.live:
            self.until(self.arrived, "something did not arrive")
        elif self.far_was_reset and not self.was_reset:
            self.until(lambda: self.rig.leg.closed, "the reset was not told")
        else:
            self.run()

    def arrived(self) -> bool:
        rig = self.rig
        self.far_step()
        rig.far_take()
        return (
            not self.far_wants
            and rig.lane.data == self.far_written
            and ("ended" in rig.lane.events) == self.far_wants_end
            and rig.taken == self.written
            and rig.saw_end == self.ended
            and rig.leg.closed == (self.ended and self.far_wants_end)
        )

    def until(self, condition, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, what
            self.turn()

    @invariant()
    def what_arrives_is_what_was_written(self) -> None:
        rig = self.rig
        rig.check()
        assert self.far_written.startswith(rig.lane.data)
        assert self.written.startswith(rig.taken)
        assert rig.leg.unsent <= len(self.written) - len(rig.taken)
        if rig.saw_end and not self.was_reset:
            assert self.ended
            assert rig.taken == self.written, "an end arrived before what was written"
        if "ended" in rig.lane.events:
            assert self.far_ended
            assert rig.lane.data == self.far_written
        assert "lost" not in rig.lane.events or self.far_was_reset
        if rig.leg.closed:
            assert (rig.held, rig.leg.unsent) == (0, 0)

    def teardown(self) -> None:
        try:
            self.settle()
            self.what_arrives_is_what_was_written()
        finally:
            self.rig.stop()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()
        assert self.rig.held == 0, "memory that was held was not given back"


class SocketLegModel(LegModel):
    def rig_of(self, loop: asyncio.AbstractEventLoop) -> Rig:
        return SocketRig(loop, buffers=16_384)


class TunnelLegModel(LegModel):
    def rig_of(self, loop: asyncio.AbstractEventLoop) -> Rig:
        return TunnelRig(loop, buffers=16_384)


for model in (SocketLegModel, TunnelLegModel):
    model.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSocketLegModel = SocketLegModel.TestCase
TestTunnelLegModel = TunnelLegModel.TestCase
