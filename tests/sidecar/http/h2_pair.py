"""A client and a server of the h2 package with the lane between them, and frames written by hand."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events

from sidecar.http.h2 import H2Lane

CALL = [
    (":method", "POST"), (":scheme", "http"), (":path", "/shop.Cart/Add17"), (":authority", "cart"),
    ("content-type", "application/grpc+proto"), ("te", "trailers"), ("user-agent", "grpc-go/1"),
]  # fmt: skip
GET = [
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/cart/17?a=b"),
    (":authority", "cart"),
    ("x-request-id", "r1"),
]


class Pair:
    """A client and a server of the h2 package with the lane between them."""

    def __init__(self, bench, cut=None):
        self.bench, self.cut = bench, cut
        self.leg = bench.client(H2Lane)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.client.initiate_connection()
        self.server.initiate_connection()
        self.swap()

    def feed(self, leg, data):
        for start in range(0, len(data), self.cut or max(len(data), 1)):
            leg.feed(data[start : start + (self.cut or len(data))])

    def swap(self):
        """Pass on what both have to say; answers with what the server saw."""
        seen = []
        while True:
            forth, back = self.client.data_to_send(), self.server.data_to_send()
            if not forth and not back:
                return seen
            if forth:
                self.feed(self.leg, forth)
                got = self.bench.app.take()
                assert got == forth
                seen += self.server.receive_data(got)
            if back:
                self.feed(self.bench.app, back)
                got = self.leg.take()
                assert got == back
                self.client.receive_data(got)


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def many_heads(size):
    return b"".join(frame(1, 5, stream, REQUEST) for stream in range(1, 2 * size, 2))


REQUEST = b"\x82\x86\x84\x41\x01x"


def last_words(leg):
    """What a client is told at the end: the codes and reasons of the GOAWAYs, each of which turns no request away."""
    words, said = [], leg.take()
    while said:
        length, kind = int.from_bytes(said[:3]), said[3]
        if kind == 7:
            assert said[9:13] == b"\x7f\xff\xff\xff"
            words.append((int.from_bytes(said[13:17]), said[17 : 9 + length].decode()))
        said = said[9 + length :]
    return words


def check_refused(leg, reason, code=1):
    """It gets one last word behind whatever it was told before, and then has to go."""
    assert last_words(leg) == [(code, reason)]
    assert leg.did_end
    assert not leg.closed
    assert not leg.record.closed, "as long as it stays it counts"
    leg.finish()
    assert leg.record.closed


#: ``x-forwarded-client-cert: a``, as a literal with a new name that the table does not keep.
FORGED_BLOCK = b"\x00\x17x-forwarded-client-cert\x01a"
