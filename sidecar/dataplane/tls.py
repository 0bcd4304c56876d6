"""TLS 1.3 over memory buffers: the handshake of a tunnel or with another mesh's proxy, and who is at the other end.

A handshake is a source of the reactor until it is done; then the tunnel or leg takes the socket over. Nothing is read
from or written to a peer's streams before :func:`identify` has accepted it.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from certs.certificate import read_certificate
from certs.contexts import peer_certificates
from certs.errors import CertError
from certs.spiffe import SpiffeId
from certs.svid import instance_of
from sidecar.dataplane.contracts import Credentials
from sidecar.dataplane.lease import Proof, Shown
from sidecar.dataplane.reactor import IN, NOT_OUT, OUT, Reactor
from sidecar.dataplane.settings import ALPN
from sidecar.errors import SidecarError

#: What is agreed on for a tunnel, and for nothing else.
_TUNNEL: Final = (ALPN,)
#: Bytes of certificates that are kept of a handshake. Ours are a tenth of that, a foreign mesh's seldom half.
KEPT: Final = 12_288


class PeerRefused(SidecarError):
    """The other end did not prove an identity that we accept."""


class HandshakeFailed(SidecarError):
    """The handshake did not complete: wrong certificates, no TLS, or no answer in time.

    :param untrusted: we were shown no certificate, or one that we do not accept
    """

    def __init__(self, message: str, *, untrusted: bool = False) -> None:
        super().__init__(message)
        self.untrusted = untrusted


class Channel:
    """An established TLS session between two memory buffers.

    ``read`` and ``write`` are those of the session itself: ``read(size, buffer)`` raises ``ssl.SSLWantReadError`` when
    there is no whole record, and returns 0 at the peer's close_notify.

    :param ours: what the certificate that we show in this session says; a renewal meanwhile does not change it
    """

    __slots__ = ("incoming", "ours", "outgoing", "read", "session", "write")

    def __init__(self, session: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, ours: Shown) -> None:
        self.session = session
        self.ours = ours
        self.incoming = incoming
        self.outgoing = outgoing
        # The private object has the same two methods without a Python-level wrapper around each call.
        raw: Any = getattr(session, "_sslobj", None)
        if not (hasattr(raw, "read") and hasattr(raw, "write")):
            raw = session
        self.read: Callable[[int, memoryview], int] = raw.read
        self.write: Callable[[memoryview], int] = raw.write


def identify(
    channel: Channel,
    credentials: Credentials,
    place: str,
    expected: str = "",
    *,
    agreed: Collection[str | None] = _TUNNEL,
    account_will_do: bool = False,
) -> Proof:
    """Decide whether the peer of a completed handshake may have a tunnel, or a connection.

    :param place: where the peer is, see :class:`~sidecar.dataplane.lease.Proof`
    :param expected: the only SPIFFE ID that will do; empty accepts every verified one
    :param agreed: what ALPN may have come to; None: to nothing
    :param account_will_do: the expected ID without its workload will do too, for peers whose mesh knows accounts only
    :raises PeerRefused: saying what is wrong
    """
    session = channel.session
    if session.version() != "TLSv1.3":
        raise PeerRefused(f"the peer speaks {session.version()}, not TLSv1.3")
    if (protocol := session.selected_alpn_protocol()) not in agreed:
        wanted = " or ".join(name or "none" for name in agreed)
        raise PeerRefused(f"the peer did not agree to ALPN {wanted}, but to {protocol or 'none'}")
    if session.context.verify_mode is not ssl.CERT_REQUIRED:
        raise PeerRefused("the peer's chain was not verified")  # a fault of ours; deny on doubt
    leaf = session.getpeercert(True)
    if not leaf:
        raise PeerRefused("the peer showed no certificate")
    try:
        spiffe_id = credentials.verify_connection(session)
        not_after = read_certificate(leaf, "the peer's certificate").not_valid_after_utc.timestamp()
        peer = Shown(spiffe_id, instance_of(leaf), not_after, hashlib.sha256(leaf).hexdigest())
        certificates = peer_certificates(session)
    except CertError as error:
        raise PeerRefused(str(error)) from error
    if not spiffe_id.namespace:
        raise PeerRefused(f"{spiffe_id} is no workload's identity")
    if expected and str(spiffe_id) != expected and not (account_will_do and _is_account_of(spiffe_id, expected)):
        raise PeerRefused(f"the peer is {spiffe_id}, expected {expected}")
    if sum(map(len, certificates)) > KEPT:
        certificates = ()
    return Proof(channel.ours, peer, place, certificates, time.time())


def _is_account_of(shown: SpiffeId, expected: str) -> bool:
    """Whether ``shown`` stops at the account that the workload ``expected`` runs as."""
    return not shown.workload and expected.startswith(f"{shown}/wl/")


class Handshake:
    """Runs one handshake on the reactor.

    :param sock: connected and non-blocking; registered already when ``registered``
    :param context: of ``credentials``, when it is not that of a tunnel
    :param host: that a server is asked for, and has to prove where ``context`` checks names
    :param done: called once, with the channel on success or with the reason of the failure. On success the socket
        stays registered and is the callee's; otherwise it is closed.
    :param timeout: seconds for all of it
    """

    __slots__ = ("_channel", "_complete", "_done", "_pending", "_reactor", "_sock", "_timer")

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        credentials: Credentials,
        *,
        server_side: bool,
        registered: bool,
        timeout: float,
        done: Callable[[Channel | HandshakeFailed], None],
        context: ssl.SSLContext | None = None,
        host: str | None = None,
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._done: Callable[[Channel | HandshakeFailed], None] | None = done
        self._pending = b""
        self._complete = False
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        if context is None:
            context = credentials.server_context if server_side else credentials.client_context
        ours = Shown(credentials.identity, credentials.instance, credentials.not_after)
        # SVIDs have no names to check; the identity is checked by identify().
        session = context.wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=host)
        self._channel = Channel(session, incoming, outgoing, ours)
        if registered:
            reactor.hand_over(sock, IN, self)
        else:
            reactor.register(sock, IN, self)
        self._timer = reactor.call_later(timeout, self.abort, f"no handshake within {timeout:g} s")
        if not server_side:
            self._advance()

    def on_event(self, events: int) -> None:
        if events & OUT:
            self._send()
        if events & NOT_OUT and self._done is not None and not self._complete:
            try:
                size = self._sock.recv_into(self._reactor.received)
            except BlockingIOError:
                return
            except OSError as error:
                self.abort(str(error))
                return
            if size == 0:
                self.abort("the peer closed the connection during the handshake")
                return
            self._channel.incoming.write(self._reactor.received_view[:size])
            self._advance()

    def abort(self, why: str) -> None:
        self._finish(HandshakeFailed(why))

    def _advance(self) -> None:
        failure: HandshakeFailed | None = None
        try:
            self._channel.session.do_handshake()
            self._complete = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            failure = _translated(error)
        self._pending += self._channel.outgoing.read()
        self._send()
        if failure is not None:
            self._finish(failure)  # the alert was sent as far as the kernel took it

    def _send(self) -> None:
        """Send what is pending; when that was the last flight, be done."""
        if self._pending:
            blocked = False
            try:
                sent = self._sock.send(self._pending)
                blocked = sent < len(self._pending)
                self._pending = self._pending[sent:]
            except BlockingIOError:
                blocked = True
            except OSError as error:
                self.abort(str(error))
                return
            self._reactor.modify(self._sock, IN | OUT if blocked else IN)
        if self._complete and not self._pending:
            self._finish(self._channel)

    def _finish(self, result: Channel | HandshakeFailed) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        self._timer.cancel()
        if isinstance(result, HandshakeFailed):
            self._reactor.close(self._sock)
        try:
            done(result)
        except BaseException:
            self._reactor.close(self._sock)
            raise


def _translated(error: ssl.SSLError) -> HandshakeFailed:
    if isinstance(error, ssl.SSLCertVerificationError):
        return HandshakeFailed(f"certificate not accepted: {error.verify_message}", untrusted=True)
    reason = error.reason or ""
    # An alert is the peer's judgement of us, and not ours of it.
    untrusted = reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    return HandshakeFailed(reason.lower().replace("_", " ") or str(error), untrusted=untrusted)
