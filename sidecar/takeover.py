"""A restart without a gap: the sidecar that is started takes over from the one that runs.

The running one listens on a Unix socket in its state directory (:class:`Offer`); the one that is started and finds the
directory locked asks there (:func:`take_over`). One packet is one message, a JSON object, with descriptors beside it:

=============================================  =========================================================
the new one says                               the running one says
=============================================  =========================================================
``{"hello": 1, "instance": "cart-1"}``         ``{"listeners": [["10.0.0.7", 15006]]}`` and the sockets
.                                              ``{"state": 1}`` and the lock of the state directory
``{"ready": 1}``, when it could accept         ``{"yours": 1}``
=============================================  =========================================================

The governing rules:

1. Until ``yours`` the running one goes on as if nothing was; it is its word that decides. When the new one fails, or
   takes too long, the running one stays.
2. From ``state`` on the running one writes nothing to the directory; if it stays, it writes then what it held back.
   After ``yours`` it never writes again. The lock is one open file, passed from hand to hand, and never free.
3. Listening sockets are shared, not closed and opened: whoever connects meanwhile waits in the kernel.
4. Only our own user is answered, and only for our own instance; what is received is checked before it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from sidecar.dataplane.sockets import Address, Inherited
from sidecar.errors import StateError
from sidecar.state import LOCK, SNAPSHOT, StateDirectory

log = logging.getLogger(__name__)

SOCKET: Final = "takeover.sock"
VERSION: Final = 1
#: Seconds within which the new one, with its workers, has to be ready, and the running one has to answer. Until then
#: the running one goes on.
DEADLINE: Final = 120.0
#: Sockets in one packet; the kernel takes 253.
_CHUNK: Final = 64
_MAX_PACKET: Final = 65_536
#: Who may ask at once.
_ASKING: Final = 4
_CREDENTIALS: Final = struct.Struct("3i")

type Listener = tuple[Address, socket.socket]


class Refused(StateError):
    """The running sidecar does not hand over, or what it handed over can not be used."""


# The running one ------------------------------------------------------------------------------------------------------


class Offer:
    """Hands over to whoever asks rightly.

    :param listeners: what is listened on now, under the addresses of the settings
    :param prepare: writes what should be on disk; called before the state is handed over
    :param replaced: called when we have been replaced: we must accept nothing more, and may finish what runs
    """

    def __init__(
        self,
        state: StateDirectory,
        instance: str,
        listeners: Callable[[], Sequence[Listener]],
        prepare: Callable[[], Awaitable[None]],
        replaced: Callable[[], None],
        deadline: float = DEADLINE,
    ) -> None:
        self._state = state
        self._instance = instance
        self._listeners = listeners
        self._prepare = prepare
        self._replaced = replaced
        self._deadline = deadline
        self._socket: socket.socket | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self._handing = False
        self._gone = False

    def start(self) -> None:
        """Listen for the next one.

        :raises StateError: when the state directory takes no socket
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._state.remove(SOCKET)  # of one that was killed
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(self._state.short_path(SOCKET))
            sock.listen(4)
        except OSError as error:
            sock.close()
            raise StateError(f"{self._state.path / SOCKET}: {error.strerror}; a restart would interrupt") from None
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept)

    async def stop(self) -> None:
        """Listen no more. What is being handed over stays ours."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            if not self._gone:  # by now the name is another's
                with contextlib.suppress(StateError):
                    self._state.remove(SOCKET)

    def _accept(self) -> None:
        assert self._socket is not None
        try:
            peer, _ = self._socket.accept()
        except OSError:
            return
        if len(self._asking) >= _ASKING:
            peer.close()
            return
        task = asyncio.ensure_future(self._serve(peer))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _serve(self, peer: socket.socket) -> None:
        try:
            peer.setblocking(False)
            if not _is_ours(peer):
                log.warning("another user asked to take over and was not answered")
                return
            async with asyncio.timeout(self._deadline):
                await self._answer(peer)
        except (StateError, OSError, TimeoutError) as error:
            why = str(error) or "it took too long"
            log.warning("nothing was handed over to the sidecar that was started: %s", why)
            _send(peer, {"refused": why[:500]})
        except Exception:
            log.exception("a fault of ours while handing over; we stay")
        finally:
            peer.close()

    async def _answer(self, peer: socket.socket) -> None:
        hello = _check(await _receive(peer), "hello")
        if hello["hello"] != VERSION:
            raise Refused(f"it speaks version {str(hello['hello'])[:20]} and we {VERSION}; stop us, then start it")
        if hello.get("instance") != self._instance:
            raise Refused(
                f"state_dir: {self._state.path} is in use by instance {self._instance!r}; "
                "give every instance its own directory"
            )
        if self._handing:
            raise Refused("another one is being handed over to")
        self._handing = True
        try:
            await self._hand_over(peer)
        finally:
            self._handing = False

    async def _hand_over(self, peer: socket.socket) -> None:
        listeners = list(self._listeners())
        for start in range(0, max(len(listeners), 1), _CHUNK):
            chunk = listeners[start : start + _CHUNK]
            _send_all(peer, {"listeners": [address for address, _ in chunk]}, [sock.fileno() for _, sock in chunk])
        await self._prepare()
        suspending = asyncio.ensure_future(asyncio.to_thread(self._state.suspend))
        try:
            await asyncio.shield(suspending)
            _send_all(peer, {"state": 1}, [self._state.lock])
            _check(await _receive(peer), "ready")
            # the controller was told that this holds, and the new one read what was there before
            await asyncio.to_thread(self._state.release, SNAPSHOT)
            _send_all(peer, {"yours": 1}, [])
            self._gone = True
        finally:
            if self._gone:
                self._state.abandon()
            else:
                await asyncio.shield(asyncio.ensure_future(self._write_again(suspending)))
        log.info("another sidecar has taken over; what runs here may finish")
        self._replaced()

    async def _write_again(self, suspending: asyncio.Future[None]) -> None:
        """Go on writing, once a disk that hangs has let us stop; whoever gave up waiting for that does not mind."""
        await asyncio.wait([suspending])
        await asyncio.to_thread(self._state.resume)


# The new one ----------------------------------------------------------------------------------------------------------


class Takeover:
    """What the running sidecar gave: its sockets and, after :meth:`confirm`, the right to use them.

    :param lock: of the state directory
    """

    def __init__(self, peer: socket.socket, listeners: Sequence[Listener], lock: int) -> None:
        self._peer = peer
        self.inherited = Inherited(listeners)
        self.lock = lock

    async def confirm(self) -> None:
        """We are ready. When this returns, the running one has stopped and everything is ours.

        :raises Refused: when it has not, and goes on
        """
        peer = self._peer
        try:
            _send_all(peer, {"ready": 1}, [])
            async with asyncio.timeout(DEADLINE):
                _check(await _receive(peer), "yours")
        except (OSError, TimeoutError) as error:
            raise Refused(f"the running sidecar goes on: {error or 'it did not answer'}; start again") from None
        finally:
            peer.close()

    def close(self) -> None:
        """Close what nobody took."""
        self._peer.close()
        self.inherited.close()


async def take_over(path: Path, instance: str) -> Takeover | None:
    """Ask the sidecar that runs with this state directory for everything.

    :param path: the state directory
    :return: None when nobody answers there
    :raises Refused: when it does not hand over; the message says why
    """
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    received: list[int] = []
    listeners: list[Listener] = []
    try:
        if not _connect(peer, path):
            peer.close()
            return None
        if not _is_ours(peer):
            raise Refused(
                f"state_dir: {path} is in use by another user's sidecar; give every instance its own directory"
            )
        async with asyncio.timeout(DEADLINE):
            _send_all(peer, {"hello": VERSION, "instance": instance}, [])
            while "state" not in (message := _check(await _receive(peer, received), "listeners", "state")):
                _add_listeners(listeners, message, received)
        lock = _lock(path, received)
        return Takeover(peer, listeners, lock)
    except BaseException as error:
        peer.close()
        for descriptor in received:
            os.close(descriptor)
        for _, sock in listeners:
            sock.close()
        if isinstance(error, Refused):
            raise
        if isinstance(error, OSError | TimeoutError):
            why = str(error) or "it did not answer"
            raise Refused(f"state_dir: {path} is in use by another sidecar, which does not hand over: {why}") from None
        raise


def _connect(peer: socket.socket, path: Path) -> bool:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        peer.connect(f"/proc/self/fd/{directory}/{SOCKET}")
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    finally:
        os.close(directory)
    return True


def _add_listeners(listeners: list[Listener], message: dict[str, object], received: list[int]) -> None:
    """Take the descriptors that came with a message for what it calls them. What is taken is in ``listeners``."""
    named = message["listeners"]
    if not isinstance(named, list) or len(named) != len(received):
        raise Refused("the running sidecar named other sockets than it sent; stop it, then start again")
    for name in named:
        match name:
            case [str(host), int(port)]:
                address = Address(host, port)
            case _:
                raise Refused("the running sidecar named no address; stop it, then start again")
        sock = socket.socket(fileno=received[0])
        del received[0]  # it is the socket's now
        listeners.append((address, sock))
        listening = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not listening or (port and not _listens_on(sock, address)):
            raise Refused(f"the running sidecar sent no socket that listens on {address}; stop it, then start again")
        sock.setblocking(False)


def _listens_on(sock: socket.socket, address: Address) -> bool:
    """Whether that is where it listens, or everywhere in both IP versions, where ``address`` is everywhere."""
    if sock.getsockname()[:2] == address:
        return True
    both = sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    return both and address.host == "0.0.0.0" and sock.getsockname()[:2] == ("::", address.port)


def _lock(path: Path, received: list[int]) -> int:
    """The lock that came, if it is that of our directory."""
    if len(received) != 1:
        raise Refused("the running sidecar sent no lock; stop it, then start again")
    ours = (path / LOCK).lstat()
    theirs = os.fstat(received[0])
    if not stat.S_ISREG(theirs.st_mode) or (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
        raise Refused("the running sidecar sent another lock; stop it, then start again")
    return received.pop()


# Messages -------------------------------------------------------------------------------------------------------------


def _is_ours(peer: socket.socket) -> bool:
    """Whether our own user is at the other end."""
    user: int
    _, user, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return user == os.geteuid()


def _check(message: dict[str, object], *wanted: str) -> dict[str, object]:
    if "refused" in message:
        raise Refused(f"the running sidecar refuses: {str(message['refused'])[:500]}")
    if not any(word in message for word in wanted):
        raise Refused(f"an unknown message; expected {' or '.join(wanted)}")
    return message


async def _receive(peer: socket.socket, received: list[int] | None = None) -> dict[str, object]:
    """The next message.

    :param received: gets its descriptors; without it they are closed
    :raises Refused: when the other end has left, or it is no message
    """
    await _readable(peer)
    data, descriptors, flags, _ = socket.recv_fds(peer, _MAX_PACKET, _CHUNK, socket.MSG_CMSG_CLOEXEC)
    if received is None:
        for descriptor in descriptors:
            os.close(descriptor)
    else:
        received += descriptors
    if not data:
        raise Refused("the other end has left")
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise Refused("a message that is too long")
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise Refused("a message that is none")
    return message


async def _readable(peer: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(peer.fileno(), lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(peer.fileno())


def _send_all(peer: socket.socket, message: dict[str, object], descriptors: Sequence[int]) -> None:
    """:raises OSError: when the other end has left, or reads nothing"""
    socket.send_fds(peer, [json.dumps(message).encode()], descriptors)


def _send(peer: socket.socket, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        _send_all(peer, message, [])
