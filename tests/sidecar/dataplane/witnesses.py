"""Clients of an application: what each of them does, and everything that it sees."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable

from tests.sidecar.dataplane.misbehaviour import (
    BODY,
    CONTINUE,
    ENDLESS,
    EXPECT,
    GET,
    HOST,
    MOST_PUSHED,
    PATIENCE,
    QUIET,
    WHOLE,
    Scene,
    Seen,
)


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
