"""First lines that are read on: which of them turn out to be requests, in whatever pieces they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.dataplane.detect import Kind, detect
from sidecar.dataplane.first_line import FirstLine, is_open

REQUESTS = [
    b"get / HTTP/1.1\r\n",
    b"G1 /x HTTP/1.0\n",
    b"GET HTTP://cart/ HTTP/1.1\r\n",
    b"CONNECT cart:80 HTTP/1.1\r\n",
    b"-GET / http/1.1\r\n",
    b"A" * 300 + b" / HTTP/1.1\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n",
    b"GET / HTTP/1.1" + b" " * 500 + b"\r\n",
    b"GET\t/\x0bHTTP/1.1\n",
    b"GET\r/\rHTTP/1.1\r\n",
    b"GET / HTTP/1.1\rHost: a\r\r",
    b"\r\n" * 100 + b"GET / HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET " + b" " * 200 + b"/x\r\nHost: a\r\n",  # HTTP/0.9, behind which some servers read headers
]
OTHERS = [
    b"PING\r\n",
    b"EHLO front\r\n",
    b"SSH-2.0-OpenSSH_9\r\n",
    b"set key 0 0 5\r\nGET / HTTP/1.1\r\n",  # only the first line counts
    b'web-1 "GET / HTTP/1.1" 200 17\n',
    b"HELO HTTP/1.1x\n",
    b"helloHTTP/1.1\n",
    b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    b"\x3a\0\0\0 GET / HTTP/1.1\r\n",
    b'{"message": "GET / HTTP/1.1\n',
    b"<?xml version='1.0'?> HTTP/1.1\n",
]


def read(data: bytes, cuts: list[int]) -> bool | None:
    line, answer = FirstLine(), None
    for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        answer = line.take(data[begin:end]) if begin < end else answer
        if answer is not None:
            break
    return answer


@given(st.sampled_from(REQUESTS), st.data())
def test_a_request_is_known_in_all_pieces(data: bytes, chosen: st.DataObject) -> None:
    cuts = chosen.draw(st.lists(st.integers(0, min(len(data), 400)), max_size=12).map(sorted))
    assert read(data, cuts) is True


@given(st.sampled_from(OTHERS), st.data())
def test_and_what_is_none_is_not_taken_for_one(data: bytes, chosen: st.DataObject) -> None:
    cuts = chosen.draw(st.lists(st.integers(min(8, len(data)), len(data)), max_size=12).map(sorted))
    assert not read(data, cuts)


@given(st.sampled_from(REQUESTS), st.data())
def test_what_is_called_opaque_before_its_line_has_ended_is_read_on(data: bytes, chosen: st.DataObject) -> None:
    """No beginning of a request is opaque for good."""
    said = data[: chosen.draw(st.integers(1, min(len(data), 9000)))]
    if detect(said) is Kind.OTHER:
        assert is_open(said)


@pytest.mark.parametrize("data", [b"", b"PING\r\n", b"\x00\x01", b"\xff"])
def test_what_is_over_or_no_text_is_not_read_on(data: bytes) -> None:
    assert not is_open(data)


def test_little_is_kept_of_a_line_without_end() -> None:
    line = FirstLine()
    for _ in range(100):
        assert line.take(b"x" * 65_536) is None
    assert len(line._tail) + len(line._head) < 100
    assert line.take(b" HTTP/1.1\n")
