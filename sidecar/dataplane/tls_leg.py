"""A TLS 1.3 connection as a leg of a lane: another mesh's client of our application, or another mesh's server.

What is written is encrypted at once and sent once per batch; what the kernel does not take is held and counted. Beyond
the rules of :mod:`sidecar.dataplane.legs`:

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
from collections.abc import Callable
from time import monotonic
from typing import Final

from sidecar.dataplane.carrier import Budget
from sidecar.dataplane.frames import Rate
from sidecar.dataplane.lease import Lease
from sidecar.dataplane.legs import TOO_MUCH_HELD, Lane
from sidecar.dataplane.portion import LEAST
from sidecar.dataplane.reactor import Reactor
from sidecar.dataplane.tcp_leg import EVENTS, TcpLeg
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


class TlsLeg(TcpLeg):
    """Bytes to and from the peer of a completed handshake whose identity was accepted.

    :param sock: registered with the reactor already, as a handshake leaves it
    :param lease: of the handshake's proof; None: of a connection out of the mesh, which proves no identity of its own
    :param lane: is told of what happens
    :param complain: is told, beside the lane, of an end that people should know of
    """

    __slots__ = ("__weakref__", "_channel", "_complain", "_dirty", "_partial", "_primed", "_silent", "lease")

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
        super().__init__(reactor, sock, budget, lane, LEAST)
        self._channel = channel
        #: What its peer has proved.
        self.lease = lease
        self._complain = complain
        #: A server of TLS 1.3 judges our certificate after our handshake is complete: it has taken us when it speaks.
        self.reached = reached
        self._dirty = False
        self._silent = Rate(SILENT_RECORDS)
        self._partial = channel.incoming.read()  # came with the end of the handshake
        self._primed = self._readable = bool(self._partial)
        reactor.hand_over(sock, EVENTS, self)
        if lease is not None:
            self._timer = Term(reactor.loop, lease, self._lease_ended)
        if self._primed:
            self._go_on()
        if channel.outgoing.pending:
            self._mark()

    # the lane's side

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._sock is None or self._ended or not data:
            return
        write = self._channel.write
        try:
            done = write(memoryview(data))
            while done < len(data):
                done += write(memoryview(data)[done:])
        except ssl.SSLError as error:
            self._ended = True
            self._reactor.loop.call_soon(self._broken, _reason(error))  # outside the call of the lane
            return
        self._mark()

    def end(self) -> None:
        if self._ended or self._sock is None:
            return
        self._ended = True
        with contextlib.suppress(ssl.SSLError):  # it waits for the peer's close_notify; ours is in the buffer now
            self._channel.session.unwrap()
        self._mark()

    def reset(self) -> None:
        self._send_last()
        super().reset()

    # receiving

    def pump(self) -> None:
        """Read once: the others want their turn too."""
        sock = self._sock
        if sock is None or self._paused or not self._readable or self._eof:
            return
        held = len(self._partial)
        self._reactor.received[:held] = self._partial
        if self._primed:
            self._primed = False
            size = 0  # what came with the handshake; the next read says whether there is more
        else:
            try:
                size = sock.recv_into(self._reactor.received_view[held:], self._portion)
            except BlockingIOError:
                self._readable = False
                if self._deaf:
                    self._fail(self._deaf)
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
        self._took(monotonic() - began, _READ)
        if self._readable and not self._paused and not self._eof and not self.queued and self._sock is not None:
            self._go_on()

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
            if self._deaf:  # it ended in good order, and what we say is lost all the same
                self._readable = False
                self.lane.ended(self)
                self._fail_soon(self._deaf)
            else:
                self._tell_end()

    def _truncated(self) -> None:
        if self._deaf:  # writing was told of a reset, and to reading it looks like an end
            self._fail(self._deaf)
            return
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
                self._break_off(error.strerror or str(error))
                return
            if taken == len(data):
                data = b""
            elif taken:
                data = data[taken:]
        if data:
            if not self._hold(data):
                self._fail(TOO_MUCH_HELD)
        elif self._ended and not self._held:
            self._shutdown()

    def _mark(self) -> None:
        if not self._dirty:
            self._dirty = True
            self._reactor.mark_dirty(self)

    def _shutdown(self) -> None:
        """The kernel has everything; our close_notify too, unless it is still to be flushed."""
        if not self._channel.outgoing.pending:
            super()._shutdown()

    # ending

    def _lease_ended(self) -> None:
        self._broken("a certificate that was shown in the handshake has ended; the connection has to be made again")

    def _broken(self, why: str) -> None:
        if self._sock is not None:
            self._complain(why)
            self._fail(why)

    def _fail(self, why: str) -> None:
        self._send_last()
        super()._fail(why)

    def _send_last(self) -> None:
        """Send what was written in this batch, or an alert, before a reset, as far as the kernel takes it."""
        sock, data = self._sock, self._channel.outgoing.read()
        if sock is not None and data and not self._held and not self._shut:
            with contextlib.suppress(OSError):  # the reset that follows says enough
                sock.send(data)

    def _close(self) -> None:
        self._partial = b""
        super()._close()


def _reason(error: ssl.SSLError) -> str:
    return error.reason.lower().replace("_", " ") if error.reason else str(error)
