"""What the first bytes of a client are taken for."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.dataplane.detect import LONGEST_LINE, PREFACE, Detection, Kind, detect, unfinished


def hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="cart.shop")
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GET / HTTP/1.1\r\n", Kind.HTTP1),
        (b"GET / HTTP/1.0\n", Kind.HTTP1),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Kind.HTTP1),
        (b"GET http://a.example/ HTTP/1.1\r\n", Kind.HTTP1),
        (b"VERSION-CONTROL /x HTTP/1.1\r\n", Kind.HTTP1),
        (PREFACE, Kind.HTTP2),
        (PREFACE + bytes(9), Kind.HTTP2),
        (hello(), Kind.TLS),
        (b"", Kind.MORE),
        (b"G", Kind.MORE),
        (b"GET /", Kind.MORE),
        (b"GET / HTTP/1.1\r", Kind.MORE),
        (PREFACE[:23], Kind.MORE),
        (b"\x16", Kind.MORE),
        (b"\x16\x03", Kind.MORE),
        (b"\x16\x01", Kind.OTHER),
        (b"\x16\x04\x01", Kind.OTHER),
        (b"get / HTTP/1.1\r\n", Kind.HTTP1),  # for the lane to refuse: a lenient server would take it
        (b"GET  / HTTP/1.1\r\n", Kind.HTTP1),
        (b"GET / a HTTP/1.1\r\n", Kind.HTTP1),
        (b"GET / HTTP/2.0\r\n", Kind.HTTP1),
        (b"\r\nGET / HTTP/1.1\r\n", Kind.HTTP1),
        (b" GET / HTTP/1.1\r\n", Kind.HTTP1),
        (b"GET\t/\tHTTP/1.1\n", Kind.HTTP1),
        (b"\r\n", Kind.MORE),
        (b"GET /\r\n", Kind.HTTP1),  # HTTP/0.9, behind which Python's server reads headers
        (b"\r\n" * 1000 + b"GET / HTTP/1.1\r\n", Kind.HTTP1),
        (b"A" * 40 + b" / HTTP/1.1\r\n", Kind.HTTP1),
        (b"PING\r\n", Kind.OTHER),
        (b"hello", Kind.OTHER),
        (b"get", Kind.OTHER),
        (b"GET key\r\n", Kind.OTHER),
        (b"*1\r\n$4\r\nPING\r\n", Kind.OTHER),
        (b"EHLO front\r\n", Kind.OTHER),
        (b"SSH-2.0-OpenSSH_9\r\n", Kind.OTHER),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Kind.OTHER),  # PostgreSQL's SSLRequest
        (b"GET /" + b"a" * LONGEST_LINE, Kind.HTTP1),  # the lane knows how long is too long
    ],
)
def test_first_bytes(data: bytes, kind: Kind) -> None:
    assert detect(data) is kind


@given(
    st.sampled_from([b"GET /cart/7 HTTP/1.1\r\nHost: a\r\n\r\n", PREFACE + b"\x00", b"PING\r\n", hello()]), st.data()
)
def test_a_longer_look_never_takes_an_answer_back(data: bytes, chosen: st.DataObject) -> None:
    final = detect(data)
    cut = chosen.draw(st.integers(0, len(data)))
    assert detect(data[:cut]) in (Kind.MORE, final)


@given(st.binary(max_size=64))
def test_any_bytes_have_an_answer(data: bytes) -> None:
    assert detect(data) in Kind


def test_a_port_whose_clients_wait_again_and_again_is_one_whose_server_speaks_first() -> None:
    seen = Detection()
    for _ in range(2):
        seen.greeted(25, 1.0)
    assert not seen.server_first(25, 1.0)
    seen.greeted(25, 2.0)
    assert seen.server_first(25, 2.0)
    assert not seen.server_first(26, 2.0)


def test_one_client_that_speaks_outweighs_all_greetings() -> None:
    seen = Detection()
    for _ in range(5):
        seen.greeted(80, 1.0)
    assert seen.server_first(80, 1.0)
    seen.spoke(80)
    for _ in range(5):
        assert not seen.server_first(80, 2.0)
        seen.greeted(80, 2.0)


def test_silence_alone_is_no_reason_to_look_less() -> None:
    seen = Detection()
    for _ in range(10):
        seen.timed_out()
    assert not seen.server_first(80, 1.0)
    assert seen.timeouts == 10


def test_greetings_are_believed_for_a_minute() -> None:
    seen = Detection()
    for _ in range(3):
        seen.greeted(25, 1.0)
    assert seen.server_first(25, 60.0)
    assert not seen.server_first(25, 62.0)
    seen.greeted(25, 62.0)
    assert not seen.server_first(25, 62.0)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GET /", Kind.HTTP1),
        (b"\r\nPOST /x HTT", Kind.HTTP1),
        (b"PING", Kind.OTHER),
        (b"GET ", Kind.OTHER),
        (b"\x16", Kind.OTHER),
    ],
)
def test_half_a_request_is_left_to_the_lane(data: bytes, kind: Kind) -> None:
    assert unfinished(data) is kind
