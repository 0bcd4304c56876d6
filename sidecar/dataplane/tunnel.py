"""One tunnel: many streams over one mutual TLS connection, framed with yamux.

Promise: what one end of a stream sends arrives at the other in order, whole, and not faster than it is taken; a stream
that ends badly is reset at both ends. Rules:

1. Bytes leave through :mod:`sidecar.dataplane.sending`, once per batch.
2. The peer is not trusted with our memory: streams, opens, resets, pings, unread bytes and unread control frames are
   bounded, and every breach of the protocol ends the tunnel with GoAway(protocol error).
3. Only the end that dialled opens streams.
4. Nobody waits long for a tunnel: what takes time (records without text, thousands of small frames, the end of
   thousands of streams) is done in parts, between which all others have their turn.
5. After our GoAway(normal) the peer's streams are still accepted: those that crossed it on the way are no error, and
   the tunnel ends when the last one does, or with its lease (:mod:`sidecar.dataplane.lease`).

Sending, frames, records, lease and heartbeat stand apart; what is left here, over 400 lines, is one state: who may
still open, send or end what.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from time import monotonic
from typing import Final, Protocol

from sidecar.dataplane import frames
from sidecar.dataplane.carrier import Attached, Budget
from sidecar.dataplane.frames import FrameError, FrameReader, Rate
from sidecar.dataplane.heartbeat import Heartbeat
from sidecar.dataplane.lease import Lease
from sidecar.dataplane.portion import LEAST, adapted
from sidecar.dataplane.reactor import IN, NOT_OUT, OUT, RECEIVE, Reactor
from sidecar.dataplane.records import LONGEST, Records
from sidecar.dataplane.sending import Sender
from sidecar.dataplane.settings import DataPlaneSettings
from sidecar.dataplane.term import Term
from sidecar.dataplane.tls import Channel

#: One read, bytes: behind the beginning of a record there is room for so much.
_READ: Final = RECEIVE - LONGEST
#: Streams that end at once; each costs some microseconds, and there may be thousands.
_ENDS: Final = 64
#: Bytes that OpenSSL itself may have to say (answers to new keys) to a peer that does not read.
_UNASKED: Final = 65_536
#: Seconds in which the peer closes its end of a tunnel that was ended in good order.
_LINGER: Final = 5.0
#: Bytes that it may go on sending meanwhile.
_LINGER_BYTES: Final = 1 << 20
_LAST_ID: Final = (1 << 32) - 3


class TunnelOwner(Protocol):
    """Is told what becomes of a tunnel."""

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        """The peer has accepted us (it answered a ping). Only for tunnels that we dialled."""

    def tunnel_stream(self, tunnel: Tunnel, stream_id: int) -> None:
        """The peer opened a stream: attach one, or refuse it. Only for tunnels that the peer dialled."""

    def tunnel_leaving(self, tunnel: Tunnel) -> None:
        """The peer wants no new streams."""

    def tunnel_empty(self, tunnel: Tunnel) -> None:
        """The last stream ended."""

    def tunnel_complaint(self, tunnel: Tunnel, about: str) -> None:
        """The peer did what people should know of; the tunnel ends."""

    def tunnel_closed(self, tunnel: Tunnel, why: str) -> None:
        """The tunnel is gone and its streams are reset."""


class Tunnel:
    """A running tunnel. ``start()`` begins it; the socket is registered with the reactor already.

    :param dialled: whether we opened it, and so open its streams
    :param lease: how long it may live, for now
    """

    __slots__ = (
        "_channel",
        "_closing",
        "_heartbeat",
        "_last_peer_id",
        "_linger_left",
        "_linger_timer",
        "_next_id",
        "_opens",
        "_owner",
        "_portion",
        "_reactor",
        "_reader",
        "_ready",
        "_records",
        "_resets",
        "_settings",
        "_term",
        "budget",
        "closed",
        "dialled",
        "leaving",
        "queued",
        "sender",
        "sock",
        "streams",
    )

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        channel: Channel,
        lease: Lease,
        settings: DataPlaneSettings,
        owner: TunnelOwner,
        budget: Budget,
        *,
        dialled: bool,
    ) -> None:
        self._reactor = reactor
        self.sock = sock
        self._channel = channel
        self._settings = settings
        self._owner = owner
        self.budget = budget
        self.dialled = dialled
        self.sender = Sender(reactor, sock, channel, settings.control_bytes, self.abort)
        self.streams: dict[int, Attached] = {}
        self._reader = FrameReader(self)
        self._next_id = 1 if dialled else 2
        self._last_peer_id = 0
        self._opens = Rate(settings.opens_per_second)
        self._resets = Rate(settings.resets_per_second)
        self._records = Records(channel)
        self._portion = LEAST  # until it is known what a read costs
        self.queued = False  # there are frames that were decrypted and not read yet
        self._ready = not dialled
        self._closing = ""  # why, once the last bytes are on their way
        #: No new streams of ours go here.
        self.leaving = False
        self.closed = False
        loop = reactor.loop
        self._term = Term(loop, lease, self._lease_ended)
        self._linger_timer: asyncio.TimerHandle | None = None
        self._linger_left = _LINGER_BYTES
        self._heartbeat = Heartbeat(loop, self.sender, settings, self.abort)

    def start(self) -> None:
        """Take over the socket. A tunnel that we dialled is ready when the peer answers."""
        self._reactor.hand_over(self.sock, IN, self)
        if self.dialled:
            # In TLS 1.3 our handshake ends before the peer has judged our certificate; an answer says it did.
            self._heartbeat.ask()
        early = self._channel.incoming.read()  # came with the end of the handshake
        if early:
            self._reactor.received[: len(early)] = early
            self._receive(len(early))

    @property
    def answers(self) -> int:
        """Pings that the peer has answered."""
        return self._heartbeat.answers

    @property
    def lease(self) -> Lease:
        """How long it may live, for now."""
        return self._term.lease

    @property
    def usable(self) -> bool:
        """Whether one more stream can be opened."""
        return (
            self._ready
            and not self.leaving
            and len(self.streams) < self._settings.streams_per_tunnel
            and self._next_id <= _LAST_ID
        )

    # streams

    def open_id(self) -> int:
        """Open a stream towards the peer; the caller attaches it."""
        stream_id = self._next_id
        self._next_id = stream_id + 2
        self.sender.control(frames.WINDOW_UPDATE | frames.SYN, stream_id, 0)
        return stream_id

    def attach(self, stream_id: int, stream: Attached) -> None:
        if self.closed:  # it takes the place of one whose turn to end has not come yet
            self._reactor.loop.call_soon(stream.abort, "the tunnel is gone")
        else:
            self.streams[stream_id] = stream

    def detach(self, stream_id: int) -> None:
        """The stream is over at both ends."""
        if self.streams.pop(stream_id, None) is not None and not self.streams:
            self._owner.tunnel_empty(self)

    def refuse(self, stream_id: int, *, unreached: bool = False) -> None:
        """Answer a stream that the peer opened with a reset.

        :param unreached: because our application could not be called, or one stream more is too many: somebody else may
            be able to serve it
        """
        self.sender.control(frames.UNREACHED if unreached else frames.WINDOW_UPDATE | frames.RST, stream_id, 0)

    # receiving

    def on_event(self, events: int) -> None:
        if events & OUT and self.sender.blocked:
            self.sender.writable()
        if events & NOT_OUT and not self.closed:
            if self.queued:
                return  # what came before is first
            reactor, partial = self._reactor, self._records.partial
            held = len(partial)
            try:
                size = self.sock.recv_into(reactor.received_view[held:], self._portion)
            except BlockingIOError:
                return
            except OSError as error:
                self.abort(str(error))
                return
            if size == 0:
                self.abort(self._closing or "the peer closed the connection")
                return
            if self._closing:  # there is nothing left that could matter
                self._linger_left -= size
                if self._linger_left < 0:
                    self.abort(self._closing)
                return
            self._heartbeat.heard = True
            if held:
                reactor.received[:held] = partial
            began = monotonic()
            self._receive(held + size)
            self._portion = adapted(self._portion, monotonic() - began, _READ)

    def pump(self) -> None:
        """Go on with frames that were decrypted."""
        if not self._reader.closed:
            self._receive(0)

    def _receive(self, arrived: int) -> None:
        """Decrypt and read the first ``arrived`` bytes received, behind what is held."""
        reactor, reader, records = self._reactor, self._reader, self._records
        plain, view = reactor.plain, reactor.plain_view
        held = reader.held
        end = len(held)
        if end:
            plain[:end] = held
        try:
            if arrived:
                end = records.decrypt(reactor.received, reactor.received_view, arrived, view, end, reactor.loop.time)
            reader.feed(plain, view, end)
        except ssl.SSLError as error:
            self.abort(error.reason.lower().replace("_", " ") if error.reason else str(error))
            return
        except FrameError as error:
            self._protocol_error(error)
            return
        if len(reader.held) >= frames.HEADER_SIZE and not reader.closed:
            reactor.pump_again(self)
        elif records.ended:
            self.abort("the peer ended the tunnel")
        elif self._channel.outgoing.pending:  # a key update to answer
            if self.sender.blocked and self._channel.outgoing.pending > _UNASKED:
                self.abort("the peer does not read")
            else:
                self.sender.mark()

    def on_data(self, stream_id: int, flags: int, length: int) -> Attached | None:
        if flags & ~frames.FIN:
            self._flags(stream_id, flags, unreached=True)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id)
            return None
        stream.expect(length)
        return stream

    def on_control(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if kind == frames.WINDOW_UPDATE:
            if flags & ~frames.FIN:
                self._flags(stream_id, flags)
            stream = self.streams.get(stream_id)
            if stream is None:
                self._check_known(stream_id)
                return
            if length:
                stream.granted(length)
            if flags & frames.FIN:
                stream.finish()
        elif kind == frames.PING:
            self._heartbeat.received(flags, length)
            if not self._ready and self._heartbeat.answers:
                self._ready = True
                self._owner.tunnel_ready(self)
        else:
            self._on_go_away(length)

    def fault(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        self._reactor.contain(stream)
        if stream is None:  # it has let go of the tunnel, or was never attached, and the peer would wait for it
            self.refuse(stream_id)

    def _flags(self, stream_id: int, flags: int, *, unreached: bool = False) -> None:
        """Act on SYN, ACK or RST; there is only one of them in a valid frame.

        :param unreached: a reset of this frame says that nothing was delivered
        """
        if flags & frames.SYN:
            self._on_open(stream_id)
            return
        stream = self.streams.get(stream_id)
        if flags & frames.RST and not self._resets.take(self._reactor.loop.time()):
            raise FrameError(f"more than {self._settings.resets_per_second} resets a second")
        if stream is None:
            self._check_known(stream_id)
        elif flags & frames.RST:
            if unreached:
                stream.unreached()
            else:
                stream.reset_by_peer()
        else:
            stream.accepted()

    def _on_open(self, stream_id: int) -> None:
        if self.dialled:
            raise FrameError("the end that was dialled opened a stream")
        if not stream_id & 1 or stream_id <= self._last_peer_id:
            raise FrameError(f"stream {stream_id} can not be opened after stream {self._last_peer_id}")
        self._last_peer_id = stream_id
        if not self._opens.take(self._reactor.loop.time()):
            raise FrameError(f"more than {self._settings.opens_per_second} streams opened a second")
        if len(self.streams) >= self._settings.streams_per_tunnel:
            self.budget.counters.streams_refused += 1
            self.refuse(stream_id, unreached=True)
        else:
            self._owner.tunnel_stream(self, stream_id)

    def _check_known(self, stream_id: int) -> None:
        """Frames for a stream that ended may still be on their way; for one that never was there is no excuse."""
        ours = bool(stream_id & 1) == self.dialled
        if stream_id >= self._next_id if ours else stream_id > self._last_peer_id:
            raise FrameError(f"a frame for stream {stream_id}, which was never opened")

    def _on_go_away(self, code: int) -> None:
        if code != frames.NORMAL:
            self._owner.tunnel_complaint(self, f"ended the tunnel with GoAway({code})")
            self.abort(f"the peer ended the tunnel with GoAway({code})")
        elif not self.leaving:
            self.leaving = True
            self._owner.tunnel_leaving(self)

    # ending

    def extend(self, lease: Lease) -> None:
        """Live by ``lease`` from now on: the pair has proved itself again."""
        self._term.extend(lease)

    def _lease_ended(self) -> None:
        if self.streams:
            lost = f"{len(self.streams)} connections are lost"
            self._owner.tunnel_complaint(self, f"did not prove itself again before a certificate ended; {lost}")
        self.abort("its lease ended")

    def leave(self) -> None:
        """Ask the peer to open its next streams elsewhere."""
        self.leaving = True
        self.sender.control(frames.GO_AWAY, 0, frames.NORMAL)

    def close(self, why: str) -> None:
        """End a tunnel without streams in good order: what is queued, GoAway, close_notify, then wait for the peer.

        Closing the socket with bytes of the peer unread would reset the connection and lose what is still to be sent.
        """
        if self.closed or self._closing:
            return
        if self.streams:
            self.abort(why)
            return
        self.leaving = True
        self.sender.control(frames.GO_AWAY, 0, frames.NORMAL)
        self._end_in_order(why)

    def _end_in_order(self, why: str) -> None:
        self._term.cancel()
        self._heartbeat.cancel()
        self._linger_timer = self._reactor.loop.call_later(_LINGER, self.abort, why)
        self._reader.closed = True
        self._closing = why
        self.sender.finish(self._shut)

    def _shut(self) -> None:
        """Everything is sent: end our direction."""
        with contextlib.suppress(ssl.SSLError):  # it waits for the peer's close_notify; ours is in the buffer now
            self._channel.session.unwrap()
        try:
            self.sock.send(self._channel.outgoing.read())
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.abort(str(error))

    def abort(self, why: str) -> None:
        """End the tunnel now; its streams are reset."""
        if self.closed:
            return
        self.closed = self.leaving = self._reader.closed = True
        self._term.cancel()
        self._heartbeat.cancel()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        self.sender.close()
        streams = list(self.streams.values())
        self.streams.clear()
        self._end_streams(self._reactor.loop, streams, why)
        self._reactor.close(self.sock)
        self._owner.tunnel_closed(self, why)

    def _protocol_error(self, error: FrameError) -> None:
        self.budget.counters.tunnels_broken += 1
        self._owner.tunnel_complaint(self, f"broke the tunnel protocol: {error}")
        self.leaving = True
        self.sender.control(frames.GO_AWAY, 0, frames.PROTOCOL_ERROR)
        self._end_in_order(f"protocol error: {error}")
        self._end_streams(self._reactor.loop, list(self.streams.values()), str(error))

    def _end_streams(self, loop: asyncio.AbstractEventLoop, streams: list[Attached], why: str) -> None:
        """Abort some of them now and the others later; one that has ended meanwhile does not mind."""
        for stream in streams[-_ENDS:]:
            stream.abort(why)
        del streams[-_ENDS:]
        if streams:
            loop.call_soon(self._end_streams, loop, streams, why)
