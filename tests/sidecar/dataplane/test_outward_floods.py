"""HTTP/2 that floods, within the TLS that we end between our application and an inspected host: whoever floods loses
that connection and no other, which is counted, and nothing of it is kept."""

from __future__ import annotations

import asyncio
import contextlib
import struct

import hpack
import pytest

from sidecar.inspect.frame_guard import CONTINUATION, DATA, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE
from sidecar.inspect.settings import InspectSettings, Limits
from tests.sidecar.dataplane.applications import until
from tests.sidecar.dataplane.outside import API
from tests.sidecar.dataplane.test_outward_lanes import SAY, Partner, channel
from tests.sidecar.inspect.http2_ends import frame
from tests.sidecar.inspect.test_attacks import goaways

#: Pieces after which a flood that nobody ended has failed.
ENOUGH = 60_000
#: Seconds for what has to happen.
PATIENCE = 60.0
ANSWER = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(":status", "200")])


def head(*more: tuple[str, str]) -> bytes:
    """Of a request that is allowed; it does not depend on the table."""
    fields = [(":method", "POST"), (":scheme", "https"), (":authority", API), (":path", SAY), *more]
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*one) for one in fields])


HEAD = head()
#: One field of 4000 bytes in the table, and then references to it of one byte each.
BOMB = HEAD + b"\x40\x01x\x7f" + hpack.hpack.encode_integer(3900, 7)[1:] + b"y" * 3900 + b"\xbe" * 10_000


def rapid_reset(number: int) -> bytes:
    stream = 2 * number + 1
    return frame(HEADERS, 5, stream, HEAD) + frame(RST_STREAM, 0, stream, bytes((0, 0, 0, 8)))


def empty_data(number: int) -> bytes:
    return (b"" if number else frame(HEADERS, 4, 1, HEAD)) + frame(DATA, 0, 1)


def continuation(number: int) -> bytes:
    return frame(CONTINUATION, 0, 1) if number else frame(HEADERS, 0, 1, HEAD)


#: So few a second that a slow machine, too, sends more.
FEW = Limits(resets=20, settings=20, pings=20, updates=20, empty_frames=20)

#: What our application sends, and the limit that it meets; the parser's own has no name.
FLOODS = {
    "rapid-reset": (rapid_reset, "rapid-reset"),
    "continuation": (continuation, "continuations"),
    "settings": (lambda _: frame(SETTINGS), "settings"),
    "ping": (lambda _: frame(PING, 0, 0, bytes(8)), "pings"),
    "empty-data": (empty_data, "empty-data"),
    "window-updates": (lambda _: frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", 1)), "window-updates"),
    "hpack-bomb": (lambda number: frame(HEADERS, 5, 2 * number + 1, BOMB), ""),
}


async def flooded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, make) -> bytes:
    """Send without end until the other side has ended the connection; what it said."""
    said = bytearray()

    async def listen() -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65_536):
                said.extend(piece)

    listening = asyncio.ensure_future(listen())
    with contextlib.suppress(ConnectionError):
        writer.write(PREFACE + frame(SETTINGS))
        for number in range(0, ENOUGH, 20):
            if listening.done():
                break
            writer.write(b"".join(map(make, range(number, number + 20))))
            await writer.drain()
    async with asyncio.timeout(PATIENCE):
        await listening
    return bytes(said)


@pytest.mark.parametrize("name", FLOODS)
async def test_an_application_that_floods_a_host_loses_that_connection_alone(outside, name):
    make, limit = FLOODS[name]
    await outside.start(f"POST {SAY}", settings=InspectSettings(limits=FEW))
    partner = await Partner().start(outside)
    bystander = channel(outside).unary_unary(SAY)
    assert await bystander(b"abc", timeout=PATIENCE) == b"cba"
    reader, writer = await outside.connect("h2")
    assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
    said = await flooded(reader, writer, make)
    assert goaways(said)
    if limit:
        assert outside.hub.breaches[limit] == 1
    assert await bystander(b"def", timeout=PATIENCE) == b"fed"
    assert len(outside.flows.opened_records) == 2, "the bystander's connection is the same"
    assert partner.calls[-1] == "Say"
    writer.close()
    await until(lambda: outside.plane.live_connections == 1)
    assert outside.plane.buffered == 0


async def test_an_application_that_takes_nothing_holds_no_more_than_its_windows(outside):
    """Many streams ask for much, and give no window for it."""
    limits = Limits(stream_window=65_535, connection_window=131_072, stall=1.0)
    await outside.start(settings=InspectSettings(limits=limits))
    await Partner().start(outside)
    asked = head(("content-type", "application/grpc"), ("te", "trailers"))
    _, writer = await outside.connect("h2")
    no_window = frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 0))
    message = b"\0" + struct.pack("!I", 16_000) + b"x" * 16_000
    streams = (frame(HEADERS, 4, number, asked) + frame(DATA, 1, number, message) for number in (1, 3, 5))
    writer.write(PREFACE + no_window + b"".join(streams))
    await until(lambda: outside.hub.breaches["stall"] == 1)
    writer.close()
    await until(lambda: outside.plane.live_connections == 0)
    assert outside.plane.buffered == 0


#: What a host sends instead of an answer, for ever.
HOSTS = {
    "settings": frame(SETTINGS),
    "ping": frame(PING, 0, 0, bytes(8)),
    "empty-data": frame(DATA, 0, 1),
    "window-updates": frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", 1)),
    "interim": frame(HEADERS, 4, 1, hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(":status", "103")])),
    "hpack-bomb": frame(HEADERS, 4, 1, ANSWER + BOMB[len(HEAD) :]),
    "continuation": frame(CONTINUATION, 0, 1),
}


@pytest.mark.parametrize("name", HOSTS)
async def test_a_host_that_floods_costs_those_who_ask_it_alone(outside, name):
    """Until its client goes, as clients do that hear nothing; another connection has its turn meanwhile."""
    ended = asyncio.Event()
    began = {"empty-data": frame(HEADERS, 4, 1, ANSWER), "continuation": frame(HEADERS, 0, 1, ANSWER)}.get(name, b"")

    async def host(reader, writer):
        if writer.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            await outside.answer(reader, writer)
            return
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(frame(SETTINGS))
            await reader.readuntil(SAY.encode()[-3:])  # it was asked
            writer.write(began)
            listening = asyncio.ensure_future(reader.read())
            try:
                while not listening.done():
                    writer.write(HOSTS[name] * 200)
                    await writer.drain()
                    await asyncio.sleep(0)
            finally:
                await asyncio.gather(listening, return_exceptions=True)
        writer.transport.abort()
        ended.set()

    await outside.start()
    await outside.serve(host, alpn=("h2", "http/1.1"))
    plain = await outside.connect("http/1.1")
    assert (await outside.ask("GET /a", connection=plain))[0] == 200
    _, writer = await outside.connect("h2")
    raw = [(":method", "GET"), (":scheme", "https"), (":authority", API), (":path", SAY)]
    plainly = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*one) for one in raw], huffman=False)
    writer.write(PREFACE + frame(SETTINGS) + frame(HEADERS, 5, 1, plainly))
    for _ in range(20):
        assert (await outside.ask("GET /a", connection=plain))[0] == 200
    writer.transport.abort()
    async with asyncio.timeout(PATIENCE):
        await ended.wait()
    await until(lambda: outside.plane.live_connections == 1)
    assert outside.plane.buffered == 0
