"""Header blocks, against the encoder of the hpack package."""

from __future__ import annotations

import hpack
import pytest
from hpack.huffman_constants import REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http import hpack as ours
from sidecar.http import huffman
from sidecar.http.errors import Malformed
from sidecar.http.hpack import HeaderReader

NAME = st.sampled_from([b":method", b":path", b"te", b"x-a", b"grpc-timeout", b"cookie"]) | st.binary(max_size=20)
VALUE = st.sampled_from([b"GET", b"/", b"trailers", b"1S", b""]) | st.binary(max_size=60)
BLOCKS = st.lists(
    st.tuples(
        st.lists(st.tuples(NAME, VALUE, st.booleans()), max_size=12),
        st.booleans(),
        st.sampled_from([None, None, None, 0, 100, 4096]),
    ),
    max_size=12,
)


def test_the_tables_are_those_of_the_standard():
    assert ours._STATIC == HeaderTable.STATIC_TABLE
    assert [*huffman._LENGTHS, huffman._END_LENGTH] == list(REQUEST_CODES_LENGTH)


@given(BLOCKS)
def test_what_was_encoded_is_read(blocks):
    encoder = hpack.Encoder()
    reader = HeaderReader(1 << 20, 65_536)
    for headers, packed, table in blocks:
        if table is not None:
            encoder.header_table_size = table
        block = encoder.encode(
            [
                hpack.NeverIndexedHeaderTuple(name, value) if secret else hpack.HeaderTuple(name, value)
                for name, value, secret in headers
            ],
            huffman=packed,
        )
        assert reader.read(block) == tuple((name, value) for name, value, _ in headers)


def test_a_repeated_block_is_read_by_the_table_as_it_is():
    reader = HeaderReader(65_536, 65_536)
    encoder = hpack.Encoder()
    reader.read(encoder.encode([(b"x-a", b"1")]))
    newest = b"\xbe"
    assert reader.read(newest) == ((b"x-a", b"1"),)
    assert reader.read(newest) == ((b"x-a", b"1"),)
    reader.read(encoder.encode([(b"x-a", b"2")]))
    assert reader.read(newest) == ((b"x-a", b"2"),)


BAD = {
    b"\x80": "hpack-index",
    b"\xbe": "hpack-index",
    b"\xff\xff\xff\xff\xff\xff": "hpack-integer",
    b"\xff": "hpack-integer",
    b"\x40": "hpack-string",
    b"\x40\x05ab": "hpack-string",
    b"\x40\x01a": "hpack-string",
    b"\x40\x81\x00\x00": "huffman",
    b"\x40\x84\xff\xff\xff\xff\x00": "huffman",
    b"\x3f\xe1\xff\x7f": "hpack-table",
    b"\x82\x20": "hpack-table",
}


@pytest.mark.parametrize(("block", "reason"), BAD.items())
def test_what_is_no_block_is_refused(block, reason):
    with pytest.raises(Malformed, match=reason):
        HeaderReader(65_536, 65_536).read(block)


def test_a_bomb_is_not_unpacked():
    reader = HeaderReader(65_536, 65_536)
    reader.read(hpack.Encoder().encode([(b"x", b"a" * 3000)]))
    with pytest.raises(Malformed, match="hpack-size"):
        reader.read(b"\xbe" * 10_000)


def test_the_table_is_bounded():
    reader = HeaderReader(1 << 20, 65_536)
    for number in range(1000):
        reader.read(b"\x40\x01x\x7f\x00" + b"%0127d" % number)
    assert reader._size <= 4096
    assert reader.read(b"\xbe") == ((b"x", b"%0127d" % 999),)
    assert len(reader._known) <= 64


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(block):
    theirs = hpack.Decoder(max_header_list_size=1 << 20)
    try:
        read = HeaderReader(1 << 20, 65_536).read(block)
    except Malformed:
        return
    try:
        expected = theirs.decode(block, raw=True)
    except hpack.HPACKError:
        return  # stricter about sizes of tables
    assert read == tuple((bytes(name), bytes(value)) for name, value in expected)
