"""One end of the socket pair between the supervisor and a worker.

Nothing here waits: what the other end does not take is kept, up to a limit beyond which it counts as gone. Descriptors
travel beside the first byte of their frame (``SCM_RIGHTS``, unix(7)).
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sidecar.workers.frames import MAX_DESCRIPTORS, Broken, Frame, Kind, Reader, encode

log = logging.getLogger(__name__)

#: Bytes that wait for the other end to take them.
MAX_WAITING: Final = 64 << 20
_READ: Final = 262_144


class Link:
    """Sends frames, and hands over those that come.

    :param allowed: what may come, as for :class:`~sidecar.workers.frames.Reader`
    :param take: gets each frame, with its descriptors, which are its own from then on; may raise :class:`Broken`
    :param lost: called once, with the reason, when the other end has left or can not be understood; never by
        :meth:`close`
    """

    def __init__(
        self,
        sock: socket.socket,
        allowed: Mapping[Kind, int],
        take: Callable[[Frame, list[int]], None],
        lost: Callable[[str], None],
        max_waiting: int = MAX_WAITING,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = Reader(allowed)
        self._take = take
        self._lost = lost
        self._max_waiting = max_waiting
        self._loop: asyncio.AbstractEventLoop | None = None
        self._received: list[int] = []  # descriptors whose frame has not come to its end
        self._waiting: deque[tuple[memoryview, list[int]]] = deque()
        self._waiting_bytes = 0
        #: The other end has closed the connection in good order.
        self.left = False

    @property
    def open(self) -> bool:
        return self._loop is not None

    def start(self) -> None:
        """Begin to read, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def send(
        self,
        kind: Kind,
        head: Mapping[str, object] | None = None,
        blobs: Sequence[bytes] = (),
        descriptors: Sequence[int] = (),
    ) -> None:
        """Send a frame, or nothing when the other end has left.

        :param descriptors: stay the caller's
        """
        if not self.open:
            return
        data = encode(kind, head, blobs, len(descriptors))
        if self._waiting_bytes + len(data) > self._max_waiting:
            self._fail("it takes nothing of what it is told")
            return
        kept = [os.dup(one) for one in descriptors]
        self._waiting.append((memoryview(data), kept))
        self._waiting_bytes += len(data)
        if len(self._waiting) == 1:
            self._flush()

    def close(self) -> None:
        """Say and hear nothing more. Calling it again changes nothing."""
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._loop = None
        self._sock.close()
        for descriptor in (*self._received, *(one for _, kept in self._waiting for one in kept)):
            os.close(descriptor)
        self._received.clear()
        self._waiting.clear()
        self._waiting_bytes = 0

    def _fail(self, why: str) -> None:
        if self.open:
            self.close()
            self._lost(why)

    # out

    def _flush(self) -> None:
        try:
            while self._waiting:
                data, kept = self._waiting[0]
                sent = self._sock.sendmsg([data], _beside(kept))
                for descriptor in kept:
                    os.close(descriptor)
                kept.clear()
                self._waiting_bytes -= sent
                if sent < len(data):
                    self._waiting[0] = (data[sent:], kept)
                else:
                    self._waiting.popleft()
        except BlockingIOError:
            if self._loop is not None:
                self._loop.add_writer(self._sock.fileno(), self._writable)
        except OSError as error:
            self._fail(f"it can not be told anything: {error.strerror}")

    def _writable(self) -> None:
        if self._loop is not None:
            self._loop.remove_writer(self._sock.fileno())
            self._flush()

    # in

    def _readable(self) -> None:
        try:
            data, received, flags, _ = socket.recv_fds(self._sock, _READ, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(f"it can not be heard: {error.strerror}")
            return
        self._received += received
        if not data:
            self.left = True
            self._fail("it has left")
            return
        if flags & socket.MSG_CTRUNC:
            self._fail("descriptors of it were lost; raise the limit of open files")
            return
        try:
            for frame in self._reader.feed(data):
                self._take(frame, self._of(frame))
                if not self.open:  # closed by what it said
                    return
        except Broken as error:
            self._fail(f"it said what can not be understood: {error}")
        except Exception:
            log.exception("a fault of ours between the processes of this sidecar")
            self._fail("a fault of ours")

    def _of(self, frame: Frame) -> list[int]:
        if frame.descriptors > len(self._received):
            raise Broken(f"{frame.kind.name} without the descriptors that it speaks of")
        own, self._received = self._received[: frame.descriptors], self._received[frame.descriptors :]
        return own


def _beside(descriptors: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    if not descriptors:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
