"""What a client of HTTP/2 sees of an application that misbehaves; :mod:`tests.sidecar.dataplane.test_application_leg`.

What is seen is what HTTP/2 says of the one request: the words of :class:`Look`; and how the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import pytest

from tests.sidecar.dataplane.misbehaviour import HOST, PATIENCE, QUIET, Application, Scene, listening, reset, to_the_end
from tests.sidecar.dataplane.planes import MESHED, STREAM, Planes, Way

type Act = Callable[[h2.connection.H2Connection, socket.socket, Scene], None]
type Words = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """:param says: what the application does once it has the request
    :param finishes: the client ends its direction behind its request, and the application waits for that
    :param without: what the client sees without the mesh, and how the connection ends: ``end``, ``reset``, ``open``
    """

    name: str
    says: tuple[Act, ...]
    without: tuple[Words, str]
    finishes: bool = False
    differs: Mapping[Way, tuple[Words, str]] = field(default_factory=dict)


def answer(size: int = 5, *, end: bool) -> Act:
    def act(state: h2.connection.H2Connection, sock: socket.socket, scene: Scene) -> None:
        state.send_headers(1, [(":status", "200")])
        state.send_data(1, b"x" * size, end_stream=end)
        sock.sendall(state.data_to_send())

    return act


def refuse(code: int) -> Act:
    def act(state: h2.connection.H2Connection, sock: socket.socket, scene: Scene) -> None:
        state.reset_stream(1, code)
        sock.sendall(state.data_to_send())

    return act


def drop(_: h2.connection.H2Connection, sock: socket.socket, scene: Scene) -> None:
    """Reset the connection once the client has seen what was said before."""
    scene.wait()
    reset(sock)


def finish(_: h2.connection.H2Connection, sock: socket.socket, scene: Scene) -> None:
    sock.shutdown(socket.SHUT_WR)
    to_the_end(sock)
    sock.close()


TABLE = [
    Row("it answers", (answer(end=True),), (("200", "5 bytes", "whole"), "open")),
    Row("it answers and closes", (answer(end=True), finish), (("200", "5 bytes", "whole"), "end")),
    Row("it closes without a word", (finish,), ((), "end")),
    Row("it resets without a word", (drop,), ((), "reset")),
    Row("it closes in the middle of an answer", (answer(end=False), finish), (("200", "5 bytes"), "end")),
    Row("it resets in the middle of an answer", (answer(end=False), drop), (("200", "5 bytes"), "reset")),
    Row("it stalls in the middle of an answer", (answer(end=False),), (("200", "5 bytes"), "open")),
    Row("it says nothing", (), ((), "open")),
    Row("it refuses a request", (refuse(7),), (("reset 7",), "open")),
    Row("it gives a request up", (answer(end=False), refuse(2)), (("200", "5 bytes", "reset 2"), "open")),
    Row("it answers a client that has half-closed", (answer(end=True), finish), (("200", "5 bytes", "whole"), "end"),
        finishes=True),
    Row("it closes when its client half-closes", (finish,), ((), "end"), finishes=True),
]  # fmt: skip


def application(row: Row) -> Application:
    def run(sock: socket.socket, scene: Scene) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        sock.sendall(state.data_to_send())
        asked = over = False
        while not asked or (row.finishes and not over):
            data = sock.recv(65536)
            over = not data
            if over and not asked:
                return
            for event in state.receive_data(data):
                asked = asked or isinstance(event, h2.events.StreamEnded)
            if not over:
                sock.sendall(state.data_to_send())
        for act in row.says:
            act(state, sock, scene)
        scene.over.wait(PATIENCE)

    return run


class Look:
    """One client, one request, and everything that it sees."""

    def __init__(self, row: Row, way: Way, port: int, scene: Scene) -> None:
        self.scene = scene
        self.expected = row.differs.get(way, row.without)
        self.row = row
        self.port = port
        self.words: list[str] = []
        self.size = 0

    def run(self) -> tuple[Words, str]:
        state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        state.initiate_connection()
        head = [(":method", "GET"), (":scheme", "http"), (":authority", "shop"), (":path", "/items/7")]
        state.send_headers(1, head, end_stream=True)
        with socket.create_connection((HOST, self.port), PATIENCE) as sock:
            sock.sendall(state.data_to_send())
            if self.row.finishes:
                sock.shutdown(socket.SHUT_WR)
            ending = self._hear(state, sock)
        return self._seen(), ending

    def _seen(self) -> Words:
        body = (f"{self.size} bytes",) if self.size else ()
        return (*self.words[:1], *body, *self.words[1:])

    # it says no more, so that a reset is found when reading, and nowhere else

    def _hear(self, state: h2.connection.H2Connection, sock: socket.socket) -> str:
        while True:
            if self._seen() == self.expected[0]:
                self.scene.next.set()
            sock.settimeout(QUIET if (self._seen(), "open") == self.expected else PATIENCE)
            try:
                data = sock.recv(65536)
            except TimeoutError:
                return "open"
            except ConnectionResetError:
                return "reset"
            if not data:
                return "end"
            for event in state.receive_data(data):
                self._note(event)

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.words.append(dict(event.headers)[":status"])
        elif isinstance(event, h2.events.DataReceived):
            self.size += len(event.data)
        elif isinstance(event, h2.events.StreamEnded):
            self.words.append("whole")
        elif isinstance(event, h2.events.StreamReset):
            self.words.append(f"reset {int(event.error_code)}")


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
async def test_a_client_sees_what_it_would_have_seen(authority, row):
    scenes = {way: Scene() for way in Way}
    with contextlib.ExitStack() as running:
        ports = {way: running.enter_context(listening(application(row), scenes[way])) for way in Way}
        async with Planes(authority, ports) as planes:
            looks = (asyncio.to_thread(Look(row, way, planes.entrances[way], scenes[way]).run) for way in Way)
            seen = dict(zip(Way, await asyncio.gather(*looks), strict=True))
            for scene in scenes.values():
                scene.over.set()
            await asyncio.to_thread(running.close)
            await planes.settled()
            lanes = planes.lanes()
    assert seen == {way: row.differs.get(way, row.without) for way in Way}
    for way in MESHED:
        assert lanes[way], way
        assert lanes[way] <= ({"", "tcp"} if way in STREAM else {"http2"}), way
