"""Answers HTTP/1.1 requests with who it is, on which port it was asked, and what it was asked for.

python web_server.py NAME PORT...

On SIGTERM it goes on for as long as anybody asks: every answer then ends its connection, and when there is none left
and nobody has come for a while, it ends. That is how a server has to behave whose pod is taken out of service.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from functools import partial

#: Seconds without a connection after which nobody is expected any more.
QUIET = 1.0


class Server:
    def __init__(self, name: str) -> None:
        self._name = name
        self._open = 0
        self._leaving = False
        self._ended = asyncio.Event()
        self._quiet: asyncio.TimerHandle | None = None

    async def serve(self, ports: list[int]) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._leave)
        for port in ports:
            await asyncio.start_server(partial(self._answer_all, port), "0.0.0.0", port, backlog=1024)
        await self._ended.wait()

    def _leave(self) -> None:
        self._leaving = True
        self._changed(0)

    def _changed(self, by: int) -> None:
        self._open += by
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        if self._leaving and not self._open:
            self._quiet = asyncio.get_running_loop().call_later(QUIET, self._ended.set)

    async def _answer_all(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._changed(1)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._answer(port, reader, writer):
                    pass
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        finally:
            self._changed(-1)

    async def _answer(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        target = head.split(b" ", 2)[1].decode()
        body = f"{self._name} {port} {target}\n".encode()
        last = self._leaving or b"connection: close" in head.lower()
        fields = f"Content-Length: {len(body)}\r\n" + ("Connection: close\r\n" if last else "")
        writer.write(f"HTTP/1.1 200 OK\r\n{fields}\r\n".encode() + body)
        await writer.drain()
        return not last


asyncio.run(Server(sys.argv[1]).serve([int(port) for port in sys.argv[2:]]))
