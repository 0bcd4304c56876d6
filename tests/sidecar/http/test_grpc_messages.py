"""Messages of gRPC are counted wherever they are cut, and cost nothing but their bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.grpc_messages import Messages, is_grpc
from tests.sidecar.http.grpc_bodies import BODIES, PLACES, begun, cut, message


@pytest.mark.parametrize(
    ("content_type", "is_one"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc+json", True),
        (b"application/grpc;charset=utf-8", True),
        (b"application/grpc-web", False),
        (b"application/grpc-web+proto", False),
        (b"application/grpc-web-text", False),
        (b"application/grpcx", False),
        (b"application/json", False),
        (b"text/plain; application/grpc", False),
        (b"", False),
    ],
)
def test_what_is_grpc(content_type, is_one):
    assert is_grpc(content_type) is is_one


@pytest.mark.parametrize(
    ("pieces", "counts"),
    [
        ([message(b"abc")], [1]),
        ([message(b"abc") * 3], [3]),
        ([message(b"") * 1000], [1000]),
        ([message(b"abc", compressed=True) + message(b"x" * 70_000)], [2]),
        ([b"\0", b"\0\0", b"\0\3", b"ab", b"c"], [1, 0, 0, 0, 0]),
        ([b"\0\0\0\0\3abc\0", b"\0\0\0\1", b"z\0"], [2, 0, 1]),
        ([b"", b"\0\0\0\0\1", b"", b"a", b""], [0, 1, 0, 0, 0]),
        ([message(b"x" * 40)[:20], message(b"x" * 40)[20:] + message(b"")], [1, 1]),
    ],
)
def test_a_message_counts_with_its_first_byte(pieces, counts):
    messages = Messages()
    assert [messages.take(piece, 0, len(piece)) for piece in pieces] == counts


def test_a_length_that_lies_costs_nothing():
    messages = Messages()
    assert messages.take(b"\0\xff\xff\xff\xff", 0, 5) == 1
    for _ in range(100):
        assert messages.take(message(b""), 0, 5) == 0, "all of that is said to be one message"
    assert all(isinstance(getattr(messages, name), int) for name in Messages.__slots__)
    assert messages._left == 0xFFFFFFFF - 500


@given(BODIES, PLACES, st.booleans(), st.binary(max_size=9))
def test_however_a_body_is_cut_the_count_is_the_same(body, places, viewed, around):
    messages = Messages()
    pieces = cut(body, places)
    counted = 0
    for index, piece in enumerate(pieces):
        data, at = around + piece + around, len(around)
        counted += messages.take(memoryview(data) if viewed else data, at, at + len(piece))
        assert counted == begun(b"".join(pieces[: index + 1])), "at every moment"
    assert messages._prefix < 1 << 40
    assert 0 <= messages._left <= 0xFFFFFFFF
