"""Before anything is measured: does every pair really do mutual TLS, with the suite of all the others?

For each pair: a client without a certificate is refused at the server's end, and so is one whose certificate another
authority signed, while one of ours is not; the client's end refuses a server of another authority; and the wire shows
TLS 1.3 with the pinned suite and group on every connection to the server's end, and nothing else.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.dataplane.identity import GROUP_NUMBER, SUITE, SUITE_NUMBER, Identities
from bench.dataplane.launch import BenchFailed, until
from bench.dataplane.load import DENIED_PATH, GRPC_PATH, PATH
from bench.dataplane.measures import Lane
from bench.dataplane.network import IMPOSTOR_ADDRESS, Bed
from bench.dataplane.ours import IMPOSTOR_PORT, fetch
from bench.dataplane.pairs import Pair

#: Seconds in which a server has to refuse a client that it does not know.
_REFUSAL = 5.0
#: Seconds in which a server that would refuse has refused: refusals take milliseconds.
_TAKEN = 0.5


class Impostor:
    """A TLS server on the switch whose certificate no pair may accept. It counts who came and who stayed."""

    def __init__(self, identities: Identities) -> None:
        self._context = identities.stranger.server(identities.bundle, ["hedgerow/1", "h2"])
        self._listener = socket.create_server((IMPOSTOR_ADDRESS, IMPOSTOR_PORT), backlog=64)
        self.refused: list[str] = []
        self.accepted = 0
        self._thread = threading.Thread(target=self._serve, name="impostor", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(_REFUSAL)
            try:
                with self._context.wrap_socket(connection, server_side=True) as session:
                    self.accepted += 1
                    session.recv(1)
            except (ssl.SSLError, OSError) as error:
                self.refused.append(str(error))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_REFUSAL)


def check(pair: Pair, lanes: Sequence[Lane], identities: Identities, impostor: Impostor) -> None:
    """Check a pair, before anything else goes through it.

    :param lanes: in which it has to answer
    :raises BenchFailed: naming what the pair lets through, or does not let through
    """
    for lane in lanes:
        status = fetch(pair, lane, GRPC_PATH, post=True) if lane is Lane.GRPC else fetch(pair, lane, PATH)
        if status != 200:
            raise BenchFailed(f"{pair.name}: a request through the pair gave status {status}, not 200 ({lane})")
    for each in sorted(pair.denied):
        status = fetch(pair, each, DENIED_PATH)
        if status != 403:
            raise BenchFailed(f"{pair.name}: a request that no rule allows gave status {status}, not 403")
    if pair.tls is None:
        return
    alpn = list(pair.alpn)
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname = False
    nobody.load_verify_locations(identities.roots)
    if alpn:
        nobody.set_alpn_protocols(alpn)
    if not _refused(pair, nobody, _REFUSAL):
        raise BenchFailed(f"{pair.name}: the server's end takes a client without a certificate")
    if not _refused(pair, identities.stranger.client(identities.bundle, alpn), _REFUSAL):
        raise BenchFailed(f"{pair.name}: the server's end takes a client of another authority")
    if _refused(pair, identities.client.client(identities.bundle, alpn), _TAKEN):
        raise BenchFailed(f"{pair.name}: the server's end refuses everybody, so that its refusals prove nothing")
    _check_impostor(pair, lanes[0], impostor)


def _refused(pair: Pair, context: ssl.SSLContext, seconds: float) -> bool:
    """Whether the server's end ends the session of a client that completed its part of the handshake.

    In TLS 1.3 a client is done before the server has looked at its certificate; the refusal comes as the first thing
    that is read (RFC 8446, section 4.4.2.4).
    """
    assert pair.tls is not None
    # from the switch: in the client's namespace our own capture would send it through the pair
    with socket.create_connection(pair.tls, _REFUSAL) as raw:
        raw.settimeout(seconds)
        try:
            with context.wrap_socket(raw) as session:
                if session.version() != "TLSv1.3":
                    raise BenchFailed(f"{pair.name}: the server's end speaks {session.version()}")
                while session.recv(4096):
                    pass  # HTTP/2 settings, before or without a word of ours
                return True
        except TimeoutError:
            return False
        except (ssl.SSLError, OSError):
            return True


def _check_impostor(pair: Pair, lane: Lane, impostor: Impostor) -> None:
    assert pair.impostor is not None
    before = len(impostor.refused)
    accepted = impostor.accepted
    status = fetch(pair, lane, PATH, front=pair.impostor)
    until(
        lambda: len(impostor.refused) > before or impostor.accepted > accepted,
        f"{pair.name} to go to the impostor",
    )
    if status == 200 or impostor.accepted > accepted:
        raise BenchFailed(f"{pair.name}: the client's end takes a server of another authority (status {status})")


# --- the wire

_SERVER_HELLO = 2
_KEY_SHARE, _SUPPORTED_VERSIONS = 51, 43
_ETH_P_IP = 0x0800
_SO_RCVBUFFORCE = 33


@dataclass(frozen=True, slots=True)
class Hello:
    """What a server chose (RFC 8446, section 4.1.3).

    :param version: 0x0304 is TLS 1.3
    """

    port: int
    version: int
    suite: int
    group: int


class Wire:
    """Keeps what arrives on a bed's cable at the client's end, from its creation on."""

    def __init__(self, bed: Bed) -> None:
        def listen() -> socket.socket:
            listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
            listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
            listener.setblocking(False)
            listener.bind(("eth0", _ETH_P_IP))
            return listener

        self._socket = bed.client.inside(listen)

    def take(self) -> list[bytes]:
        """The frames since the last call."""
        frames = []
        while True:
            try:
                frames.append(self._socket.recv(1 << 17))
            except BlockingIOError:
                return frames

    def close(self) -> None:
        self._socket.close()


def check_wire(pair: Pair, frames: Iterable[bytes]) -> None:
    """The server's end chose the pinned parameters whenever it was asked, and nothing there was in the clear.

    :raises BenchFailed: naming what was seen
    """
    assert pair.tls is not None
    answers = [payload for port, payload in payloads(frames) if port == pair.tls[1]]
    hellos = [hello for payload in answers if (hello := server_hello(pair.tls[1], payload)) is not None]
    if not hellos:
        raise BenchFailed(f"{pair.name}: no TLS handshake was seen on the wire")
    for hello in hellos:
        if (hello.version, hello.suite, hello.group) != (0x0304, SUITE_NUMBER, GROUP_NUMBER):
            raise BenchFailed(f"{pair.name}: {hello} on the wire, where all pairs are to use {SUITE}")
    if any(b"HTTP/1.1 " in payload for payload in answers):
        raise BenchFailed(f"{pair.name}: an answer crossed the wire in the clear")


def payloads(frames: Iterable[bytes]) -> Iterable[tuple[int, bytes]]:
    """(source port, bytes) of the TCP segments over IPv4 that carry any."""
    for frame in frames:
        if frame[12:14] != b"\x08\x00" or len(frame) < 54 or frame[23] != socket.IPPROTO_TCP:
            continue
        packet = frame[14 : 14 + int.from_bytes(frame[16:18])]
        segment = packet[(packet[0] & 0x0F) * 4 :]
        data = segment[(segment[12] >> 4) * 4 :]
        if data:
            yield int.from_bytes(segment[:2]), data


def server_hello(port: int, payload: bytes) -> Hello | None:
    """The ServerHello that a segment begins with; None for any other segment."""
    if len(payload) < 48 or payload[:2] != b"\x16\x03" or payload[5] != _SERVER_HELLO:
        return None
    body = payload[9:]
    at = 35 + body[34]
    suite = int.from_bytes(body[at : at + 2])
    at += 3
    end = at + 2 + int.from_bytes(body[at : at + 2])
    at += 2
    version, group = int.from_bytes(body[:2]), 0
    while at + 4 <= min(end, len(body)):
        kind, size = struct.unpack(">HH", body[at : at + 4])
        content = body[at + 4 : at + 4 + size]
        if kind == _SUPPORTED_VERSIONS:
            version = int.from_bytes(content)
        elif kind == _KEY_SHARE:
            group = int.from_bytes(content[:2])
        at += 4 + size
    return Hello(port, version, suite, group)
