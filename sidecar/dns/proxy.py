"""The DNS proxy: takes the application's questions, asks the pod's own resolvers, and notes what the answers bind.

Rules:

1. Whom the application meant to ask does not matter: all questions go to the pod's own resolvers. Otherwise an
   application could bind any name to any address, by asking a server of its own.
2. An answer is noted before it is passed on, unchanged: the connection that follows it finds the name.
3. Nobody is left waiting: no resolver, no answer in time, too many questions at once are answered with SERVFAIL.
4. Everything that an application or a resolver can grow is bounded. Nothing is cached.

A question over TCP is asked over TCP. A truncated answer is passed on as it is; the application then comes over TCP.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from sidecar.dataplane.complaints import Complaints
from sidecar.dataplane.sockets import Address
from sidecar.dns.message import ErrorInfo, Malformed, Rcode, Unanswerable, read_query, refusal
from sidecar.dns.names import NameTable
from sidecar.dns.upstream import SO_MARK, Strangeness, Upstreams, nameservers
from sidecar.errors import CannotListen

_log = logging.getLogger(__name__)

#: Ports tried where any will do.
_ATTEMPTS: Final = 16
_RECEIVE_BUFFER: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """How the proxy listens and how much it takes on.

    :param listen: where captured questions arrive, UDP and TCP
    :param upstreams: the pod's own resolvers
    :param patience: seconds before the next resolver is asked as well
    :param deadline: seconds for one question; below the five that applications commonly wait
    :param in_flight: questions asked at once; more are answered with SERVFAIL
    :param connections: TCP connections at once; more are refused
    :param pipelined: questions of one TCP connection that are asked at once; more wait at the application
    :param idle: seconds that a TCP connection may be open without a question (RFC 7766 section 6.2.3), or may not take
        an answer
    :param mark: ``SO_MARK`` of our own sockets; 0: none
    """

    listen: tuple[Address, ...] = (Address("127.0.0.1", 15053),)
    upstreams: tuple[Address, ...] = ()
    patience: float = 1.5
    deadline: float = 4.5
    in_flight: int = 1024
    connections: int = 256
    pipelined: int = 32
    idle: float = 10.0
    mark: int = 0


@dataclass(slots=True)
class Counts:
    """What became of the questions.

    :param queries: all of them
    :param answered: passed on with what a resolver said, whatever that was
    :param failed: no resolver said anything usable in time
    :param refused: not passed on: malformed, zone transfers, in quarantine
    :param shed: too many at once
    """

    queries: int = 0
    answered: int = 0
    failed: int = 0
    refused: int = 0
    shed: int = 0
    strangeness: Strangeness = field(default_factory=Strangeness)


class DnsProxy:
    """Serves DNS to the application.

    :param names: is told of what answers bind
    :param permitted: whether questions may leave the pod now; a workload in quarantine asks nobody
    :param clock: seconds since the epoch
    """

    def __init__(
        self,
        settings: DnsSettings,
        names: NameTable,
        permitted: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._names = names
        self._permitted = permitted
        self._clock = clock
        self._upstreams = Upstreams(settings.upstreams, settings.patience, settings.deadline, settings.mark)
        self._sockets: list[socket.socket] = []
        self._datagrams: list[_Datagrams] = []
        self._servers: list[asyncio.Server] = []
        self._work: set[asyncio.Task[None]] = set()
        self._asking = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._complaints: Complaints | None = None
        self.counts = Counts(strangeness=self._upstreams.strangeness)

    @property
    def listening(self) -> list[Address]:
        """Where questions over UDP are taken."""
        return [listener.address for listener in self._datagrams]

    def listen(self) -> None:
        """Have the sockets. What comes waits until :meth:`start`.

        :raises CannotListen: when an address can not be listened on; nothing is listened on then
        """
        try:
            for address in self._settings.listen:
                self._sockets += _both(address, self._settings.mark)
        except BaseException:
            self._close_sockets()
            raise

    async def start(self) -> None:
        """Answer.

        :raises CannotListen: as :meth:`listen` does, where that was not called before
        """
        if not self._sockets:
            self.listen()
        loop = asyncio.get_running_loop()
        self._complaints = Complaints(_log, lambda delay, call: loop.call_later(delay, call))
        if not self._settings.upstreams:
            _log.warning(
                "the pod has no resolver: every DNS question is answered with SERVFAIL; "
                "set dns.upstreams, or a nameserver in the pod's resolv.conf"
            )
        while self._sockets:
            sock = self._sockets.pop()
            if sock.type == socket.SOCK_STREAM:
                self._servers.append(await asyncio.start_server(self._connected, sock=sock, limit=1 << 16, backlog=128))
                continue
            bound = Address(*sock.getsockname()[:2])
            _, protocol = await loop.create_datagram_endpoint(partial(_Datagrams, self, bound), sock=sock)
            self._datagrams.append(protocol)

    def _close_sockets(self) -> None:
        while self._sockets:
            self._sockets.pop().close()

    async def stop(self) -> None:
        """Take no more questions and give up those that are asked. Calling it again changes nothing."""
        self._close_sockets()
        for server in self._servers:
            server.close()
        self._servers.clear()
        for datagrams in self._datagrams:
            await datagrams.close()
        self._datagrams.clear()
        tasks = [*self._work, *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._complaints is not None:
            self._complaints.stop()

    # questions

    async def answer(self, data: bytes, *, stream: bool) -> bytes | None:
        """What to say to a question; None: nothing."""
        self.counts.queries += 1
        try:
            query = read_query(data)
        except Malformed:
            self.counts.refused += 1
            return None
        except Unanswerable as error:
            self.counts.refused += 1
            return refusal(error.query, error.rcode, ErrorInfo.OTHER, error.why)
        if not self._permitted():
            self.counts.refused += 1
            return refusal(query, Rcode.REFUSED, ErrorInfo.PROHIBITED, "hedgerow: this workload is in quarantine")
        if self._asking >= self._settings.in_flight:
            self.counts.shed += 1
            self._say("a DNS question was answered with SERVFAIL: %d are asked already", self._asking)
            return refusal(query, Rcode.SERVFAIL, ErrorInfo.OTHER, "hedgerow: too many questions at once")
        self._asking += 1
        try:
            found = await self._upstreams.ask(data, query, stream=stream)
        finally:
            self._asking -= 1
        if found is None:
            self.counts.failed += 1
            servers = ", ".join(map(str, self._settings.upstreams)) or "no resolver"
            self._say("a DNS question was answered with SERVFAIL: nothing usable came from %s in time", servers)
            return refusal(query, Rcode.SERVFAIL, ErrorInfo.NETWORK, "hedgerow: no answer from the pod's resolvers")
        message, answer = found
        self.counts.answered += 1
        if answer.rcode == Rcode.NOERROR and answer.addresses and (host := answer.host):
            self._names.bind(host, answer.addresses, self._clock())
        return message

    def _say(self, text: str, *arguments: object) -> None:
        if self._complaints is not None:
            self._complaints.say(logging.WARNING, text, *arguments)

    def datagram(self, transport: asyncio.DatagramTransport, data: bytes, source: tuple[str, int]) -> None:
        """A question over UDP."""

        async def serve() -> None:
            reply = await self.answer(data, stream=False)
            if reply is not None and not transport.is_closing():
                transport.sendto(reply, source)

        if len(self._work) >= 2 * self._settings.in_flight:
            return  # these are about to be refused already; the application asks again
        task = asyncio.get_running_loop().create_task(serve())
        self._work.add(task)
        task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        self._connections.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            _log.error("a fault in the DNS proxy cost one answer; please report it", exc_info=fault)

    # TCP

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= self._settings.connections:
            self._say("refused a DNS connection: %d are open already", len(self._connections))
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._served)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers in the order in which they come, many questions at once (RFC 7766 section 6.2.1.1)."""
        free = asyncio.Semaphore(self._settings.pipelined)

        async def serve(data: bytes) -> None:
            try:
                reply = await self.answer(data, stream=True)
                if reply is not None and not writer.is_closing():
                    writer.write(len(reply).to_bytes(2) + reply)
                    async with asyncio.timeout(self._settings.idle):
                        await writer.drain()
            finally:
                free.release()

        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await free.acquire()
                    data = await self._question(reader)
                    if data is None:
                        break
                    group.create_task(serve(data))
        except* OSError:
            writer.transport.abort()  # the application is gone, or reads nothing (TimeoutError is one)
        finally:
            writer.close()
        try:
            async with asyncio.timeout(self._settings.idle):
                await writer.wait_closed()  # the last answers may not be taken ever, and a descriptor waits with them
        except OSError:
            writer.transport.abort()

    async def _question(self, reader: asyncio.StreamReader) -> bytes | None:
        """The next message of a connection; None at its end."""
        try:
            async with asyncio.timeout(self._settings.idle):
                size = int.from_bytes(await reader.readexactly(2))
                return await reader.readexactly(size)
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            return None


