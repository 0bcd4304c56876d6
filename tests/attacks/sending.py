"""How attackers send: one flood over as many connections as they like, or a crowd that comes and stays.

Every function answers with ``connections`` made, how many of them were ``cut`` off by the other side, ``sent`` and
``got`` bytes, and where it is not at its end the time at which it was ``over``. What is sent again and again is made
beforehand: an attacker has prepared.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator

HOST = "127.0.0.1"
#: Bytes that are sent at once, about.
PIECE = 1 << 16
#: Seconds that an attacker goes on who waits to be cut off: as long as a machine may take that has other things to do.
PATIENCE = 60.0
_AGAIN = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

type Result = dict[str, float]
type Connect = Callable[[], socket.socket]
type Pieces = Callable[[], Iterator[bytes]]


def plain(port: int) -> Connect:
    def connect() -> socket.socket:
        sock = connected(port)
        sock.setblocking(False)
        return sock

    return connect


def connected(port: int) -> socket.socket:
    """A connection to ``port`` that holds little on its way: what is there when the attack is over is still read."""
    sock = socket.socket()
    try:
        sock.settimeout(5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
        sock.connect((HOST, port))
    except OSError:
        sock.close()
        raise
    return sock


def times(piece: bytes) -> bytes:
    return piece * (PIECE // len(piece))


def once(piece: bytes) -> Pieces:
    return lambda: iter((piece,))


def endless(opening: bytes, piece: bytes) -> Pieces:
    def pieces() -> Iterator[bytes]:
        yield opening + piece
        while True:
            yield piece

    return pieces


def numbered(opening: bytes, one: Callable[[int], bytes], each: int = 256) -> Pieces:
    """As :func:`endless`, of things that carry a number."""

    def pieces() -> Iterator[bytes]:
        for start in range(0, 1 << 20, each):
            yield opening * (not start) + b"".join(one(number) for number in range(start, start + each))

    return pieces


class _Flooder:
    """One connection at a time, and the next as soon as it was cut off or has said everything."""

    def __init__(self, connect: Connect, pieces: Pieces, result: Result, *, reads: bool, stays: bool) -> None:
        self._connect, self._pieces, self._result = connect, pieces, result
        self._reads, self._stays = reads, stays
        self.sock: socket.socket | None = None
        self._supply: Iterator[bytes] = iter(())
        self._data: bytes | memoryview = b""

    @property
    def wants(self) -> int:
        return (select.POLLIN if self._reads else 0) | (select.POLLOUT if self._data else 0)

    def begin(self) -> None:
        self._result["connections"] += 1
        try:
            self.sock = self._connect()
        except OSError:
            self._result["cut"] += 1
            return
        self._supply = self._pieces()
        self._data = memoryview(next(self._supply))

    def go_on(self, mask: int) -> None:
        try:
            if self._reads and mask & ~select.POLLOUT:
                data = self.sock.recv(1 << 18)
                if not data:
                    raise ConnectionResetError
                self._result["got"] += len(data)
            if self._data and mask & select.POLLOUT:
                self._send()
        except _AGAIN:
            pass
        except OSError:
            self._result["cut"] += 1
            self.end()

    def _send(self) -> None:
        taken = self.sock.send(self._data)
        self._result["sent"] += taken
        self._data = self._data[taken:] or memoryview(next(self._supply, b""))
        if not self._data and not self._stays:
            self.end()

    def end(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


def flood(
    connect: Connect,
    seconds: float,
    pieces: Pieces,
    *,
    clients: int = 1,
    insists: bool = False,
    least: int = 1 << 16,
    reads: bool = True,
    stays: bool = False,
) -> Result:
    """Send ``pieces`` over one connection after another.

    :param clients: that do so at once
    :param insists: go on until somebody was cut off, for :data:`PATIENCE` seconds at most
    :param least: go on, as long, until so many bytes were sent
    :param reads: take what the other side says; else it is left where it is
    :param stays: when the pieces are used up, wait to be cut off, and go on until that or an answer has come; else
        begin anew
    """
    end = time.monotonic() + seconds
    result: Result = {"connections": 0, "cut": 0, "sent": 0, "got": 0}

    def missing() -> bool:
        unanswered = not result["got"] and not result["cut"]
        return (insists and not result["cut"]) or (unanswered if stays else result["sent"] < least)

    flooders = [_Flooder(connect, pieces, result, reads=reads, stays=stays) for _ in range(clients)]
    while (left := end - time.monotonic()) > 0 or (missing() and left > -PATIENCE):
        for one in flooders:
            if one.sock is None:
                one.begin()
        poll = select.poll()
        by_fd = {one.sock.fileno(): one for one in flooders if one.sock is not None}
        for fd, one in by_fd.items():
            poll.register(fd, one.wants)
        # nobody to be heard of: refused, and an attacker's pause, nobody waits for it
        for fd, mask in poll.poll(1000 * min(max(left, 0.01), 0.1 if by_fd else 0.01)):
            by_fd[fd].go_on(mask)
    for one in flooders:
        one.end()
    return result


class _Crowd:
    """Many connections, each of which sends an opening as soon as it can."""

    def __init__(self, port: int, openings: list[bytes]) -> None:
        self._port, self._openings = port, openings
        self._poll = select.epoll()
        self._socks: dict[int, socket.socket] = {}
        self._opened: set[int] = set()
        self.result: Result = {"connections": 0, "cut": 0, "sent": 0, "got": 0}

    def connect(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex((HOST, self._port))
        self._poll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        self._socks[sock.fileno()] = sock
        self.result["connections"] += 1

    def look(self, seconds: float) -> None:
        """Send openings, take what comes, and notice who was cut off."""
        for fd, mask in self._poll.poll(max(0.0, seconds), 256):
            sock = self._socks[fd]
            try:
                if mask & select.EPOLLOUT and fd not in self._opened:
                    opening = self._openings[int(self.result["connections"]) % len(self._openings)]
                    self.result["sent"] += sock.send(opening)
                    self._opened.add(fd)
                while mask & select.EPOLLIN:  # to its end: what comes together is told once
                    data = sock.recv(1 << 16)
                    self.result["got"] += len(data)
                    if not data:
                        raise ConnectionResetError
            except BlockingIOError:
                continue
            except OSError:
                if fd in self._opened:
                    self.result["cut"] += 1
                else:
                    self.result["connections"] -= 1  # it came to nothing, because we were slow: another one will come
                self._poll.unregister(fd)
                self._opened.discard(fd)
                self._socks.pop(fd).close()

    def drip(self, data: bytes) -> None:
        for fd in self._opened:
            with contextlib.suppress(OSError):
                self.result["sent"] += self._socks[fd].send(data)

    def close(self) -> None:
        for sock in self._socks.values():
            sock.close()
        self._poll.close()


def crowd(
    port: int, seconds: float, clients: int, openings: list[bytes], drip: bytes, pause: float, *, cut: int = 0
) -> Result:
    """Many connections, each of which sends an opening and then ``drip`` every ``pause`` seconds.

    They come within half the time, for the attack is that they stay.

    :param cut: go on until so many were cut off, for :data:`PATIENCE` seconds at most
    """
    many = _Crowd(port, openings)
    begin = time.monotonic()
    end, due = begin + seconds, begin + pause
    while (now := time.monotonic()) < end or (
        now < end + PATIENCE and (many.result["connections"] < clients or many.result["cut"] < cut)
    ):
        while many.result["connections"] < min(clients, 1 + clients * (now - begin) / (seconds / 2)):
            many.connect()
        if drip and now >= due:
            due = now + pause
            many.drip(drip)
        many.look(0.01)
    result = {**many.result, "over": time.monotonic()}
    many.close()
    return result
