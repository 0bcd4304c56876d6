"""A TLS 1.3 connection as a leg of a lane: another mesh's client of our application, or another mesh's server.

What is written is encrypted at once and sent once per batch; what the kernel does not take is held and counted. The
socket is edge-triggered and registered once. Beyond the rules of :mod:`sidecar.dataplane.legs`:

1. The end of a direction is a close_notify, both ways (RFC 8446 section 6.1: the other direction stays open). An end
   of the TCP connection without one may be anybody's doing, and loses the leg.
2. The leg ends with the first of the two certificates that were shown in its handshake. Nothing extends that: there is
   no second handshake in which the pair could prove itself again.
3. Records go to OpenSSL one by one, and those that carry nothing for the application (new keys, tickets, empty ones)
   are limited by rate: each costs more than it weighs, and new keys may ask for an answer.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from sidecar.dataplane import sockets
from sidecar.dataplane.carrier import Budget
from sidecar.dataplane.frames import Rate
from sidecar.dataplane.lease import Lease
from sidecar.dataplane.legs import NOBODY, Lane
from sidecar.dataplane.portion import adapted
from sidecar.dataplane.reactor import EDGE, ERROR, GONE, HUP, IN, NOT_OUT, OUT, RDHUP, Reactor
from sidecar.dataplane.term import Term
from sidecar.dataplane.tls import Channel

#: One read, bytes of the wire.
_READ: Final = 131_072
_RECORD: Final = 16_384
_HEADER: Final = 5
#: Bytes of a record with its header: RFC 8446 section 5.2 lets a ciphertext be 256 bytes longer than its text.
_LONGEST: Final = _HEADER + _RECORD + 256
#: Records a second that carry nothing for the application; twice as many at once.
SILENT_RECORDS: Final = 32


class TlsLeg:
    """Bytes to and from the peer of a completed handshake whose identity was accepted.

    :param sock: registered with the reactor already, as a handshake leaves it
    :param lease: of the handshake's proof; None: of a connection out of the mesh, which proves no identity of its own
    :param lane: is told of what happens
    :param complain: is told, beside the lane, of an end that people should know of
    """

    __slots__ = (
        "_blocked",
        "_budget",
        "_channel",
        "_complain",
        "_dirty",
        "_ended",
        "_eof",
        "_held",
        "_hup",
        "_partial",
        "_paused",
        "_portion",
        "_primed",
        "_reactor",
        "_readable",
        "_shut",
        "_silent",
        "_sock",
        "_term",
        "lane",
        "queued",
        "reached",
        "unsent",
    )

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        channel: Channel,
        lease: Lease | None,
        budget: Budget,
        lane: Lane,
        complain: Callable[[str], None],
        *,
        reached: bool = True,
    ) -> None:
        self._reactor = reactor
        self._sock: socket.socket | None = sock
        self._channel = channel
        self._budget = budget
        self._complain = complain
        self.lane = lane
        #: A server of TLS 1.3 judges our certificate after our handshake is complete: it has taken us when it speaks.
        self.reached = reached
        self._held: deque[memoryview] = deque()  # encrypted, and not taken by the kernel
        self.unsent = 0
        self._dirty = False
        self._readable = False
        self._hup = False  # a short read does not mean that the socket is empty: the end is behind it
        self._paused = False
        self._portion = _READ >> 2  # until it is known what a read costs
        self._eof = False  # the peer has sent its close_notify
        self._ended = False  # we have written ours
        self._shut = False  # the kernel has all of it
        self._silent = Rate(SILENT_RECORDS)
        self.queued = False
        self._partial = channel.incoming.read()  # came with the end of the handshake
        self._primed = bool(self._partial)
        reactor.hand_over(sock, IN | OUT | RDHUP | EDGE, self)
        self._term = Term(reactor.loop, lease, self._lease_ended) if lease is not None else None
        if self._primed:
            reactor.pump_again(self)
        if channel.outgoing.pending:
            self._mark()

    # the lane's side

    @property
    def closed(self) -> bool:
        return self._sock is None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._sock is None or self._ended or not data:
            return
        write = self._channel.write
        try:
            done = write(memoryview(data))
            while done < len(data):
                done += write(memoryview(data)[done:])
        except ssl.SSLError as error:
            self._fail_soon(_reason(error))
            return
        self._mark()

    def end(self) -> None:
        if self._ended or self._sock is None:
            return
        self._ended = True
        with contextlib.suppress(ssl.SSLError):  # it waits for the peer's close_notify; ours is in the buffer now
            self._channel.session.unwrap()
        self._mark()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if (self._readable or self._primed) and not self.queued and self._sock is not None:
                self._reactor.pump_again(self)

    def reset(self) -> None:
        if self._sock is not None:
            sockets.reset(self._sock)
            self._close()

    # receiving

    def on_event(self, events: int) -> None:
        if self._sock is None:
            return
        if events & OUT and self._held:
            self._drain()
        if events & NOT_OUT and self._sock is not None:
            if not self._eof:
                self._readable = True
                if events & GONE:
                    self._hup = True
                if not self.queued:
                    self.pump()
            elif events & (HUP | ERROR) and not self._shut:
                self._fail("the peer reset the connection")

    def pump(self) -> None:
        """Read once: the others want their turn too."""
        sock = self._sock
        if sock is None or self._paused or self._eof:
            return
        held = len(self._partial)
        self._reactor.received[:held] = self._partial
        if self._primed:
            self._primed = False
            self._readable = True  # perhaps; the next read says
            size = 0
        elif not self._readable:
            return
        else:
            try:
                size = sock.recv_into(self._reactor.received_view[held:], self._portion)
            except BlockingIOError:
                self._readable = False
                return
            except OSError as error:
                self._fail(error.strerror or str(error))
                return
            if size == 0:
                self._truncated()
                return
            if size < self._portion and not self._hup:
                self._readable = False  # a short read: empty; an edge will follow
        began = monotonic()
        self._decrypt(held + size)
        self._portion = adapted(self._portion, monotonic() - began, _READ)
        if self._readable and not self._paused and not self._eof and not self.queued and self._sock is not None:
            self._reactor.pump_again(self)

    def _decrypt(self, end: int) -> None:
        """Tell the lane what the records in the first ``end`` bytes received hold."""
        received, view = self._reactor.received, self._reactor.received_view
        plain = self._reactor.plain_view
        write, read = self._channel.incoming.write, self._channel.read
        position = size = 0
        failure = ""
        while end - position >= _HEADER:
            length = _HEADER + (received[position + 3] << 8 | received[position + 4])
            if length > _LONGEST:
                failure = f"the peer sent a record of {length} bytes"
                break
            if end - position < length:
                break
            write(view[position : position + length])
            position += length
            try:
                got = read(_RECORD, plain[size:])
            except ssl.SSLWantReadError:
                if not self._silent.take(self._reactor.loop.time()):
                    failure = f"the peer sent more than {SILENT_RECORDS} records a second without data"
                    break
                continue
            except ssl.SSLZeroReturnError:  # both directions are closed now
                got = 0
            except ssl.SSLError as error:
                failure = _reason(error)
                break
            if got == 0:
                self._eof = True
                break
            size += got
        self._partial = b"" if self._eof else bytes(view[position:end])
        if self._channel.outgoing.pending:
            self._mark()  # new keys to answer, or an alert
        self._tell(size, failure)

    def _tell(self, size: int, failure: str) -> None:
        if size or self._eof:
            self.reached = True
        if size:
            self.lane.received(self, self._reactor.plain_view[:size])
        if failure:
            self._broken(failure)
        elif self._eof and self._sock is not None:
            self._readable = False
            self.lane.ended(self)
            if self._shut:
                self._close()

    def _truncated(self) -> None:
        self._broken("the peer ended the connection without saying so in TLS, as anybody on the way could")

    # sending

    def flush(self) -> None:
        """Give the kernel what was encrypted since the last batch."""
        self._dirty = False
        sock = self._sock
        data = self._channel.outgoing.read()
        if sock is None or self._shut:
            return  # after our close_notify nothing counts, not even an answer to new keys
        if not self._held and data:
            try:
                taken = sock.send(data)
            except BlockingIOError:
                taken = 0
            except OSError as error:
                self._break_off(error)
                return
            if taken == len(data):
                data = b""
            elif taken:
                data = data[taken:]
        if data:
            self._hold(data)
        elif self._ended and not self._held:
            self._shutdown()

    def _mark(self) -> None:
        if not self._dirty:
            self._dirty = True
            self._reactor.mark_dirty(self)

    def _hold(self, data: bytes) -> None:
        if not self._budget.hold(self, len(data)):
            self._fail("too much is held for receivers that do not read")
            return
        self.unsent += len(data)
        self._held.append(memoryview(data))

    def _drain(self) -> None:
        """Give the kernel what it did not take before."""
        sock, held = self._sock, self._held
        assert sock is not None
        try:
            while held:
                data = held[0]
                taken = sock.send(data)
                self._budget.release(self, taken)
                self.unsent -= taken
                if taken < len(data):
                    held[0] = data[taken:]
                    return
                held.popleft()
        except BlockingIOError:
            return
        except OSError as error:
            self._break_off(error)
            return
        if self._ended and not self._channel.outgoing.pending:
            self.lane.drained(self)
            self._shutdown()
        else:
            self.lane.drained(self)

    def _shutdown(self) -> None:
        """The kernel has everything, our close_notify too."""
        sock = self._sock
        if sock is None or self._shut:
            return
        self._shut = True
        if self._eof:
            self._close()
            return
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(error.strerror or str(error))

    # ending

    def abort(self, why: str) -> None:
        self._fail(why)

    def _lease_ended(self) -> None:
        self._broken("a certificate that was shown in the handshake has ended; the connection has to be made again")

    def _break_off(self, error: OSError) -> None:
        """The other end takes nothing more: fail, for the reason that it gave in an alert, if it did."""
        word = self._last_word()
        if word:
            self._broken(word)
        else:
            self._fail(error.strerror or str(error))

    def _last_word(self) -> str:
        """The alert behind which the other end has closed; empty when it sent none."""
        channel, plain = self._channel, memoryview(bytearray(_RECORD))
        assert self._sock is not None
        try:
            channel.incoming.write(self._partial + self._sock.recv(_LONGEST))
            while channel.read(_RECORD, plain):
                pass
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            return ""
        except ssl.SSLError as error:
            return _reason(error)
        except OSError:
            return ""
        return ""

    def _broken(self, why: str) -> None:
        if self._sock is not None:
            self._complain(why)
            self._fail(why)

    def _fail_soon(self, why: str) -> None:
        """Fail outside the call of the lane that noticed it."""
        self._ended = True
        self._reactor.loop.call_soon(self._broken, why)

    def _fail(self, why: str) -> None:
        sock = self._sock
        if sock is None:
            return
        alert = self._channel.outgoing.read()
        if alert and not self._held:
            with contextlib.suppress(OSError):
                sock.send(alert)
        lane = self.lane
        sockets.reset(sock)
        self._close()
        lane.lost(self, why)

    def _close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._readable = self._primed = False
        self._partial = b""
        if self._term is not None:
            self._term.cancel()
        self._budget.drop(self)
        self.unsent = 0
        self._held.clear()
        self.lane = NOBODY
        self._reactor.close(sock)


def _reason(error: ssl.SSLError) -> str:
    return error.reason.lower().replace("_", " ") if error.reason else str(error)
