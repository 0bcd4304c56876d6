"""A name server for tests: answers UDP and TCP on one port, as each test's function says."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable

from sidecar.dataplane.sockets import Address

type Answers = Callable[[bytes], bytes | list[bytes] | None]
"""From a query to what is sent back: nothing, one message, or several."""


class Resolver:
    """Listens on a free port of ``host``, on the same one for both protocols."""

    def __init__(self, answers: Answers, host: str = "127.0.0.1") -> None:
        self.answers = answers
        self.host = host
        self.asked: list[tuple[str, bytes]] = []
        self.sources: list[tuple[str, int]] = []
        self.arrived = asyncio.Event()

    async def __aenter__(self) -> Resolver:
        loop = asyncio.get_running_loop()
        while True:
            self._transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), (self.host, 0))
            self.address = Address(self.host, self._transport.get_extra_info("sockname")[1])
            try:
                self._server = await asyncio.start_server(self._connected, *self.address)
            except OSError:  # another program has this port for TCP
                self._transport.close()
                continue
            return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()
        self._server.close()

    def answer(self, how: str, data: bytes) -> list[bytes]:
        self.asked.append((how, data))
        self.arrived.set()
        given = self.answers(data)
        return given if isinstance(given, list) else [given] if given is not None else []

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                (size,) = struct.unpack("!H", await reader.readexactly(2))
                for message in self.answer("tcp", await reader.readexactly(size)):
                    writer.write(struct.pack("!H", len(message)) + message)
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.resolver.sources.append(addr)
        for message in self.resolver.answer("udp", data):
            self.transport.sendto(message, addr)
