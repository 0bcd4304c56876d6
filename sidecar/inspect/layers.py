"""mitmproxy's layers of one connection, and the loop that gives them events and does what they ask.

It stands in place of mitmproxy's own ``HttpLayer``, whose commands climb through every generator above them. Here each
command is done at once, before the layer that asked goes on, so that nothing ever waits for a reply.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from mitmproxy.connection import Client, Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers.http import DropStream, SendHttp
from mitmproxy.proxy.layers.http._base import HttpConnection, HttpEvent, ReceiveHttp
from mitmproxy.proxy.layers.http._events import ErrorCode, RequestHeaders

from sidecar.dataplane.sockets import Address
from sidecar.inspect.frame_guard import Breach
from sidecar.inspect.http1 import Http1Half, StrictClient, StrictServer
from sidecar.inspect.http2 import BoundedClient, BoundedHalf, BoundedServer
from sidecar.inspect.judging import Judge
from sidecar.inspect.options import LayerOptions
from sidecar.inspect.settings import Limits
from sidecar.inspect.stream import Stream

#: In place of a layer's queue of events that come while it waits for a reply: none ever does, and an empty queue takes
#: as much as all the rest of the layer.
_NONE: Final[Any] = ()


def _apart(layer: Layer) -> None:
    """Take a layer apart that nobody asks any more. It refers to itself in many ways, and would be there until the
    collector of cycles comes round to it: memory that grows with every connection that ends, and a pause for all."""
    h2 = layer.__dict__.get("h2_conn")
    if h2 is not None:
        vars(h2).clear()
    layer.context.layers.clear()
    vars(layer).clear()


def _light[T: Layer](layer: T) -> T:
    layer._paused_event_queue = _NONE
    return layer


class Ends(Protocol):
    """Where the layers' commands arrive."""

    def send(self, data: bytes, *, to_client: bool) -> None: ...

    def close(self, *, client: bool) -> None: ...

    def call_application(self) -> None:
        """Begin to connect to the application. What is sent meanwhile waits."""


