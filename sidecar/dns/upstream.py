"""Asking the pod's own resolvers, over UDP or TCP, in a way that others can not easily answer for them.

Every question has a random id and a connected socket of its own, so that the kernel takes nothing from another address
and the port is as random as the kernel's (RFC 5452). What does not fit the question is counted and not looked at again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sidecar.dataplane import sockets
from sidecar.dataplane.sockets import Address
from sidecar.dns.message import Answer, Malformed, Query, Rcode, read_answer, with_id

#: <asm/socket.h>; 36 everywhere but on a few old architectures
SO_MARK: Final = 36
_LONGEST: Final = 65_535
#: Seconds after which a question over UDP is sent once more.
_AGAIN: Final = 1.0
#: Datagrams that do not answer the question, before a socket is given up.
_STRAYS: Final = 64
#: What another resolver may know better.
_TRY_ANOTHER: Final = frozenset({Rcode.FORMERR, Rcode.SERVFAIL, Rcode.NOTIMP, Rcode.REFUSED})

type Found = tuple[bytes, Answer]
"""A message as it came, and what it says."""


@dataclass(slots=True)
class Strangeness:
    """What came instead of answers.

    :param strays: messages that answer another question than the one asked on their socket
    :param malformed: messages that contradict the format
    """

    strays: int = 0
    malformed: int = 0


@dataclass(frozen=True, slots=True)
class Upstreams:
    """The resolvers, asked one after another, each a little later than the one before.

    :param addresses: in order of preference
    :param patience: seconds before the next one is asked as well
    :param deadline: seconds for the whole question
    :param mark: ``SO_MARK`` of our sockets; 0: none
    """

    addresses: Sequence[Address]
    patience: float
    deadline: float
    mark: int = 0
    strangeness: Strangeness = field(default_factory=Strangeness)

    async def ask(self, data: bytes, query: Query, *, stream: bool) -> Found | None:
        """The first good answer; else the last bad one; else None.

        :param data: the query as it was sent
        :param stream: over TCP
        """
        waiting: set[asyncio.Task[Found | None]] = set()
        bad: Found | None = None
        left = list(self.addresses)
        try:
            async with asyncio.timeout(self.deadline):
                while left or waiting:
                    if left:
                        exchange = self._over_tcp if stream else self._over_udp
                        waiting.add(asyncio.create_task(exchange(left.pop(0), data, query)))
                    patience = self.patience if left else None
                    done, waiting = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        found = task.result()
                        if found is not None and found[1].rcode not in _TRY_ANOTHER:
                            return found
                        bad = found or bad
        except TimeoutError:
            return bad
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        return bad

    async def _over_udp(self, server: Address, data: bytes, query: Query) -> Found | None:
        loop = asyncio.get_running_loop()
        number = secrets.randbelow(1 << 16)
        message = with_id(data, number)
        try:
            sock = self._datagram_socket(server)
        except OSError:
            return None
        with sock:
            try:
                await loop.sock_sendall(sock, message)
                strays = _STRAYS
                timeout: float | None = _AGAIN
                while strays:
                    try:
                        async with asyncio.timeout(timeout):
                            came = await loop.sock_recv(sock, _LONGEST)
                    except TimeoutError:
                        timeout = None
                        await loop.sock_sendall(sock, message)
                        continue
                    found = self._judged(came, query, number)
                    if found is not None:
                        return found
                    strays -= 1
            except OSError:  # nobody listens there, or there is no way
                return None
        return None

    async def _over_tcp(self, server: Address, data: bytes, query: Query) -> Found | None:
        loop = asyncio.get_running_loop()
        number = secrets.randbelow(1 << 16)
        message = with_id(data, number)
        try:
            sock = sockets.outgoing(server.family, self.mark)
        except OSError:
            return None
        with sock:
            try:
                await loop.sock_connect(sock, server)
                await loop.sock_sendall(sock, len(message).to_bytes(2) + message)
                size = int.from_bytes(await _exactly(loop, sock, 2))
                return self._judged(await _exactly(loop, sock, size), query, number)
            except (OSError, EOFError):
                return None

    def _datagram_socket(self, server: Address) -> socket.socket:
        sock = socket.socket(server.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if self.mark:
                sock.setsockopt(socket.SOL_SOCKET, SO_MARK, self.mark)
            sock.connect(tuple(server))
        except OSError:
            sock.close()
            raise
        return sock

    def _judged(self, data: bytes, query: Query, number: int) -> Found | None:
        """What came, under the application's own id; None when it does not answer the question."""
        try:
            answer = read_answer(data)
        except Malformed:
            self.strangeness.malformed += 1
            return None
        if not answer.answers(query, number):
            self.strangeness.strays += 1
            return None
        return with_id(data, query.id), answer


async def _exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int) -> bytes:
    """:raises EOFError: when the server ends before"""
    data = bytearray()
    while len(data) < size:
        more = await loop.sock_recv(sock, size - len(data))
        if not more:
            raise EOFError
        data += more
    return bytes(data)


def nameservers(text: str) -> list[Address]:
    """The resolvers that a ``resolv.conf`` names (resolv.conf(5)): three at most, as the C library takes them.

    Lines that are not understood are passed over, as everybody else passes over them. An address with a zone
    (``fe80::1%eth0``) can be none of a pod's.
    """
    found: list[Address] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = str(ipaddress.ip_address(words[1]))
        except ValueError:
            continue
        if "%" not in address:
            found.append(Address(address, 53))
    return found[:3]
