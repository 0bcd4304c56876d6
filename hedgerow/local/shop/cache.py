"""The cache: plain TCP in the manner of Redis (RESP): arrays of bulk strings in, bulk strings and integers out."""

from __future__ import annotations

import asyncio

from hedgerow.local.shop.serving import serve_tcp

_MAX_ARGUMENTS = 16
_MAX_LENGTH = 64 * 1024

_data: dict[bytes, bytes] = {}


async def read_command(reader: asyncio.StreamReader) -> list[bytes]:
    """Read one array of bulk strings; empty at the end of the stream.

    :raises ConnectionError: when it is not one, or too large
    """
    head = await reader.readline()
    if not head:
        return []
    count = _number(head, b"*", _MAX_ARGUMENTS)
    arguments = []
    for _ in range(count):
        length = _number(await reader.readline(), b"$", _MAX_LENGTH)
        arguments.append((await reader.readexactly(length + 2))[:-2])
    return arguments


def _number(line: bytes, kind: bytes, limit: int) -> int:
    digits = line[1:].strip()
    if line[:1] != kind or not digits.isdigit() or int(digits) > limit:
        raise ConnectionError(f"not a command: {line[:40]!r}")
    return int(digits)


def answer(arguments: list[bytes]) -> bytes:
    """Carry a command out."""
    match arguments:
        case [b"PING"]:
            return b"+PONG\r\n"
        case [b"SET", key, value]:
            _data[key] = value
            return b"+OK\r\n"
        case [b"GET", key]:
            found = _data.get(key)
            return b"$-1\r\n" if found is None else b"$%d\r\n%s\r\n" % (len(found), found)
        case [b"DEL", key]:
            return b":%d\r\n" % (_data.pop(key, None) is not None)
        case _:
            return b"-ERR unknown command\r\n"


async def _session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while arguments := await read_command(reader):
        writer.write(answer(arguments))
        await writer.drain()


class CacheClient:
    """One connection to the cache, kept open; opened anew when it is gone."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()

    async def call(self, *arguments: bytes) -> bytes | None:
        """Send one command, return its answer's content.

        :raises ConnectionError: when the cache went away or refused the command
        """
        async with self._turn:
            if self._streams is None:
                self._streams = await asyncio.open_connection(*self._target)
            reader, writer = self._streams
            try:
                writer.write(b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in arguments))
                await writer.drain()
                return await self._answer(reader)
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                writer.close()
                self._streams = None
                raise ConnectionError(f"the cache failed: {error}") from error

    @staticmethod
    async def _answer(reader: asyncio.StreamReader) -> bytes | None:
        line = await reader.readuntil(b"\r\n")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            length = int(rest)
            return None if length < 0 else (await reader.readexactly(length + 2))[:-2]
        if kind in (b"+", b":"):
            return rest
        raise ConnectionError(rest.decode(errors="replace"))


if __name__ == "__main__":
    asyncio.run(serve_tcp(_session))
