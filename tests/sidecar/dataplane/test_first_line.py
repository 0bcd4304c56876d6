"""First lines that are read on: which of them turn out to be requests, in whatever pieces they come."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.dataplane.detect import Kind, detect
from sidecar.dataplane.first_line import _SPACE, BLANK, FirstLine, is_open, is_request

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
    b"GET\x1c/\x1fHTTP/1.1\r\n",  # what Python takes for white space in Latin-1, and with it its http.server
    b"\x0c\xa0GET\x85/\xa0HTTP/1.1\x1e\r\n",
    b"\x1dGET\xa0/\n",
    b"GET \x01? HTTP/1.1\r\n",
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


WORDS = [
    *(
        b"G",
        b"GET",
        b"GET /",
        b"GET\r",
        b"/",
        b" ",
        b"\t",
        b"\r",
        b"\v",
        b"\x1c",
        b"\xa0",
        b"\r\r",
        b"\n",
        b"\r\n",
        b"x",
        b" " * 45,
        b"y" * 50,
    ),
    *(b"HTTP/1.1", b" HTTP/1.", b"HTT", b"P/2.0", b"1", b"0", b" http/1.0\r"),
]


def slowly(data: bytes) -> bool | None:
    """What :class:`FirstLine` promises, of all that came at once: every end of a line is looked at."""
    data = data.lstrip(BLANK)
    for at, byte in enumerate(data):
        if byte in b"\r\n" and is_request(data[:at].rstrip(_SPACE)):
            return True
        if byte == 0x0A:
            return False
    return None


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(b"".join), min_size=1, max_size=6))
def test_every_end_in_every_piece_is_looked_at(pieces: list[bytes]) -> None:
    line, said = FirstLine(), b"G"
    answer = line.take(said)
    for piece in pieces:
        if answer is None:
            answer = line.take(piece)
            said += piece
    assert answer == slowly(said)


@pytest.mark.parametrize(
    "line", [b"\r", b"\xa0", b"\x1cx", b"\rx", b" x", b" HTTP/1", b"GET\r", b"\t\v", b" HTTP/1.1\t"]
)
def test_time_is_taken_for_what_comes_and_not_for_what_came(line: bytes) -> None:
    """One read of a client that sends nothing else: not one step of Python for each byte of it."""
    steps = 0

    def count(frame: FrameType, event: str, argument: object) -> Callable[..., object]:
        nonlocal steps
        steps += 1
        return count

    reader = FirstLine()
    before = sys.gettrace()
    sys.settrace(count)
    try:
        for _ in range(3):
            assert reader.take(b"x" + line * (65_536 // len(line))) is None
    finally:
        sys.settrace(before)
    assert steps < 150


def test_little_is_kept_of_a_line_without_end() -> None:
    line = FirstLine()
    for _ in range(100):
        assert line.take(b"x" * 65_536) is None
    assert len(line._tail) + len(line._head) < 100
    assert line.take(b" HTTP/1.1\n")
