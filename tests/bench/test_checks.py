"""The wire is read for itself: a ServerHello, what it chose, and nothing else taken for one."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from pathlib import Path

import pytest

from bench.dataplane.checks import check_wire, payloads, server_hello
from bench.dataplane.identity import GROUP_NUMBER, SUITE_NUMBER, Identities
from bench.dataplane.launch import BenchFailed
from bench.dataplane.network import Bed, Namespace
from bench.dataplane.pairs import Pair
from certs.ca import CertificateAuthority
from certs.contexts import client_context, server_context
from certs.keys import key_from_pem


@pytest.fixture
def identities(tmp_path: Path) -> Identities:
    authority = CertificateAuthority.create("hedgerow.local", time.time())
    return Identities.make(authority, tmp_path / "identities")


def handshake(identities: Identities) -> bytes:
    """What a server of ours sends first."""
    key = key_from_pem(identities.client.key.read_bytes())
    to_server, to_client, sent, answered = (ssl.MemoryBIO() for _ in range(4))
    client = client_context(identities.client.chain_der, key, identities.bundle).wrap_bio(to_client, sent)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    key = key_from_pem(identities.server.key.read_bytes())
    server = server_context(identities.server.chain_der, key, identities.bundle).wrap_bio(
        to_server, answered, server_side=True
    )
    to_server.write(sent.read())
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    return answered.read()


def frame(port: int, data: bytes) -> bytes:
    """Ethernet, IPv4 and TCP around some bytes."""
    segment = struct.pack(">HHIIBBHHH", port, 40000, 1, 1, 5 << 4, 0x18, 1000, 0, 0) + data
    packet = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), 0, 0, 64, 6, 0, b"\x0a\0\0\2", b"\x0a\0\0\1")
    return bytes(12) + b"\x08\x00" + packet + segment


def pair(port: int) -> Pair:
    bed = Bed(1, Namespace("c", "10.0.0.1"), Namespace("s", "10.0.0.2"))
    return Pair("some", bed, {}, tls=("10.0.0.2", port))


def test_a_real_server_hello_is_read(identities: Identities) -> None:
    hello = server_hello(443, handshake(identities))
    assert hello is not None
    assert (hello.version, hello.group) == (0x0304, GROUP_NUMBER)
    assert hello.suite in (0x1301, 0x1302, 0x1303)


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 200 OK\r\n" * 4, b"\x17\x03\x03" + bytes(60), b"\x16\x03\x03\0\x50\x01" + bytes(80)]
)
def test_nothing_else_is_a_server_hello(data: bytes) -> None:
    assert server_hello(443, data) is None


def chosen(identities: Identities, suite: int) -> bytes:
    """The real hello with another suite in it."""
    data = bytearray(handshake(identities))
    at = 9 + 35 + data[9 + 34]
    data[at : at + 2] = suite.to_bytes(2)
    return bytes(data)


def test_the_pinned_suite_passes(identities: Identities) -> None:
    check_wire(pair(443), [frame(443, chosen(identities, SUITE_NUMBER)), frame(443, b"\x17\x03\x03\0\x02ab")])


def test_another_suite_is_refused(identities: Identities) -> None:
    with pytest.raises(BenchFailed, match="on the wire"):
        check_wire(pair(443), [frame(443, chosen(identities, 0x1302))])


def test_a_wire_without_a_handshake_proves_nothing(identities: Identities) -> None:
    with pytest.raises(BenchFailed, match="no TLS handshake"):
        check_wire(pair(443), [frame(444, chosen(identities, SUITE_NUMBER))])


def test_an_answer_in_the_clear_is_seen(identities: Identities) -> None:
    clear = frame(443, b"HTTP/1.1 200 OK\r\n\r\n")
    with pytest.raises(BenchFailed, match="in the clear"):
        check_wire(pair(443), [frame(443, chosen(identities, SUITE_NUMBER)), clear])


def test_only_tcp_with_bytes_is_looked_at() -> None:
    udp = bytearray(frame(443, b"data"))
    udp[23] = socket.IPPROTO_UDP
    assert list(payloads([b"", bytes(udp), frame(443, b""), frame(80, b"x")])) == [(80, b"x")]