class Layers:
    """Both halves and the requests between them.

    :param source: the client's address; ``application`` where ours listens
    :param opened: when the connection was opened, seconds since the epoch
    :param host: the name of what is called, outside the mesh; ``tls`` whether both halves are within TLS
    :ivar raw: a response 101 has passed, and nobody reads what is behind it
    """

    def __init__(
        self,
        ends: Ends,
        judge: Judge,
        limits: Limits,
        source: str,
        application: Address,
        opened: float,
        *,
        http2: bool,
        host: str = "",
        tls: bool = False,
    ) -> None:
        self._ends = ends
        self.judge = judge
        self._limits = limits
        self._http2 = http2
        alpn = b"h2" if http2 else b"http/1.1"
        here = (application.host, application.port)
        self._client = Client(
            peername=(source, 0), sockname=here, state=ConnectionState.OPEN, timestamp_start=opened, alpn=alpn
        )
        options = LayerOptions(stream_large_bodies=judge.collecting)
        self._context = Context(self._client, options)  # type: ignore[arg-type]  # all of the options that are asked for
        there = (host or application.host, application.port)
        self._server = Server(address=there, peername=here, timestamp_start=opened, alpn=alpn)
        if host:
            self._client.sni = self._server.sni = host
        self._client.tls = self._server.tls = tls
        self._server.state = ConnectionState.OPEN
        self._context.server = self._server
        self._discarded = 0
        self.raw = False
        self.streams: dict[int, Stream] = {}
        self._over: list[Stream] = []  # since the last event
        self.client: HttpConnection
        if http2:
            self.client = _light(BoundedServer(self._fork(), limits))
        else:
            self.client = _light(StrictServer(self._fork(), limits.head_bytes, judge.unreadable))
        self.server: HttpConnection | None = None

    def start(self) -> None:
        self._pump(self.client, events.Start())

    # --- what comes

    def from_client(self, data: bytes) -> None:
        self._forget()
        self._pump(self.client, events.DataReceived(self._client, data))

    def from_server(self, data: bytes) -> None:
        assert self.server is not None
        self._forget()
        self._pump(self.server, events.DataReceived(self._server, data))

    def client_ended(self) -> None:
        """It sends no more."""
        self._client.state &= ~ConnectionState.CAN_READ
        self._pump(self.client, events.ConnectionClosed(self._client))

    def server_ended(self) -> None:
        """It sends no more. What it has not finished is failed, and the client sees that as it would without us."""
        self._server.state &= ~ConnectionState.CAN_READ
        if isinstance(self.client, StrictServer):
            self.client.application_gone = True
            assert self.server is not None
            self._pump(self.server, events.ConnectionClosed(self._server))
        else:
            self.fail("the application ended the connection")

    # --- what happens to requests

    def end(self, streams: Iterable[Stream]) -> None:
        """End running requests on both sides."""
        ending = list(streams)
        if isinstance(self.server, BoundedClient):
            for stream in ending:  # before the end of one makes room for the next
                self.server.withdraw(stream.stream_id)
        for stream in ending:
            self._do(stream.abort(ErrorCode.CANCEL, "denied"))

    def fail(self, why: str) -> None:
        """Account for the requests that will not end any more."""
        for stream_id, stream in list(self.streams.items()):
            self.judge.failed(stream, why)
            self._drop(stream_id)

    def let_go(self) -> None:
        """Nothing comes any more, and nobody asks. Not to be called while a layer is at work."""
        self._over += self.streams.values()
        self._forget()
        for half in (self.client, self.server):
            if half is not None:
                _apart(half)
        vars(self).clear()

    def _forget(self) -> None:
        """Be rid of requests that are over: whatever they had to say after that is said."""
        if self._over:
            over, self._over = self._over, []
            for stream in over:
                _apart(stream)

    # --- what streams ask

    def reach_application(self) -> Iterator[commands.Command]:
        """Have a connection to the application. There is nothing more to do."""
        if self.server is None:
            self._ends.call_application()
            if self._http2:
                assert isinstance(self.client, BoundedHalf)
                self.server = other = _light(BoundedClient(self._fork(), self._limits))
                self.client.other, other.other = other, self.client
            else:
                self.server = _light(StrictClient(self._fork()))
            self._pump(self.server, events.Start())
        return iter(())

    def discarded(self, size: int) -> None:
        """Bytes of a refused request came.

        :raises Breach: when there are too many
        """
        self._discarded += size
        if self._discarded > self._limits.discarded:
            raise Breach("discarded")

    def upgraded(self, stream: Stream) -> Layer | None:
        """A response 101 passes; what reads what is behind it? None: nobody, it is passed on as it is."""
        layer = self.judge.upgraded(stream)
        if layer is None:
            self.raw = True
        else:
            for half in (self.client, self.server):
                if isinstance(half, Http1Half):
                    half.piped = True
        return layer

    # --- the loop

    def _pump(self, layer: Layer, event: events.Event) -> None:
        """Give a layer an event and do what it asks."""
        self._do(layer.handle_event(event) if isinstance(layer, Stream) else layer._handle_event(event))

    def _do(self, asked: Iterable[commands.Command]) -> None:
        for command in asked:
            if isinstance(command, commands.SendData):
                self._ends.send(command.data, to_client=command.connection is self._client)
            elif isinstance(command, ReceiveHttp):
                self._receive(command.event)
            elif isinstance(command, SendHttp):
                half = self._half(command.connection)
                if half is not None:
                    self._pump(half, command.event)
            elif isinstance(command, DropStream):
                self._drop(command.stream_id)
            elif isinstance(command, commands.CloseConnection):
                self._close(command)
            elif not isinstance(command, commands.Log | commands.RequestWakeup):
                raise AssertionError(f"unexpected: {type(command).__name__}")

    def _half(self, connection: Connection) -> HttpConnection | None:
        return self.client if connection is self._client else self.server

    def _receive(self, event: HttpEvent) -> None:
        if isinstance(event, RequestHeaders):
            stream = self.streams[event.stream_id] = _light(Stream(self._fork(), event.stream_id, self))
        else:
            found = self.streams.get(event.stream_id)
            if found is None:
                return  # late
            stream = found
        self._pump(stream, event)

    def _drop(self, stream_id: int) -> None:
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self.judge.over(stream)
            self._over.append(stream)
        if isinstance(self.server, BoundedClient):
            self.server.forget(stream_id)
        if isinstance(self.client, BoundedServer):
            self.client.streams.pop(stream_id, None)

    def _close(self, command: commands.CloseConnection) -> None:
        client = command.connection is self._client
        if not client and not self._http2 and not getattr(command, "half_close", False):
            self._server.state = ConnectionState.CLOSED
        self._ends.close(client=client)

    def _fork(self) -> Context:
        """A context of the same connections; mitmproxy's own makes a new connection first and throws it away."""
        whole, made = self._context, Context.__new__(Context)
        made.client, made.server, made.options, made.layers = whole.client, whole.server, whole.options, []
        return made
