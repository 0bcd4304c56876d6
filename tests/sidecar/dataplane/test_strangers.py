"""An address that nobody knows when a connection to it is made, and whose owner is known a moment later."""

from __future__ import annotations

import asyncio

import pytest

from graph.directory import Destination, Endpoint
from graph.model import Mode, Origin, Rule, Selector, Snapshot, Verdict, WorkloadRef
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitOutbound
from sidecar.dataplane.sockets import Address
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, FlowList, HeldDirectory, HeldPolicy, credentials
from tests.sidecar.dataplane.two_pods import HOST, ports

FRONT, CART = WorkloadRef("shop", "front"), WorkloadRef("shop", "cart")
DENY = Rule("deny", Selector.of(FRONT), Selector.of(CART), effect=Verdict.DENY, origin=Origin.OVERRIDE)


class Overtaken(HeldDirectory):
    """Says who it is after the answer that it is nobody, and before that is read."""

    async def resolve(self, address, port):
        stranger = await super().resolve(address, port)
        self.change(Destination(address, port, workload=CART, endpoints=(Endpoint(address, port, workload=CART),)))
        return stranger


@pytest.mark.parametrize("directory", [HeldDirectory, Overtaken])
async def test_a_connection_is_judged_by_who_is_known_when_it_begins(authority, directory):
    door, port = ports(2)
    reached = []
    server = await asyncio.start_server(lambda _, writer: (reached.append(True), writer.close()), HOST, port)
    flows = FlowList()
    plane = DataPlane(
        DataPlaneSettings(
            outbound_listen=(),
            inbound_listen=(),
            explicit_outbound=(ExplicitOutbound(Address(HOST, door), Address(HOST, port)),),
        ),
        HeldPolicy(Snapshot(FRONT, TRUST_DOMAIN, 1, Mode.LEARN, Mode.LEARN, rules=(DENY,))),
        directory([Destination(HOST, port)]),
        credentials(authority, "shop", "front"),
        flows,
    )
    await plane.start()
    try:
        async with server:
            reader, writer = await asyncio.open_connection(HOST, door)
            try:
                assert await asyncio.wait_for(reader.read(), 30) == b""
            except ConnectionResetError:
                assert directory is Overtaken
            writer.close()
    finally:
        plane.stop()
    (flow,) = flows.opened_records
    if directory is Overtaken:
        assert (flow.destination.workload, flow.decision.verdict, reached) == (CART, Verdict.DENY, [])
    else:
        assert (flow.destination.workload, flow.decision.verdict, reached) == (None, Verdict.ALLOW, [True])