class _Datagrams(asyncio.DatagramProtocol):
    """One socket for questions over UDP."""

    def __init__(self, proxy: DnsProxy, address: Address) -> None:
        self._proxy = proxy
        self._transport: asyncio.DatagramTransport | None = None
        self._closed = asyncio.Event()
        self.address = address

    async def close(self) -> None:
        """From here on our successor gets what comes."""
        if self._transport is not None:
            self._transport.close()
            await self._closed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a datagram endpoint's is one

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        self._proxy.datagram(self._transport, data, addr)

    def error_received(self, exc: Exception) -> None:
        """An application that asked is gone."""


def _both(address: Address, mark: int) -> tuple[socket.socket, socket.socket]:
    """The same port for UDP and TCP, also where any will do: one that is free for the one may not be for the other.

    :raises CannotListen: saying why
    """
    for left in reversed(range(1 if address.port else _ATTEMPTS)):
        datagrams = _bound(address, socket.SOCK_DGRAM, mark)
        try:
            return datagrams, _bound(Address(*datagrams.getsockname()[:2]), socket.SOCK_STREAM, mark)
        except CannotListen:
            datagrams.close()
            if not left:
                raise
    raise AssertionError  # the last turn returns or raises


def _bound(address: Address, kind: socket.SocketKind, mark: int) -> socket.socket:
    """A socket at ``address``, which another process of our user may hold as well: our successor at a restart.

    :raises CannotListen: saying why
    """
    sock = socket.socket(address.family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is left of our predecessor's connections
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        sock.bind(tuple(address))
    except OSError as error:
        sock.close()
        name = "UDP" if kind == socket.SOCK_DGRAM else "TCP"
        remedy = "stop the program that holds the port, or choose another in dns.listen"
        raise CannotListen(*address, f"cannot listen on {address} ({name}): {error.strerror}; {remedy}") from error
    return sock


def default_upstreams(resolv_conf: str, listen: Sequence[Address]) -> tuple[Address, ...]:
    """The resolvers that the pod's ``resolv.conf`` names, but not ourselves."""
    return tuple(address for address in nameservers(resolv_conf) if address not in listen)
