"""What a client sees of an application that misbehaves, without the mesh and through every lane, as a table.

Each row is an application, a client and what the client sees of it without anything between them: bytes, and then the
end of the connection (``end``), a reset (``reset``), nothing more although the connection is open (``open``), or a
connection that is refused. The very same client then does the same through the sidecars, and sees the same, or what the
row says for that lane, with the reason. Without the mesh the row is measured, too, so that it is TCP's and not ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import pytest

from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint
from graph.model import Mode, Snapshot, WorkloadRef
from sidecar.dataplane import sockets
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound, ExplicitOutbound
from sidecar.dataplane.sockets import Address
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, FlowList, HeldDirectory, HeldPolicy, credentials
from tests.sidecar.dataplane.world import free_port

HOST = "127.0.0.1"
#: Seconds after which something that must happen counts as not happening.
PATIENCE = 10.0
#: Seconds without a word after which a connection counts as open and silent, where that is what is expected.
QUIET = 0.4

GET = b"GET /items/7 HTTP/1.1\r\nHost: shop\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
LAST = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello"
UNTIL_END = b"HTTP/1.1 200 OK\r\n\r\nhello"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
BODY = b"0123456789" * 10
POST = b"POST /items HTTP/1.1\r\nHost: shop\r\nContent-Length: %d\r\n\r\n" % len(BODY)
ENDLESS = b"POST /items HTTP/1.1\r\nHost: shop\r\nContent-Length: 1000000000\r\n\r\n"
EXPECT = b"POST /items HTTP/1.1\r\nHost: shop\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(BODY)
BIG = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"0123456789abcdef" * 6_250
#: Pushed into a connection that nobody reads, bytes at most.
MOST_PUSHED = 64 << 20


class Way(StrEnum):
    """How the client comes to the application."""

    DIRECT = "directly"
    STREAM_TUNNEL = "stream lane, by tunnel"
    STREAM_PLAIN = "stream lane, plaintext"
    HTTP_TUNNEL = "http lane, by tunnel"
    HTTP_PLAIN = "http lane, plaintext"


MESHED = tuple(Way)[1:]
HTTP = (Way.HTTP_TUNNEL, Way.HTTP_PLAIN)


@dataclass(frozen=True, slots=True)
class Seen:
    """:param ending: ``end``, ``reset``, ``open`` or ``refused``"""

    data: bytes
    ending: str


class Scene:
    """One application and one client; they wait for each other by these events."""

    def __init__(self) -> None:
        self.next = threading.Event()
        self.over = threading.Event()

    def wait(self) -> None:
        """For the client's word to go on."""
        assert self.next.wait(PATIENCE), "the client did not say so"


# Applications ---------------------------------------------------------------------------------------------------------

type Application = Callable[[socket.socket, Scene], None]


