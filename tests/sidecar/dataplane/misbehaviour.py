"""Applications that misbehave, each in its own way, and the words in which they are asked and answer."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.sidecar.dataplane.world import free_port

HOST = "127.0.0.1"
#: Seconds after which something that must happen counts as not happening.
PATIENCE = 60.0
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
    leave_unread(sock)
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
        leave_unread(sock)
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


def leave_unread(sock: socket.socket) -> None:
    """Wait until something has come, so that it is there, and not read, when the socket is closed: that is a reset."""
    assert select.select([sock], [], [], PATIENCE)[0], "nothing came"


def never_reads(then: Callable[[socket.socket], None]) -> Application:
    def application(sock: socket.socket, scene: Scene) -> None:
        scene.wait()
        leave_unread(sock)
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


def close(sock: socket.socket) -> None:
    sock.close()


def speak_and_reset(sock: socket.socket) -> None:
    sock.sendall(b"220 ready\r\n")
    reset(sock)


def big(then: Callable[[socket.socket], None]) -> Application:
    """Sends much before its client reads anything, and goes on with ``then``."""

    def application(sock: socket.socket, scene: Scene) -> None:
        ask(sock)
        sock.sendall(BIG)
        then(sock)
        scene.next.set()

    return application


def speaks_after_the_end(sock: socket.socket, scene: Scene) -> None:
    """Hears its client's end, and goes on for a while before it ends, too."""
    to_the_end(sock)
    sock.sendall(HALF)
    for start in range(len("hello"), 100, 5):
        sock.sendall(BODY[start : start + 5])
    sock.close()


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
