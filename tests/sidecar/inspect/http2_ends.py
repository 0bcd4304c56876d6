"""Clients and applications that speak HTTP/2 over a leg in memory, and frames that no library would write."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import h2.settings

from sidecar.inspect.frame_guard import PREFACE
from tests.sidecar.inspect.connection import Inspected, Memory

GRPC = [("content-type", "application/grpc"), ("te", "trailers")]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


class End:
    """One end of an HTTP/2 connection."""

    def __init__(self, leg: Memory, *, client: bool) -> None:
        self.leg = leg
        config = h2.config.H2Configuration(client_side=client, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.granting = True

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            self.leg.give(data)

    def read(self) -> list[h2.events.Event]:
        """Take what came, answer settings and pings; the new events."""
        new: list[h2.events.Event] = []
        while data := self.leg.read():
            new += self.h2.receive_data(data)
            for event in new:
                if self.granting and isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    event.flow_controlled_length = 0
            self.flush()
        self.events += new
        return new

    def all(self, kind: type, stream: int | None = None) -> list:
        return [e for e in self.events if isinstance(e, kind) and (stream is None or e.stream_id == stream)]

    def body(self, stream: int) -> bytes:
        return b"".join(event.data for event in self.all(h2.events.DataReceived, stream))


class Pair:
    """Client and application of one inspected connection; :meth:`turn` lets each read what came."""

    def __init__(self, connection: Inspected) -> None:
        self.connection = connection
        self.client = End(connection.client, client=True)
        self._application: End | None = None
        self.client.flush()

    @property
    def application(self) -> End:
        if self._application is None:
            self._application = End(self.connection.application, client=False)
            self._application.flush()
        return self._application

    def turn(self) -> None:
        for _ in range(6):
            self.client.read()
            self.client.flush()
            if self.connection.server is not None:
                self.application.read()
                self.application.flush()

    def request(self, path: str, *, method: str = "GET", fields=(), body: bytes | None = None, end: bool = True) -> int:
        stream = self.client.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":authority", "cart"), (":path", path), *fields]
        self.client.h2.send_headers(stream, head, end_stream=end and body is None)
        if body is not None:
            self.client.h2.send_data(stream, body, end_stream=end)
        self.client.flush()
        self.turn()
        return stream

    def answer(self, stream: int, *, status: int = 200, body: bytes = b"", fields=(), trailers=None) -> None:
        self.application.h2.send_headers(stream, [(":status", str(status)), *fields])
        if body:
            self.application.h2.send_data(stream, body)
        if trailers is not None:
            self.application.h2.send_headers(stream, trailers, end_stream=True)
        else:
            self.application.h2.end_stream(stream)
        self.application.flush()
        self.turn()


__all__ = ["GRPC", "PREFACE", "End", "Pair", "frame"]
