"""Texts that HPACK has packed, through the lane."""

from __future__ import annotations

import h2.events
import hpack.hpack
import pytest

from sidecar.inspect import fields
from tests.sidecar.inspect.connection import Kind, rule
from tests.sidecar.inspect.http2_ends import Pair, frame

GET = "GET /cart/{id}"


@pytest.mark.parametrize("text", ["0" * 25_000, "/cart?x=1&y=%7e" * 900, "short"])
async def test_a_packed_text_arrives_however_long_it_is(world, text):
    pair = Pair(world(rule(GET)).connect(Kind.HTTP2))  # its client packs what it sends
    pair.request("/cart/17", fields=[("x-text", text)])
    (asked,) = pair.application.all(h2.events.RequestReceived)
    assert dict(asked.headers)["x-text"] == text


@pytest.mark.parametrize("packed", [b"\x81\x00", b"\x84\xff\xff\xff\xff", b"\xff\x81\x02" + b"\xff" * 384])
async def test_what_is_no_packed_text_ends_the_connection(world, packed):
    c = world(rule(GET)).connect(Kind.HTTP2)
    pair = Pair(c)
    c.client.give(frame(1, 5, 1, b"\x82\x86\x84\x41\x01a\x40\x01x" + packed))
    assert pair.client.leg.read().endswith(b"Error decoding header block: Invalid Huffman string")  # in a GOAWAY
    assert c.dials == 0


def test_packed_texts_are_read_as_the_observed_lane_reads_them():
    assert hpack.hpack.decode_huffman is fields.unpacked
