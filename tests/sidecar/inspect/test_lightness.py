"""A client that only holds on costs little, and nothing once it is gone: Slowloris is paid for by whoever does it."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import weakref

import pytest
from mitmproxy.connection import Client, Server
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers.http._http2 import Http2Client, Http2Server

from sidecar.dataplane.detect import Kind
from sidecar.inspect.h2_state import BoundedH2
from sidecar.inspect.http2 import BoundedClient, BoundedServer
from sidecar.inspect.options import LayerOptions
from sidecar.inspect.settings import Limits
from tests.sidecar.inspect.connection import rule

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
#: Half a head: its length says that there are 4,000 bytes of it.
HALF = (4000).to_bytes(3) + b"\1\4" + (1).to_bytes(4) + b"\x82\x84"
POSTED = b"POST /ok HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000\r\n\r\nx"
ASKED = b"GET /ok HTTP/1.1\r\nHost: web\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
HELD = 50


def halves():
    context = Context(
        Client(peername=("192.0.2.1", 1), sockname=("192.0.2.2", 2), timestamp_start=0.0), LayerOptions(None)
    )
    context.server = Server(address=("192.0.2.2", 2))
    return context


@pytest.mark.parametrize(("ours", "theirs"), [(BoundedServer, Http2Server), (BoundedClient, Http2Client)])
def test_our_halves_have_all_that_mitmproxys_have(ours, theirs):
    mine, upstream = ours(halves(), Limits()), theirs(halves())
    assert vars(upstream).keys() <= vars(mine).keys()
    assert vars(upstream.h2_conn).keys() <= vars(mine.h2_conn).keys()
    assert mine.conn is (mine.context.client if ours is BoundedServer else mine.context.server)
    assert mine.h2_conn.local_settings.enable_push == upstream.h2_conn.local_settings.enable_push


def test_settings_and_tables_that_are_kept_in_lists_do_what_queues_do():
    connection = BoundedH2(BoundedServer.h2_conf, Limits())
    settings = connection.remote_settings
    settings.initial_window_size = 1000
    assert settings.initial_window_size == 65_535
    changed = settings.acknowledge()
    assert [(change.original_value, change.new_value) for change in changed.values()] == [(65_535, 1000)]
    assert settings.initial_window_size == 1000
    table = connection.decoder.header_table
    table.add(b"a", b"1")
    table.add(b"b", b"2")
    first = table.STATIC_TABLE_LENGTH + 1
    assert [table.get_by_index(first), table.get_by_index(first + 1)] == [(b"b", b"2"), (b"a", b"1")]
    table.maxsize = 40
    assert table.get_by_index(first) == (b"b", b"2")
    assert len(table.dynamic_entries) == 1


@pytest.mark.parametrize(
    ("kind", "said", "most"), [(Kind.HTTP2, PREFACE + SETTINGS + HALF, 20), (Kind.HTTP1, POSTED, 16)]
)
async def test_a_client_that_holds_on_takes_little(world, kind, said, most):
    w = world(rule())
    w.connect(kind).client.give(said)  # whatever is made with the first
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        held = [w.connect(kind) for _ in range(HELD)]
        for one in held:
            one.client.give(said)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown / HELD < most * 1024, "KiB of ours for each of them, and this test's own for both its ends"


def ask_and_answer(one):
    one.client.give(ASKED)
    one.application.give(ANSWER)


@pytest.mark.parametrize(
    ("kind", "speak"),
    [
        (Kind.HTTP2, lambda one: one.client.give(PREFACE + SETTINGS + HALF)),
        (Kind.HTTP1, lambda one: one.client.give(POSTED)),
        (Kind.HTTP1, ask_and_answer),
    ],
    ids=["half a head of HTTP/2", "half a body", "a request and its answer"],
)
async def test_a_connection_that_ended_is_free_without_the_collector(world, kind, speak):
    w = world(rule())
    one = w.connect(kind)
    speak(one)
    kept = [weakref.ref(each) for each in (one.lane.layers, one.lane.layers.client, *one.lane.layers.streams.values())]
    if one.lane.layers.server is not None:
        kept.append(weakref.ref(one.lane.layers.server))
    gc.collect()
    gc.disable()
    try:
        one.lane.reset()
        one.client.lane = one.lane = None
        if one.server is not None:
            one.server.lane = None
        async with asyncio.timeout(60):
            while any(ref() is not None for ref in kept):  # noqa: ASYNC110  # nobody tells of it
                await asyncio.sleep(0)
    finally:
        gc.enable()