def ask(sock: socket.socket, body: int = 0) -> bytes:
    """Read a request."""
    data = b""
    while True:
        _, found, rest = data.partition(b"\r\n\r\n")
        if found and len(rest) >= body:
            return data
        more = sock.recv(65536)
        if not more:
            return data
        data += more


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def to_the_end(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


def answers(data: bytes, then: Callable[[socket.socket], None], body: int = 0) -> Application:
    """Reads one request, sends ``data``, and goes on with ``then``."""

    def application(sock: socket.socket, scene: Scene) -> None:
        ask(sock, body)
        if data:
            sock.sendall(data)
        then(sock)

    return application


def stalls(data: bytes) -> Application:
    """Reads one request, sends ``data``, and then nothing for as long as anybody looks."""

    def application(sock: socket.socket, scene: Scene) -> None:
        ask(sock)
        if data:
            sock.sendall(data)
        scene.over.wait(PATIENCE)

    return application


def refuses_late(sock: socket.socket, scene: Scene) -> None:
    """Reads the head of an upload, lets it come until nothing goes any more, and then refuses it."""
    sock.recv(len(ENDLESS), socket.MSG_WAITALL)
    scene.wait()
    sock.sendall(TOO_LARGE)
    sock.close()


def at_once(then: Callable[[socket.socket], None]) -> Application:
    """Does ``then`` as soon as there is a connection."""
    return lambda sock, scene: then(sock)


def unread(data: bytes, then: Callable[[socket.socket], None], *, head: bool = False) -> Application:
    """Sends ``data`` and goes on with ``then``, without having read the request (or what came behind its head)."""

    def application(sock: socket.socket, scene: Scene) -> None:
        if head:
            rest = sock.recv(len(POST), socket.MSG_WAITALL)
            assert rest == POST[: len(rest)] or b"POST" in rest
        select.select([sock], [], [], PATIENCE)
        if data:
            sock.sendall(data)
        then(sock)

    return application


def half_closes(data: bytes) -> Application:
    """Answers, ends its direction, and hears the client out."""

    def application(sock: socket.socket, scene: Scene) -> None:
        ask(sock)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        to_the_end(sock)
        sock.close()

    return application


def speaks_first(sock: socket.socket, scene: Scene) -> None:
    sock.sendall(b"220 ready\r\n")
    to_the_end(sock)
    sock.close()


def never_reads(then: Callable[[socket.socket], None]) -> Application:
    def application(sock: socket.socket, scene: Scene) -> None:
        scene.wait()
        then(sock)

    return application


def serves(*rounds: Callable[[socket.socket], None], body: int = 0) -> Application:
    """One of ``rounds`` for each request of one connection."""

    def application(sock: socket.socket, scene: Scene) -> None:
        for one in rounds:
            if not ask(sock, body):
                return
            one(sock)
        scene.over.wait(PATIENCE)

    return application


def say(data: bytes) -> Callable[[socket.socket], None]:
    return lambda sock: sock.sendall(data)


def after_the_end(sock: socket.socket, scene: Scene) -> None:
    """Answers when the client has ended its direction, with how much it was asked."""
    size = 0
    while data := sock.recv(65536):
        size += len(data)
    sock.sendall(LAST if size else b"")
    sock.close()


def continues(sock: socket.socket, scene: Scene) -> None:
    ask(sock)
    sock.sendall(CONTINUE)
    sock.recv(len(BODY), socket.MSG_WAITALL)
    sock.sendall(LAST)
    sock.close()


def nobody(sock: socket.socket, scene: Scene) -> None:
    """Stands for an application that does not listen."""


def not_accepting(sock: socket.socket, scene: Scene) -> None:
    """Stands for one that listens and does not accept."""


# Clients --------------------------------------------------------------------------------------------------------------


class Client:
    """A connection, and everything that is seen of it.

    :param expected: decides how long is waited for what, and nothing else
    """

    def __init__(self, port: int, scene: Scene, expected: Seen) -> None:
        self.scene = scene
        self._expected = expected
        self._data = b""
        self._ending = ""
        self._was_reset = False
        self.sock = socket.socket()
        self.sock.settimeout(PATIENCE)
        try:
            self.sock.connect((HOST, port))
        except ConnectionRefusedError:
            self._ending = "refused"
        except ConnectionResetError:  # it was there, and is gone already; what came on it can still be read
            self._was_reset = True

    def say(self, data: bytes) -> None:
        if not self._ending:
            try:
                self.sock.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                return  # what it reads says which

    def finish(self) -> None:
        if not self._ending:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def until(self, data: bytes) -> None:
        """Read until ``data`` is the last that came."""
        while not self._ending and not self._data.endswith(data):
            self._read(PATIENCE)

    def push(self) -> None:
        """Write until no more is taken."""
        data, pushed = bytes(65536), 0
        self.sock.setblocking(False)
        while pushed < MOST_PUSHED and select.select([], [self.sock], [], QUIET)[1]:
            try:
                pushed += self.sock.send(data)
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
        self._data += b"stuck" if pushed < MOST_PUSHED else b"swallowed"
        self.sock.settimeout(PATIENCE)

    def hear(self) -> None:
        """Read to the end, or as long as something may come."""
        while not self._ending:
            whole = len(self._data) >= len(self._expected.data)
            self._read(QUIET if whole and self._expected.ending == "open" else PATIENCE)

    def _read(self, patience: float) -> None:
        self.sock.settimeout(patience)
        try:
            data = self.sock.recv(65536)
        except TimeoutError:
            self._ending = "open"
        except ConnectionResetError:
            self._ending = "reset"
        else:
            self._data += data
            if not data:
                self._ending = "reset" if self._was_reset else "end"

    def seen(self) -> Seen:
        return Seen(self._data, self._ending)


type Script = Callable[[Client], None]


def asks(*parts: bytes) -> Script:
    def script(client: Client) -> None:
        for part in parts:
            client.say(part)
        client.hear()

    return script


def asks_and_finishes(client: Client) -> None:
    client.say(GET)
    client.finish()
    client.hear()


def listens(client: Client) -> None:
    client.hear()


def listens_and_finishes(client: Client) -> None:
    client.until(b"220 ready\r\n")
    client.finish()
    client.hear()


def goes_on_writing(client: Client) -> None:
    """It has heard the end, and still has something to say."""
    client.say(GET)
    client.hear()
    heard = client.seen()
    for _ in range(3):
        client.say(b"more")
    assert client.seen() == heard


def asks_twice(request: bytes) -> Script:
    def script(client: Client) -> None:
        client.say(request)
        client.until(WHOLE)
        client.say(request)
        client.hear()

    return script


def waits_for_continue(client: Client) -> None:
    client.say(EXPECT)
    client.until(CONTINUE)
    client.say(BODY)
    client.hear()


def pushes(client: Client) -> None:
    client.say(ENDLESS)
    client.push()
    client.scene.next.set()
    client.hear()


def reads_late(client: Client) -> None:
    """It lets the application finish before it reads anything."""
    client.say(GET)
    client.scene.wait()
    client.hear()


# The table ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """:param without: what the client sees without the mesh
    :param why: the reason that a proxy differs in this, when it does; what is seen then is in ``differs``
    """

    name: str
    application: Application
    client: Script
    without: Seen
    why: str = ""
    differs: Mapping[Way, Seen] = field(default_factory=dict)

    def expected(self, way: Way) -> Seen:
        return self.differs.get(way, self.without)


def close(sock: socket.socket) -> None:
    sock.close()


def speak_and_reset(sock: socket.socket) -> None:
    sock.sendall(b"220 ready\r\n")
    reset(sock)


def big_then_reset(sock: socket.socket, scene: Scene) -> None:
    ask(sock)
    sock.sendall(BIG)
    reset(sock)
    scene.next.set()


def differs(data: bytes, ending: str, *ways: Way) -> dict[Way, Seen]:
    return dict.fromkeys(ways, Seen(data, ending))


#: A connection is accepted before the application is asked whether it takes it.
ACCEPTED = "the sidecar has accepted before the application refuses"
#: Rule 5 of the lane.
KEPT = "the connection is the lane's: that the application ends an idle one is kept from the client"
#: The lane passes on what it has understood.
HEADS = "half of a head, or of the framing of a chunk, is not passed on"
RETRIED = "an idempotent request that met a connection's end is sent again on another one"
WHOLE_ANSWER = "the answer was whole, so its client hears the end in good order, whatever becomes of the application"

TABLE = [
    Row("it does not listen", nobody, asks(GET), Seen(b"", "refused"), ACCEPTED, differs(b"", "reset", *MESHED)),
    Row("it does not accept", not_accepting, asks(GET), Seen(b"", "open")),
    Row("it resets at once", unread(b"", reset), asks(GET), Seen(b"", "reset")),
    Row("it resets a client that says nothing", at_once(reset), listens, Seen(b"", "reset")),
    Row("it closes right after accept", at_once(close), listens, Seen(b"", "end")),
    Row("it closes and has not read the request", unread(b"", close), asks(GET), Seen(b"", "reset")),
    Row("it reads and closes without a word", answers(b"", close), asks(GET), Seen(b"", "end")),
    Row("it reads and resets without a word", answers(b"", reset), asks(GET), Seen(b"", "reset")),
    Row("it reads and says nothing", stalls(b""), asks(GET), Seen(b"", "open")),
    Row("it speaks first", speaks_first, listens_and_finishes, Seen(b"220 ready\r\n", "end")),
    Row("it speaks first and resets", at_once(speak_and_reset), listens, Seen(b"220 ready\r\n", "reset")),
    Row("it answers and keeps the connection", stalls(WHOLE), asks(GET), Seen(WHOLE, "open")),
    Row("it answers and closes, as it said", answers(LAST, close), asks(GET), Seen(LAST, "end")),
    Row("it answers and closes without saying so", answers(WHOLE, close), asks(GET), Seen(WHOLE, "end"),
        KEPT, differs(WHOLE, "open", *HTTP)),
    Row("it answers and resets", answers(WHOLE, reset), asks(GET), Seen(WHOLE, "reset"),
        KEPT, differs(WHOLE, "open", *HTTP)),
    Row("it answers until it closes", answers(UNTIL_END, close), asks(GET), Seen(UNTIL_END, "end")),
    Row("it answers until it resets", answers(UNTIL_END, reset), asks(GET), Seen(UNTIL_END, "reset")),
    Row("it closes in the middle of an answer", answers(HALF, close), asks(GET), Seen(HALF, "end")),
    Row("it resets in the middle of an answer", answers(HALF, reset), asks(GET), Seen(HALF, "reset")),
    Row("it stalls in the middle of an answer", stalls(HALF), asks(GET), Seen(HALF, "open")),
    Row("it closes between chunks", answers(CHUNKS, close), asks(GET), Seen(CHUNKS, "end")),
    Row("it resets between chunks", answers(CHUNKS, reset), asks(GET), Seen(CHUNKS, "reset")),
    Row("it closes in the framing of a chunk", answers(CHUNKS + b"1", close), asks(GET), Seen(CHUNKS + b"1", "end"),
        HEADS, differs(CHUNKS, "end", *HTTP)),
    Row("it closes in the middle of a head", answers(HALF[:20], close), asks(GET), Seen(HALF[:20], "end"),
        HEADS, differs(b"", "end", *HTTP)),
    Row("it resets in the middle of a head", answers(HALF[:20], reset), asks(GET), Seen(HALF[:20], "reset"),
        HEADS, differs(b"", "reset", *HTTP)),
    Row("it stalls in the middle of a head", stalls(HALF[:20]), asks(GET), Seen(HALF[:20], "open"),
        HEADS, differs(b"", "open", *HTTP)),
    Row("it sends much and resets before anything is read", big_then_reset, reads_late, Seen(BIG, "reset")),
    Row("it half-closes and hears the client out", half_closes(UNTIL_END), goes_on_writing, Seen(UNTIL_END, "end")),
    Row("it half-closes in the middle of an answer", half_closes(HALF), asks_and_finishes, Seen(HALF, "end")),
    Row("it answers a client that has half-closed", after_the_end, asks_and_finishes, Seen(LAST, "end")),
    Row("it resets a client that has half-closed", answers(b"", reset), asks_and_finishes, Seen(b"", "reset")),
    Row("it answers a half-closed client by halves", answers(HALF, reset), asks_and_finishes, Seen(HALF, "reset")),
    Row("it never reads, and closes", never_reads(close), pushes, Seen(b"stuck", "reset")),
    Row("it never reads, and resets", never_reads(reset), pushes, Seen(b"stuck", "reset")),
    Row("it refuses a body that it has not read", unread(TOO_LARGE, close, head=True), asks(POST, BODY[:10]),
        Seen(TOO_LARGE, "reset"), WHOLE_ANSWER, differs(TOO_LARGE, "end", *HTTP)),
    Row("it refuses an upload and closes", refuses_late, pushes, Seen(b"stuck" + TOO_LARGE, "reset"),
        WHOLE_ANSWER, differs(b"stuck" + TOO_LARGE, "end", *HTTP)),
    Row("it closes in the middle of a body", answers(b"", close, body=10), asks(POST, BODY[:10]), Seen(b"", "end")),
    Row("it resets in the middle of a body", answers(b"", reset, body=10), asks(POST, BODY[:10]), Seen(b"", "reset")),
    Row("it asks for the body first", continues, waits_for_continue, Seen(CONTINUE + LAST, "end")),
    Row("it resets instead of a second answer to a POST", serves(say(WHOLE), reset, body=len(BODY)),
        asks_twice(POST + BODY), Seen(WHOLE, "reset")),
    Row("it closes instead of a second answer to a POST", serves(say(WHOLE), close, body=len(BODY)),
        asks_twice(POST + BODY), Seen(WHOLE, "end")),
    Row("it resets instead of a second answer to a GET", serves(say(WHOLE), reset), asks_twice(GET),
        Seen(WHOLE, "reset"), RETRIED, differs(WHOLE + WHOLE, "open", *HTTP)),
    Row("it closes instead of a second answer to a GET", serves(say(WHOLE), close), asks_twice(GET),
        Seen(WHOLE, "end"), RETRIED, differs(WHOLE + WHOLE, "open", *HTTP)),
]  # fmt: skip


# The mesh -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(application: Application, scene: Scene) -> Iterator[int]:
    """The application, in threads of its own; answers with its port."""
    if application is nobody:
        yield free_port()
        return
    listener = socket.create_server((HOST, 0))
    faults: list[BaseException] = []
    threads: list[threading.Thread] = []
    accepted: list[socket.socket] = []

    def run(sock: socket.socket) -> None:
        try:
            with sock:
                application(sock, scene)
        except OSError:
            pass  # the client was gone first
        except BaseException as error:
            faults.append(error)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            accepted.append(sock)
            threads.append(threading.Thread(target=run, args=(sock,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    if application is not not_accepting:
        accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        scene.over.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        if accepting.ident is not None:
            accepting.join()
        for sock in accepted:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
    assert not faults, faults


class Planes:
    """The sidecars of a client and of an application; ``entrances`` says where the client connects.

    :param ports: where the application listens for those who come that way
    """

    def __init__(self, authority, ports: Mapping[Way, int]) -> None:
        self.flows = FlowList(), FlowList()
        self._listeners: list[tuple[Address, socket.socket]] = []
        identity = str(SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "cart"))
        cart = WorkloadRef("shop", "cart")
        inside = {way: self._listen() for way in MESHED}
        self.entrances = {**ports, **inside}
        self._ways = {port: way for way, port in inside.items()}
        known, outbound = [], []
        for number, way in enumerate((Way.STREAM_TUNNEL, Way.HTTP_TUNNEL), start=1):
            address = f"192.0.2.{number}"
            endpoints = (Endpoint(HOST, inside[way], identity=identity),)
            known.append(Destination(address, 80, workload=cart, meshed=True, endpoints=endpoints))
            self.entrances[way] = self._listen()
            outbound.append(ExplicitOutbound(Address(HOST, self.entrances[way]), Address(address, 80)))
        inbound = [ExplicitInbound(Address(HOST, inside[way]), Address(HOST, ports[way])) for way in MESHED]
        opaque = frozenset(inside[way] for way in MESHED if way not in HTTP)
        own = {"explicit_inbound": tuple(inbound), "opaque_ports": opaque}
        self._planes = (
            self._plane(authority, "front", known, self.flows[0], {"explicit_outbound": tuple(outbound)}),
            self._plane(authority, "cart", [], self.flows[1], own),
        )

    def _listen(self) -> int:
        """A port that is ours from here on."""
        sock = sockets.listener(Address(HOST, 0))
        port = sock.getsockname()[1]
        self._listeners.append((Address(HOST, port), sock))
        return port

    def lanes(self) -> dict[Way, set[str]]:
        """What the application's sidecar took connections for."""
        lanes: dict[Way, set[str]] = {way: set() for way in MESHED}
        for record in self.flows[1].opened_records:
            lanes[self._ways[record.port]].add(record.protocol)
        return lanes

    @staticmethod
    def _plane(authority, name, known, flows, settings) -> DataPlane:
        snapshot = Snapshot(WorkloadRef("shop", name), TRUST_DOMAIN, 1, Mode.LEARN, Mode.LEARN)
        made = DataPlaneSettings(outbound_listen=(), inbound_listen=(), **settings)
        own = credentials(authority, "shop", name)
        return DataPlane(made, HeldPolicy(snapshot), HeldDirectory(known), own, flows)

    async def __aenter__(self) -> Planes:
        inherited = sockets.Inherited(self._listeners)
        for plane in self._planes:
            plane.listen(inherited)
            await plane.start()
        return self

    async def __aexit__(self, *_) -> None:
        for plane in self._planes:
            assert plane.buffered == 0, "what was held for a receiver was not given back"
            plane.stop()

    async def settled(self) -> None:
        """Both ends let go of every connection, soon after the client and the application have."""
        end = time.monotonic() + PATIENCE
        while any(plane.live_connections for plane in self._planes):
            assert time.monotonic() < end, "connections were left"
            await asyncio.sleep(0.01)


def look(row: Row, way: Way, port: int, scene: Scene) -> Seen:
    client = Client(port, scene, row.expected(way))
    try:
        row.client(client)
        return client.seen()
    finally:
        scene.over.set()
        client.sock.close()


async def measure(authority, row: Row) -> dict[Way, Seen]:
    """What is seen each way, of an application that nobody else asks."""
    scenes = {way: Scene() for way in Way}
    with contextlib.ExitStack() as running:
        ports = {way: running.enter_context(listening(row.application, scenes[way])) for way in Way}
        async with Planes(authority, ports) as planes:
            looks = (asyncio.to_thread(look, row, way, planes.entrances[way], scenes[way]) for way in Way)
            seen = dict(zip(Way, await asyncio.gather(*looks), strict=True))
            await asyncio.to_thread(running.close)  # its threads may need the planes to end
            await planes.settled()
            lanes = planes.lanes()
    opaque = {"", "tcp"}
    for way in MESHED:
        looked_at = way in HTTP and row.client not in (listens, listens_and_finishes)
        assert lanes[way], way
        assert lanes[way] <= ({"http"} if looked_at else opaque), way
    return seen


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
async def test_a_client_sees_what_it_would_have_seen(authority, row):
    assert await measure(authority, row) == {way: row.expected(way) for way in Way}


def test_every_difference_has_a_reason():
    for row in TABLE:
        assert bool(row.why) is bool(row.differs), row.name
        assert Way.DIRECT not in row.differs
        assert all(seen != row.without for seen in row.differs.values()), row.name
