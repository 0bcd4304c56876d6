"""The ways from a client to an application: directly, through two sidecars by every lane, and through one and another
mesh's."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from enum import StrEnum

from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint, Transport
from graph.model import Mode, Snapshot, WorkloadRef
from sidecar.dataplane import sockets
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound, ExplicitOutbound
from sidecar.dataplane.sockets import Address
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings
from tests.sidecar.dataplane.foreign import BACK
from tests.sidecar.dataplane.misbehaviour import HOST, PATIENCE
from tests.sidecar.dataplane.other_mesh import OtherMesh
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, FlowList, HeldDirectory, HeldPolicy, credentials


class Way(StrEnum):
    """How the client comes to the application."""

    DIRECT = "directly"
    STREAM_TUNNEL = "stream lane, by tunnel"
    STREAM_PLAIN = "stream lane, plaintext"
    HTTP_TUNNEL = "http lane, by tunnel"
    HTTP_PLAIN = "http lane, plaintext"
    INSPECT_TUNNEL = "inspect lane, by tunnel"
    INSPECT_PLAIN = "inspect lane, plaintext"
    STREAM_MTLS = "stream lane, from another mesh"
    HTTP_MTLS = "http lane, from another mesh"
    INSPECT_MTLS = "inspect lane, from another mesh"
    OUT_MTLS = "to another mesh"


MESHED = tuple(Way)[1:]
HTTP = (Way.HTTP_TUNNEL, Way.HTTP_PLAIN, Way.HTTP_MTLS)
INSPECTED = (Way.INSPECT_TUNNEL, Way.INSPECT_PLAIN, Way.INSPECT_MTLS)
TUNNELS = (Way.STREAM_TUNNEL, Way.HTTP_TUNNEL, Way.INSPECT_TUNNEL)
#: What comes from a proxy that knows plain mutual TLS only.
MTLS = (Way.STREAM_MTLS, Way.HTTP_MTLS, Way.INSPECT_MTLS)
#: Nobody looks at the bytes; what goes to another mesh is judged by its address.
STREAM = (Way.STREAM_TUNNEL, Way.STREAM_PLAIN, Way.STREAM_MTLS, Way.OUT_MTLS)
#: Our sidecar stands before the application.
INBOUND = tuple(way for way in MESHED if way is not Way.OUT_MTLS)
#: What a client calls that calls the other mesh.
_ELSEWHERE, _BACK = Address("192.0.2.99", 8443), WorkloadRef("mesh", "back")


class Planes:
    """The sidecars of a client and of an application; ``entrances`` says where the client connects.

    :param ports: where the application listens for those who come that way
    :param between: answers with the port at which somebody passes tunnels on to the one it is given
    """

    def __init__(
        self, authority, ports: Mapping[Way, int], *, between: Callable[[int], int] = lambda port: port
    ) -> None:
        self.flows = FlowList(), FlowList()
        self._listeners: list[tuple[Address, socket.socket]] = []
        identity = str(SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "cart"))
        cart = WorkloadRef("shop", "cart")
        inside = {way: self._listen() for way in INBOUND}
        self.entrances = {**ports, **inside}
        self._ways = {port: way for way, port in inside.items()}
        known, outbound = [], []
        for number, way in enumerate(TUNNELS, start=1):
            address = f"192.0.2.{number}"
            endpoints = (Endpoint(HOST, between(inside[way]), identity=identity),)
            known.append(Destination(address, 80, workload=cart, meshed=True, endpoints=endpoints))
            self.entrances[way] = self._listen()
            outbound.append(ExplicitOutbound(Address(HOST, self.entrances[way]), Address(address, 80)))
        self._other = OtherMesh(authority)
        for way in MTLS:
            self.entrances[way] = self._other.calls(inside[way])
        served = Endpoint(HOST, self._other.serves(ports[Way.OUT_MTLS]), identity=str(BACK), transport=Transport.MTLS)
        known.append(Destination(*_ELSEWHERE, workload=_BACK, meshed=True, endpoints=(served,)))
        self.entrances[Way.OUT_MTLS] = self._listen()
        outbound.append(ExplicitOutbound(Address(HOST, self.entrances[Way.OUT_MTLS]), _ELSEWHERE))
        inbound = [ExplicitInbound(Address(HOST, inside[way]), Address(HOST, ports[way])) for way in INBOUND]
        opaque = frozenset(port for way, port in inside.items() if way in STREAM)
        own = {"explicit_inbound": tuple(inbound), "opaque_ports": opaque}
        self._taps = Inspection(InspectSettings(ports=frozenset(inside[way] for way in INSPECTED)))
        self._planes = (
            self._plane(authority, "front", known, self.flows[0], {"explicit_outbound": tuple(outbound)}),
            self._plane(authority, "cart", [], self.flows[1], own, self._taps),
        )

    def _listen(self) -> int:
        """A port that is ours from here on."""
        sock = sockets.listener(Address(HOST, 0))
        port = sock.getsockname()[1]
        self._listeners.append((Address(HOST, port), sock))
        return port

    def lanes(self) -> dict[Way, set[str]]:
        """What the application's sidecar took connections for, or the client's where that one is another mesh's."""
        lanes: dict[Way, set[str]] = {way: set() for way in MESHED}
        for record in self.flows[1].opened_records:
            lanes[self._ways[record.port]].add(record.protocol)
        for record in self.flows[0].opened_records:
            if record.destination.workload == _BACK:
                lanes[Way.OUT_MTLS].add(record.protocol)
        return lanes

    @staticmethod
    def _plane(authority, name, known, flows, settings, taps=None) -> DataPlane:
        snapshot = Snapshot(WorkloadRef("shop", name), TRUST_DOMAIN, 1, Mode.LEARN, Mode.LEARN)
        made = DataPlaneSettings(outbound_listen=(), inbound_listen=(), **settings)
        own = credentials(authority, "shop", name)
        return DataPlane(made, HeldPolicy(snapshot), HeldDirectory(known), own, flows, taps=taps)

    async def __aenter__(self) -> Planes:
        inherited = sockets.Inherited(self._listeners)
        for plane in self._planes:
            plane.listen(inherited)
            await plane.start()
        await self._other.__aenter__()
        return self

    async def __aexit__(self, *_) -> None:
        try:
            for plane in self._planes:
                assert plane.buffered == 0, "what was held for a receiver was not given back"
                plane.stop()
        finally:
            await self._other.__aexit__()

    @property
    def buffered(self) -> int:
        """Bytes that are held for receivers."""
        return sum(plane.buffered for plane in self._planes)

    async def settled(self) -> None:
        """Both ends let go of every connection, soon after the client and the application have."""
        end = time.monotonic() + PATIENCE
        while any(plane.live_connections for plane in self._planes):
            assert time.monotonic() < end, "connections were left"
            await asyncio.sleep(0.01)
