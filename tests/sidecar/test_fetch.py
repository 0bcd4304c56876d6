"""The client believes nothing that an application answers, and holds no more of it than it was told to."""

from __future__ import annotations

import pytest

from sidecar.fetch import MAX_HEAD, FetchFailed, fetch
from tests.sidecar.http_client import answer, application, free_port

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def get(data, limit=100):
    async with application(lambda head: data) as (port, _):
        return await fetch("127.0.0.1", port, "/", [("Host", "x")], limit=limit)


@pytest.mark.parametrize(
    ("data", "body", "whole"),
    [
        (answer(body=b"hello"), b"hello", True),
        (answer(body=b"h" * 100), b"h" * 100, True),
        (answer(body=b"h" * 101), b"h" * 100, False),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end", True),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"h" * 500, b"h" * 100, False),
        (CHUNKED + b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n", b"hello world", True),
        (CHUNKED + b"40\r\n" + b"h" * 64 + b"\r\n40\r\n" + b"h" * 64 + b"\r\n0\r\n\r\n", b"h" * 100, False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(body=b"x"), b"x", True),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b"", True),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", b"", True),
    ],
)
async def test_bodies(data, body, whole):
    fetched = await get(data)
    assert (fetched.body, fetched.whole) == (body, whole)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not an HTTP"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "not an HTTP"),
        (b"HTTP/1.1 99 X\r\n\r\n", "not an HTTP"),
        (b"HTTP/1.1 200 OK\r\nbroken line\r\n\r\n", "broken header line"),
        (b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n", "broken header line"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", "broken Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "broke off"),
        (b"HTTP/1.1 200 OK\r\n", "broke off"),
        (b"", "broke off"),
        (CHUNKED + b"zz\r\n", "broken chunk"),
        (CHUNKED + b"5\r\nhelloXX", "broken chunk"),
        (CHUNKED + b"1" * 70_000, "broken chunk"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, "too many interim answers"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MAX_HEAD, "a head of more than"),
    ],
)
async def test_what_is_no_answer_is_refused(data, why):
    with pytest.raises(FetchFailed, match=why):
        await get(data)


async def test_the_request_is_what_it_was_told_to_be():
    async with application(lambda head: answer()) as (port, heads):
        await fetch("127.0.0.1", port, "/a?b=c", [("Host", "x:1"), ("A", "b")], limit=1)
    assert heads == ["GET /a?b=c HTTP/1.1\r\nHost: x:1\r\nA: b\r\nConnection: close\r\n\r\n"]


async def test_nobody_there():
    with pytest.raises(FetchFailed, match="no connection to port"):
        await fetch("127.0.0.1", free_port(), "/", [], limit=1)
