"""Reading client hellos: real ones, cut ones, damaged ones."""

from __future__ import annotations

import random
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.dataplane.clienthello import LIMIT, RECORDS, ClientHello, Reading, read


def real(*, alpn=(), server_name=None, least=None, most=None):
    """What the ssl module sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if least is not None:
        context.minimum_version = least
    if most is not None:
        context.maximum_version = most
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


HELLO = real(alpn=["hedgerow/1"])


@pytest.mark.parametrize(
    ("hello", "alpn"),
    [
        (HELLO, (b"hedgerow/1",)),
        (real(alpn=["h2", "http/1.1", "hedgerow/1"], server_name="cart.shop"), (b"h2", b"http/1.1", b"hedgerow/1")),
        (real(), ()),
        (real(least=ssl.TLSVersion.TLSv1_3, alpn=["x" * 255]), (b"x" * 255,)),
        (real(most=ssl.TLSVersion.TLSv1_2, alpn=["h2"]), (b"h2",)),
    ],
)
def test_a_real_hello_gives_its_protocols(hello, alpn):
    assert read(hello) == ClientHello(alpn)


@pytest.mark.parametrize("hello", [HELLO, real(alpn=["h2", "hedgerow/1"], server_name="cart.shop")])
def test_a_hello_cut_anywhere_wants_more(hello):
    for size in range(len(hello)):
        assert read(hello[:size]) is Reading.MORE, size


def records(message: bytes, *sizes: int) -> bytes:
    data = b""
    for size in sizes:
        part, message = message[:size], message[size:]
        data += b"\x16\x03\x01" + len(part).to_bytes(2) + part
    return data + b"\x16\x03\x01" + len(message).to_bytes(2) + message


@pytest.mark.parametrize("sizes", [(1,), (3,), (4,), (100,), (1, 1, 1, 1, 1), (50, 50, 50)])
def test_a_hello_over_several_records_is_read_and_wants_more_while_it_is_cut(sizes):
    data = records(HELLO[5:], *sizes)
    assert read(data) == ClientHello((b"hedgerow/1",))
    for size in range(len(data)):
        assert read(data[:size]) is Reading.MORE, size


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x00",
        b"\x15\x03\x01\x00\x02",
        b"\x16\x02",
        b"\x16\x03\x04",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x40\x01",
        b"\x16\x03\x01\x50",
        b"\x16\x03\x01\x00\x05\x02",
        b"\x16\x03\x01\x00\x10\x01\xff\xff\xff",
    ],
)
def test_what_can_not_become_a_hello_is_known_at_once(data):
    assert read(data) is Reading.OTHER


def body(hello: bytes) -> bytearray:
    return bytearray(hello[9:])


def wrap(content: bytes) -> bytes:
    message = b"\x01" + len(content).to_bytes(3) + content
    return b"\x16\x03\x01" + len(message).to_bytes(2) + message


def with_extensions(extensions: bytes) -> bytes:
    head = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    return wrap(head + len(extensions).to_bytes(2) + extensions)


ALPN = b"\x00\x10\x00\x0d\x00\x0b\x0ahedgerow/1"


def test_a_hello_made_by_hand_is_read():
    assert read(with_extensions(ALPN)) == ClientHello((b"hedgerow/1",))


@pytest.mark.parametrize(
    "hello",
    [
        with_extensions(ALPN + ALPN),
        with_extensions(ALPN + b"\x00"),
        with_extensions(b"\x00\x10\x00\x0d\x00\x0c\x0ahedgerow/1"),
        with_extensions(b"\x00\x10\x00\x0d\x00\x0b\x0bhedgerow/1"),
        with_extensions(b"\x00\x10\x00\x0e\x00\x0b\x0ahedgerow/1\x00"),
        with_extensions(b"\x00\x10\x00\x02\x00\x00"),
        with_extensions(b"\x00\x10\x00\x03\x00\x01\x00"),
        wrap(b"\x03\x02" + bytes(32) + b"\x00\x00\x02\x13\x01\x01\x00"),
        wrap(b"\x03\x03" + bytes(32) + b"\x21" + bytes(33) + b"\x00\x02\x13\x01\x01\x00"),
        wrap(b"\x03\x03" + bytes(32) + b"\x00\x00\x03\x13\x01\x00\x01\x00"),
        wrap(b"\x03\x03" + bytes(32) + b"\x00\x00\x00\x01\x00"),
        wrap(b"\x03\x03" + bytes(32) + b"\x00\x00\x02\x13\x01\x00"),
        wrap(b"\x03\x03" + bytes(32) + b"\x00\x00\x02\x13\x01\x01\x00\x00\x00\x00"),
        wrap(b"\x03\x03"),
        wrap(b""),
    ],
)
def test_lengths_that_contradict_each_other_are_no_hello(hello):
    assert read(hello) is Reading.OTHER


def test_bytes_behind_a_hello_are_no_hello():
    assert read(HELLO[:3] + (len(HELLO) - 5 + 1).to_bytes(2) + HELLO[5:] + b"\x00") is Reading.OTHER


def test_tls_1_2_without_extensions_is_a_hello_without_protocols():
    assert read(wrap(b"\x03\x03" + bytes(32) + b"\x00\x00\x02\x13\x01\x01\x00")) == ClientHello(())


def test_a_hello_that_never_ends_is_given_up():
    assert read((b"\x16\x03\x01\x3f\xff" + b"\x01\x00\x3f\xff" + bytes(LIMIT))[:LIMIT]) is Reading.OTHER
    start = b"\x16\x03\x01\x00\x04\x01\x00\x3f\x00"
    crumbs = b"\x16\x03\x01\x00\x01\x00"
    assert read(start + crumbs * (RECORDS - 2)) is Reading.MORE
    assert read(start + crumbs * RECORDS) is Reading.OTHER


@given(st.binary(max_size=600))
def test_random_bytes_never_raise(data):
    read(data)
    read(b"\x16\x03\x01" + data)


def test_a_damaged_hello_never_raises_and_never_offers_what_was_not_there():
    chance = random.Random(7)
    for _ in range(20_000):
        damaged = bytearray(HELLO)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        reading = read(bytes(damaged))
        assert isinstance(reading, Reading | ClientHello)
        if isinstance(reading, ClientHello) and b"hedgerow/1" in reading.alpn:
            assert b"hedgerow/1" in damaged
