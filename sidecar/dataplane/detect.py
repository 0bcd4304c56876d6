"""Which protocol a client speaks, from its first bytes. Pure.

A guess may only choose how closely bytes are looked at, never whether they pass: what a rule by operation does not
allow is refused whatever it was taken for. So an opaque protocol that looks like HTTP would be broken by a wrong guess
and nothing opened; that is why a whole first line is wanted before bytes count as HTTP/1. A line that only a lenient
server would take for a request counts too: the lane refuses it, where relayed it could carry forged headers past us.
For the same reason a line that has not ended is opaque only for now (:mod:`sidecar.dataplane.first_line`).

Sources: RFC 9112 section 3 (request line), RFC 9113 section 3.4 (preface), RFC 8446 section 5.1 (TLS records).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from sidecar.dataplane.first_line import is_request

#: The first bytes of every HTTP/2 connection with prior knowledge.
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: A request line that is longer is not waited for, bytes.
LONGEST_LINE: Final = 8192

#: What lenient servers skip in front of a request.
_BLANK: Final = re.compile(rb"[\r\n\t ]*+")
#: A first line that some server would take for a request of HTTP/1.
_ALMOST: Final = re.compile(rb"[A-Za-z][!-~]{0,31}[\t ]+[^\r\n]*HTTP/[0-9]", re.IGNORECASE)
#: How such a line can begin. Capitals alone, because others would keep many a protocol waiting for nothing.
_BEGINS: Final = re.compile(rb"(?:[A-Z][A-Z_-]{0,23}(?:[\t ]+(?:[/*h][^\r]*\r?)?)?)?")
_BEGUN: Final = re.compile(rb"[\r\n\t ]*+[A-Z][A-Z_-]{0,23}[\t ]+[/*h]")
_HANDSHAKE: Final = 22


class Kind(Enum):
    """What the first bytes are."""

    MORE = "not told apart yet"
    HTTP1 = "http"
    HTTP2 = "http2"
    TLS = "tls"
    OTHER = "tcp"


def detect(data: bytes) -> Kind:
    """Judge the first bytes of a connection; ``data`` is all that came so far."""
    if not data:
        return Kind.MORE
    if data[0] == _HANDSHAKE:
        if len(data) < 3:
            return Kind.MORE if data[1:] in (b"", b"\x03") else Kind.OTHER
        return Kind.TLS if data[1] == 3 and data[2] <= 3 else Kind.OTHER
    if data.startswith(PREFACE):
        return Kind.HTTP2
    if PREFACE.startswith(data):
        return Kind.MORE
    start = _BLANK.match(data)
    assert start is not None  # it matches nothing, too
    line, ended, _ = data[start.end() : start.end() + LONGEST_LINE].partition(b"\n")
    if ended:
        return Kind.HTTP1 if _ALMOST.match(line) or is_request(line) else Kind.OTHER
    if not _BEGINS.fullmatch(line):
        return Kind.OTHER
    return Kind.MORE if len(data) < LONGEST_LINE else unfinished(data)


def unfinished(data: bytes) -> Kind:
    """What first bytes count as that were not told apart in time: half a request is for the lane to wait for."""
    return Kind.HTTP1 if _BEGUN.match(data) else Kind.OTHER


#: Values of ``appProtocol`` whose connections are not looked at: they are opaque, or encrypted by the application.
OPAQUE: Final = frozenset(
    {
        "tcp",
        "tls",
        "https",
        "kubernetes.io/wss",
        "mongo",
        "mysql",
        "postgres",
        "postgresql",
        "redis",
        "amqp",
        "nats",
        "kafka",
    }
    | {"smtp", "imap", "ldap", "memcached", "cassandra", "mqtt", "udp"}
)
#: Values that promise that the client speaks first, so that its first bytes can be waited for.
CLIENT_FIRST: Final = frozenset(
    {"http", "http1", "http2", "h2c", "grpc", "grpc-web", "kubernetes.io/h2c", "kubernetes.io/ws", "ws"}
)
#: Ports of protocols in which the server speaks first, or that gain nothing from being looked at: Linkerd's defaults.
OPAQUE_PORTS: Final = frozenset({25, 587, 3306, 4222, 4444, 5432, 6379, 9300, 11211})


#: Greetings in a row after which a port counts as one whose server speaks first.
_SERVER_FIRST: Final = 3
#: Seconds after the last of them in which it counts as one.
_BELIEVED: Final = 60.0


@dataclass(slots=True)
class Detection:
    """What was learned about our ports, and how often it was learned in vain.

    Only our own application can say that its clients wait for it, by greeting them; what a client does, or leaves, is
    no reason to look less at others. One client that spoke HTTP outweighs all greetings, and those are believed for a
    minute only.

    :ivar timeouts: connections whose client said nothing in time, in all
    :ivar hidden: connections that were taken for opaque, and ended when their first line became a request
    :ivar greetings: how often the application spoke first, by port, and when it last did
    :ivar heard: ports on which a client has spoken HTTP
    """

    timeouts: int = 0
    hidden: int = 0
    greetings: dict[int, tuple[int, float]] = field(default_factory=dict)
    heard: set[int] = field(default_factory=set)

    def timed_out(self) -> None:
        """A client that is allowed to connect said nothing in time."""
        self.timeouts += 1

    def greeted(self, port: int, now: float) -> None:
        """The application spoke before its client.

        :param now: seconds of a clock that does not go back
        """
        if port not in self.heard:
            self.greetings[port] = (self.greetings.get(port, (0, now))[0] + 1, now)

    def spoke(self, port: int) -> None:
        """A client spoke HTTP."""
        self.heard.add(port)
        self.greetings.pop(port, None)

    def server_first(self, port: int, now: float) -> bool:
        """Whether clients of ``port`` wait for the server, as far as is known."""
        count, last = self.greetings.get(port, (0, now))
        if now - last > _BELIEVED:
            del self.greetings[port]
            return False
        return count >= _SERVER_FIRST
