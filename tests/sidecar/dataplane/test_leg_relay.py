"""The lane that passes bytes on as they are, against legs that note what they are told. Each test is a playbook: what
happens on one leg, what the relay does to the other, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from graph.model import Direction, Mode, Peer, Snapshot, WorkloadRef
from sidecar.dataplane.leg_relay import LegRelay
from sidecar.dataplane.live import Connections, new_record
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, FlowList, HeldPolicy

CART = WorkloadRef("shop", "cart")


class NotingLeg:
    """A leg that keeps every byte and call; what it has not sent is set by the test."""

    def __init__(self, *, reached: bool = True) -> None:
        self.lane = None
        self.reached = reached
        self.unsent = 0
        self.closed = False
        self.told: list[object] = []

    def write(self, data):
        self.told.append(bytes(data))

    def end(self):
        self.told.append("end")

    def pause(self):
        self.told.append("pause")

    def resume(self):
        self.told.append("resume")

    def reset(self):
        self.closed = True
        self.told.append("reset")

    def takes(self):
        """Everything that was held has been taken."""
        self.unsent = 0
        self.lane.drained(self)

    def says(self, data: bytes):
        self.lane.received(self, memoryview(data))


class Relayed:
    def __init__(self, *, reached: bool = True, half_closed_idle: float = 0.0) -> None:
        self.flows = FlowList()
        self.policy = HeldPolicy(Snapshot(CART, TRUST_DOMAIN, 1, Mode.LEARN, Mode.LEARN))
        self.register = Connections(self.policy, self.flows, half_closed_idle)
        record = new_record(Direction.INBOUND, Peer(address="192.0.2.7"), Peer(CART, "shop", verified=True), 80)
        self.connection = self.register.judge(record, lambda connection: None)
        self.client, self.server = NotingLeg(), NotingLeg(reached=reached)
        LegRelay(self.connection, self.client, self.server)
        self.connection.announce()

    @property
    def record(self):
        (record,) = self.flows.opened_records
        return record

    @property
    def over(self) -> bool:
        return self.flows.closed_records == [self.record] and not self.register.count


async def test_bytes_go_to_the_other_leg_and_are_counted():
    relayed = Relayed()
    relayed.client.says(b"question")
    relayed.server.says(b"the answer")
    assert (relayed.server.told, relayed.client.told) == ([b"question"], [b"the answer"])
    assert (relayed.record.bytes_sent, relayed.record.bytes_received) == (8, 10)
    assert not relayed.over


async def test_a_leg_that_does_not_take_stops_the_other_until_it_does():
    relayed = Relayed()
    relayed.server.unsent = 5
    relayed.client.says(b"hello")
    assert (relayed.server.told, relayed.client.told) == ([b"hello"], ["pause"])
    relayed.server.takes()
    assert relayed.client.told == ["pause", "resume"]
    assert relayed.server.told == [b"hello"]


@pytest.mark.parametrize("first", ["client", "server"])
async def test_each_direction_ends_by_itself(first):
    relayed = Relayed()
    ends = [relayed.client, relayed.server] if first == "client" else [relayed.server, relayed.client]
    ends[0].lane.ended(ends[0])
    assert (ends[0].told, ends[1].told) == ([], ["end"])
    ends[1].says(b"still here")
    assert ends[0].told == [b"still here"]
    assert not relayed.over
    ends[1].lane.ended(ends[1])
    assert ends[0].told == [b"still here", "end"]
    assert relayed.over
    assert not relayed.record.failed


async def test_it_is_over_when_the_last_byte_was_taken():
    relayed = Relayed()
    relayed.client.lane.ended(relayed.client)
    relayed.client.unsent = 10
    relayed.server.says(b"the answer")
    relayed.server.lane.ended(relayed.server)
    assert not relayed.over
    relayed.client.takes()
    assert relayed.over
    assert relayed.server.told == ["end", "pause"], "what has ended is not read any more"


@pytest.mark.parametrize("whose", ["client", "server"])
@pytest.mark.parametrize("reached", [True, False])
async def test_a_lost_leg_resets_the_other(whose, reached):
    relayed = Relayed(reached=reached)
    lost, other = (relayed.client, relayed.server) if whose == "client" else (relayed.server, relayed.client)
    lost.lane.lost(lost, "it was reset")
    assert (lost.told, other.told) == ([], ["reset"])
    assert relayed.over
    assert relayed.record.failed is not reached, "whom nobody reached it has failed"
    other.lane.lost(other, "and this one too")
    assert relayed.over


async def test_a_new_deny_resets_both():
    relayed = Relayed()
    relayed.policy.apply(Snapshot(CART, TRUST_DOMAIN, 2, Mode.ENFORCE, Mode.ENFORCE))
    assert (relayed.client.told, relayed.server.told) == (["reset"], ["reset"])
    assert relayed.over


async def test_half_a_connection_that_carries_nothing_is_ended():
    relayed = Relayed(half_closed_idle=0.01)
    relayed.client.lane.ended(relayed.client)
    async with asyncio.timeout(60):
        while not relayed.over:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)
    assert (relayed.client.told, relayed.server.told) == (["reset"], ["end", "reset"])
