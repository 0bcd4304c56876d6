"""A data plane in this process, in explicit mode, and peers that speak raw frames to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from pathlib import Path

from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint
from graph.model import Mode, Snapshot, WorkloadRef
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound, ExplicitOutbound
from sidecar.dataplane.sockets import Address
from tests.ports import free_port
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.stand_ins import ALPN, TRUST_DOMAIN, FlowList, HeldDirectory, HeldPolicy, credentials
from tests.sidecar.dataplane.test_frames import frame

WINDOW = 262_144
#: A buffer of the kernel's, and where the default size of sending ones stands: of this session's network namespace.
SMALL = 16_384
SEND_BUFFERS = Path("/proc/sys/net/ipv4/tcp_wmem")
DATA, UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8


class World:
    """A data plane of workload shop/cart in this process, in explicit mode, with an application behind it."""

    def __init__(self, authority, stack):
        self.authority, self.stack = authority, stack
        self.flows = FlowList()
        self.accepting = None
        self.inbound, self.outbound, self.application, self.peer = (free_port() for _ in range(4))

    async def start(self, handler=apps.serve, *, accepts=True, identity=None, lifetime=3600.0, **settings):
        """:param accepts: whether the application is ours to start"""
        if accepts:
            self.server = await asyncio.start_server(handler, "127.0.0.1", self.application)
            self.stack.callback(self.server.close)
        if identity is None:
            identity = str(SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "back"))
        peer = Endpoint("127.0.0.1", self.peer, identity=identity)
        destination = Destination("192.0.2.1", 80, workload=WorkloadRef("shop", "back"), meshed=True, endpoints=(peer,))
        self.credentials = credentials(self.authority, "shop", "cart", lifetime=lifetime)
        self.policy = HeldPolicy(Snapshot(WorkloadRef("shop", "cart"), TRUST_DOMAIN, 1, Mode.LEARN, Mode.LEARN))
        self.plane = DataPlane(
            DataPlaneSettings(
                outbound_listen=(),
                inbound_listen=(),
                explicit_outbound=(ExplicitOutbound(Address("127.0.0.1", self.outbound), Address("192.0.2.1", 80)),),
                explicit_inbound=(
                    ExplicitInbound(Address("127.0.0.1", self.inbound), Address("127.0.0.1", self.application)),
                ),
                **settings,
            ),
            self.policy,
            HeldDirectory([destination]),
            self.credentials,
            self.flows,
        )
        await self.plane.start()
        self.stack.callback(self.plane.stop)
        return self

    async def dial(self, own=None, *, receive_buffer=0):
        """A tunnel to the data plane, at the level of frames, from shop/front or whom ``own`` names."""
        context = (own or credentials(self.authority, "shop", "front")).client_context
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.inbound))
        reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname="x", limit=4096)
        self.stack.callback(writer.close)
        raw = RawPeer(reader, writer)
        raw.send(frame(PING, SYN, 0, 99))
        assert await raw.receive() == (PING, ACK, 0, 99, b""), "from here on there is a tunnel"
        return raw

    async def accept(self, own=None, *, alpn=ALPN):
        """Be the peer that the data plane dials; answers with the queue of the raw ends of its tunnels.

        Called again, it goes on as another: tunnels that are there already stay.
        """
        if self.accepting is not None:
            self.accepting.close()
        arrived = asyncio.Queue()

        def accepted(reader, writer):
            self.stack.callback(writer.close)
            arrived.put_nowait(RawPeer(reader, writer))

        context = (own or credentials(self.authority, "shop", "back", alpn=alpn)).server_context
        self.accepting = await asyncio.start_server(accepted, "127.0.0.1", self.peer, ssl=context)
        self.stack.callback(self.accepting.close)
        return arrived

    async def until(self, condition):
        await apps.until(condition)


class RawPeer:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self._end = None

    def send(self, *frames_: bytes) -> None:
        self.writer.write(b"".join(frames_))

    async def receive(self):
        """The next frame: type, flags, stream, length, payload. An end that came with data, as it may, comes by itself:
        when an application ends is not always when it was last read."""
        if self._end is not None:
            end, self._end = self._end, None
            return end
        kind, flags, stream, length, payload = await self.receive_as_it_is()
        if kind == DATA and flags == FIN and length:
            self._end = (UPDATE, FIN, stream, 0, b"")
            flags = 0
        return kind, flags, stream, length, payload

    async def receive_as_it_is(self):
        async with asyncio.timeout(60):
            version, kind, flags, stream, length = struct.unpack("!BBHII", await self.reader.readexactly(12))
            assert version == 0
            payload = await self.reader.readexactly(length) if kind == DATA else b""
            return kind, flags, stream, length, payload

    async def gone(self, code: int) -> None:
        """The data plane ends the tunnel with GoAway(code); answers and resets of streams may come with it."""
        codes = []
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                kind, _, _, length, _ = await self.receive()
                if kind == GO_AWAY:
                    codes.append(length)
        assert codes == [code]
        self.writer.close()


async def until_end(raw):
    """What is said until the other end of the stream has said all."""
    got = b""
    while True:
        kind, flags, _, _, payload = await raw.receive()
        got += payload
        if kind == UPDATE and flags == FIN:
            return got


async def opened(raw, stream=1):
    raw.send(frame(UPDATE, SYN, stream, 0))
    assert await raw.receive() == (UPDATE, ACK, stream, 0, b"")


async def ready(arrived):
    raw = await asyncio.wait_for(arrived.get(), 60)
    kind, flags, stream, number, _ = await raw.receive()
    assert (kind, flags, stream) == (PING, SYN, 0)
    raw.send(frame(PING, ACK, 0, number))
    return raw
