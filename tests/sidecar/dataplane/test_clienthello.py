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
    ("hello", "alpn", "name"),
    [
        (HELLO, (b"hedgerow/1",), ""),
        (real(alpn=["h2", "hedgerow/1"], server_name="cart.shop"), (b"h2", b"hedgerow/1"), "cart.shop"),
        (real(), (), ""),
        (real(least=ssl.TLSVersion.TLSv1_3, alpn=["x" * 255]), (b"x" * 255,), ""),
        (real(most=ssl.TLSVersion.TLSv1_2, alpn=["h2"], server_name="Cart.Shop"), (b"h2",), "cart.shop"),
        (real(server_name="xn--bcher-kva.example"), (), "xn--bcher-kva.example"),
        (real(server_name="192.0.2.1"), (), ""),  # OpenSSL sends none for an address
    ],
)
def test_a_real_hello_gives_its_protocols_and_its_host(hello, alpn, name):
    assert read(hello) == ClientHello(alpn, name)


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


def server_name(*entries: tuple[int, bytes], rest: bytes = b"") -> bytes:
    """A hello with a server_name extension (RFC 6066 section 3)."""
    names = b"".join(bytes([kind]) + len(name).to_bytes(2) + name for kind, name in entries)
    content = len(names).to_bytes(2) + names + rest
    return with_extensions(b"\x00\x00" + len(content).to_bytes(2) + content)


@pytest.mark.parametrize(
    ("name", "host"),
    [
        (b"outbound_.80_._.cart.shop.svc.cluster.local", "outbound_.80_._.cart.shop.svc.cluster.local"),
        (b"API.Example.COM", "api.example.com"),
        (b"localhost", "localhost"),
        (b"a" * 63 + b".example", "a" * 63 + ".example"),
        (b".".join([b"a" * 62] * 4), ".".join(["a" * 62] * 4)),
        # no names of hosts: nothing may be allowed by them
        (b"192.0.2.1", ""),
        (b"2001:db8::1", ""),
        (b"1", ""),
        (b"example.com.", ""),
        (b".example.com", ""),
        (b"a..b", ""),
        (b"a" * 64 + b".example", ""),
        (b".".join([b"a" * 62] * 5), ""),
        (b"exa mple.com", ""),
        (b"example.com\x00.evil.test", ""),
        (b"example.com\n", ""),
        ("b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example".encode(), ""),
        (b"*.example.com", ""),
        (b"a/b", ""),
    ],
)
def test_a_server_name_is_a_name_or_nothing(name, host):
    assert read(server_name((0, name))) == ClientHello((), host)


@pytest.mark.parametrize(
    "hello",
    [
        server_name((0, b"a.example"), (0, b"b.example")),
        server_name((0, b"a.example"), (1, b"b.example")),
        server_name((1, b"a.example")),
        server_name((0, b"")),
        server_name(),
        server_name((0, b"a.example"), rest=b"\x00"),
        with_extensions(b"\x00\x00\x00\x00"),
        with_extensions(b"\x00\x00\x00\x06\x00\x04\x00\x00\x05a"),
    ],
)
def test_a_server_name_that_could_be_read_in_two_ways_is_no_hello(hello):
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


def test_a_record_that_promises_more_than_the_hello_is_none_however_it_is_cut():
    """Found by fuzzing: the hello was complete before its record was, and counted until the next byte came."""
    longer = HELLO[:3] + (len(HELLO) - 5 + 100).to_bytes(2) + HELLO[5:]
    for end in range(9, len(longer) + 1):
        assert read(longer[:end]) is Reading.OTHER
    assert read(longer + bytes(100)) is Reading.OTHER
