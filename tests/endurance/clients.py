"""Clients of an HTTP server at a steady rate, who check every answer, and connections that are held through it all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections import Counter, deque
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
#: Seconds after which an answer counts as not given.
PATIENCE = 30.0
#: Requests in hand at once; beyond, those that are due wait.
AT_ONCE = 200

type Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Failed(Exception):
    """The answer was not right."""


class HttpLoad:
    """Requests at a steady rate until the block ends: every second one on a connection of its own, the others on kept
    connections. Nothing is tried again.

    :param rate: requests a second
    :param age: seconds after which the client ends a kept connection instead of using it again
    :param idle: seconds without a request after which it does so, too
    :ivar dismissed: connections that were to be kept and that the server ended, by an answer or between two; a client
        that has been told so makes another one
    """

    _numbers = itertools.count()

    def __init__(self, port: int, rate: float, *, age: float = math.inf, idle: float = math.inf) -> None:
        self._port = port
        self._rate = rate
        self._age, self._idle = age, idle
        self._kept: deque[tuple[Connection, float, float]] = deque()  # with when they were made, and used last
        self._running: set[asyncio.Task[None]] = set()
        self.outcomes: Counter[str] = Counter()
        self.dismissed = 0

    @property
    def answered(self) -> int:
        return self.outcomes["answered"]

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._running)
        for (_, writer), _, _ in self._kept:
            await _close(writer)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        for number in itertools.count():
            while len(self._running) >= AT_ONCE:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.ensure_future(self._ask(keep=number % 2 == 1))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            due += 1 / self._rate
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _connect(self) -> Connection:
        return await asyncio.open_connection(HOST, self._port)

    async def _take(self) -> tuple[Connection, float]:
        """The kept connection that was not used for the longest time, if it may be used; else another one."""
        now = asyncio.get_running_loop().time()
        while self._kept:
            (reader, writer), made, used = self._kept.popleft()
            if not reader.at_eof() and now - made < self._age and now - used < self._idle:
                return (reader, writer), made
            self.dismissed += reader.at_eof()
            await _close(writer)
        return await self._connect(), now

    async def _ask(self, *, keep: bool) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                connection, made = await self._take() if keep else (await self._connect(), 0.0)
                try:
                    last = await self._request(connection, keep=keep)
                except BaseException:
                    connection[1].transport.abort()
                    raise
                self.dismissed += keep and last
                if keep and not last:
                    self._kept.append((connection, made, asyncio.get_running_loop().time()))
                else:
                    await _close(connection[1])
            outcome = "answered"
        except (OSError, TimeoutError, asyncio.IncompleteReadError, Failed) as error:
            outcome = f"{'kept' if keep else 'fresh'}: {error!r}"
        self.outcomes[outcome] += 1

    async def _request(self, connection: Connection, *, keep: bool) -> bool:
        """Whether the server ends the connection with this answer."""
        reader, writer = connection
        target = f"/items/{next(self._numbers)}"
        ending = "" if keep else "Connection: close\r\n"
        writer.write(f"GET {target} HTTP/1.1\r\nHost: shop\r\n{ending}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status, *fields = head.split("\r\n")
        length = next(int(line.split(":")[1]) for line in fields if line.startswith("content-length:"))
        body = (await reader.readexactly(length)).decode()
        if not status.startswith("http/1.1 200 ") or body != f"GET {target}\n":
            raise Failed(f"{target}: {head}{body}")
        return "connection: close" in fields


class Held:
    """One connection to an echo service that stays open, and is used again and again until the block ends."""

    def __init__(self, port: int, pause: float = 0.1) -> None:
        self._port = port
        self._pause = pause
        self.answers = 0
        self.broken = ""

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(HOST, self._port)
        await self.use()
        self._task = asyncio.ensure_future(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await _close(self._writer)

    async def use(self) -> None:
        text = b"%d is still there" % self.answers
        self._writer.write(text)
        async with asyncio.timeout(PATIENCE):
            answer = await self._reader.readexactly(len(text))
        assert answer == text
        self.answers += 1

    async def _run(self) -> None:
        try:
            while True:
                await self.use()
                await asyncio.sleep(self._pause)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self.broken = f"after {self.answers} answers: {error!r}"


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
