"""The framing of chunked bodies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.chunks import ChunkReader
from sidecar.http.errors import Malformed

GOOD = [
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"00005\r\nhello\r\n1\r\n!\r\n000\r\n\r\n",
    b"A\r\n0123456789\r\n0\r\n\r\n",
    b"2\r\n\r\n\r\n0\r\n\r\n",
    b"1\r\na\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n",
]
#: Byte sequences that some server reads differently than another.
REFUSED = {
    b"5;a=b\r\nhello\r\n0\r\n\r\n": "chunk-extension",
    b"5;\nx\r\nhello\r\n0\r\n\r\n": "chunk-size",
    b"5 \r\nhello\r\n0\r\n\r\n": "chunk-",
    b" 5\r\nhello\r\n0\r\n\r\n": "chunk-size",
    b"5\nhello\r\n0\r\n\r\n": "chunk-size",
    b"5\r\nhello\n0\r\n\r\n": "chunk-end",
    b"5\r\nhelloX\r\n0\r\n\r\n": "chunk-end",
    b"5\r\nhello0\r\n\r\n": "chunk-end",
    b"0x5\r\nhello\r\n0\r\n\r\n": "chunk-size",
    b"+5\r\nhello\r\n0\r\n\r\n": "chunk-size",
    b"-1\r\n\r\n": "chunk-size",
    b"\r\n0\r\n\r\n": "chunk-size",
    b"10000000000000005\r\nhello\r\n": "chunk-size",
    b"g\r\n": "chunk-size",
    b"0\r\nContent-Length: 1\r\n\r\n": "trailers",
    b"0\r\nX-Forwarded-Client-Cert: a\r\n\r\n": "trailers",
    b"0\r\nx_hedgerow_a: a\r\n\r\n": "trailers",
    b"0\r\nX-HTTP-Method-Override: DELETE\r\n\r\n": "trailers",
    b"0\r\nA: b\r\nx.original.url: /admin\r\n\r\n": "trailers",
    b"0\r\nA : b\r\n\r\n": "trailers",
    b"0\r\nA: b\n\r\n\r\n": "trailers",
    b"0\r\nA: b\r\n c\r\n\r\n": "trailers",
    b"0\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n": "trailers",
}


def feed(reader, data, cuts=()):
    """Give ``data`` in pieces; answers with the good part."""
    good, held, start = b"", b"", 0
    for cut in [*sorted(cuts), len(data)]:
        piece = held + data[start:cut]
        start = cut
        end = reader.take(piece, 0)
        good += piece[:end]
        held = piece[end:]
        if reader.done:
            break
    return good


@pytest.mark.parametrize("data", GOOD)
def test_a_body_ends_where_it_ends(data):
    for cut in range(len(data) + 1):
        reader = ChunkReader(1000)
        assert feed(reader, data + b"GET /", (cut,)) == data
        assert reader.done


@pytest.mark.parametrize(("data", "reason"), REFUSED.items())
def test_what_is_read_differently_is_refused_at_every_cut(data, reason):
    for cut in range(len(data) + 1):
        reader = ChunkReader(1000)
        with pytest.raises(Malformed, match=reason.partition("-")[0]):
            feed(reader, data + b"\r\n" * 4096, (cut,))


def test_extensions_of_a_response_pass():
    reader = ChunkReader(1000, response=True)
    data = b'5 ;a="b"\r\nhello\r\n0\r\n\r\n'
    assert feed(reader, data) == data
    assert reader.done


def test_trailers_are_bounded():
    with pytest.raises(Malformed, match="trailers-too-large"):
        feed(ChunkReader(50), b"0\r\nA: " + b"b" * 60)
    with pytest.raises(Malformed, match="trailers-too-large"):
        feed(ChunkReader(50), b"0\r\nA: " + b"b" * 60 + b"\r\n\r\n")


@given(
    st.lists(st.binary(min_size=1, max_size=50), max_size=6),
    st.binary(max_size=10),
    st.sets(st.integers(0, 400), max_size=10),
)
def test_cuts_change_nothing(chunks, behind, cuts):
    data = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    reader = ChunkReader(1000)
    assert feed(reader, data + behind, {cut for cut in cuts if cut <= len(data)}) == data
    assert reader.done


@given(st.binary(max_size=80), st.integers(0, 80))
def test_any_bytes_are_read_or_refused_alike(data, cut):
    results = []
    for cuts in ((), (min(cut, len(data)),)):
        reader = ChunkReader(100)
        try:
            results.append((feed(reader, data, cuts), reader.done))
        except Malformed:
            results.append(None)
    assert results[0] == results[1]
