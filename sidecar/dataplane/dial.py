"""One attempt to reach an endpoint: TCP, TLS, and whether it is who the directory says."""

from __future__ import annotations

import asyncio
import socket
import ssl

from graph.directory import Endpoint, Transport
from sidecar.dataplane import sockets, tls
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.lease import Proof
from sidecar.dataplane.settings import ALPN
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.tls import Channel, Handshake, HandshakeFailed
from sidecar.errors import SidecarError


class DialFailed(SidecarError):
    """There is no connection to an endpoint.

    :param untrusted: it answered, but did not prove the expected identity
    """

    def __init__(self, message: str, *, untrusted: bool = False) -> None:
        super().__init__(message)
        self.untrusted = untrusted


async def shake_hands(fabric: Fabric, endpoint: Endpoint) -> tuple[socket.socket, Channel, Proof]:
    """Connect to ``endpoint`` and have it prove who it is. In TLS 1.3 it has not judged us yet.

    An endpoint of another mesh is offered no tunnel, and may prove its account alone.

    :returns: the socket, registered with the reactor, and the session
    :raises OSError: when there is no connection; HandshakeFailed and PeerRefused as their names say
    """
    address, foreign = Address(endpoint.address, endpoint.port), endpoint.transport is Transport.MTLS
    sock = await _connected(address, fabric.settings.mark, tunnel=not foreign)
    offered: tuple[str, ...] = fabric.settings.mtls_alpn if foreign else (ALPN,)
    try:
        context = fabric.credentials.mesh_context(server_side=False, alpn=offered) if foreign else None
    except BaseException:
        sock.close()
        raise
    channel = await _handshake(fabric, sock, context)
    agreed: tuple[str | None, ...] = (*offered, None) if foreign else offered
    try:
        proof = tls.identify(
            channel, fabric.credentials, str(address), endpoint.identity, agreed=agreed, account_will_do=foreign
        )
        return sock, channel, proof
    except BaseException:
        fabric.reactor.close(sock)
        raise


async def _connected(address: Address, mark: int, *, tunnel: bool) -> socket.socket:
    sock = sockets.outgoing(address.family, mark)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address)
        if tunnel:
            sockets.tune_tunnel(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def _handshake(fabric: Fabric, sock: socket.socket, context: ssl.SSLContext | None) -> Channel:
    done: asyncio.Future[Channel | HandshakeFailed] = asyncio.get_running_loop().create_future()
    handshake = Handshake(
        fabric.reactor,
        sock,
        fabric.credentials,
        server_side=False,
        registered=False,
        timeout=fabric.settings.handshake_timeout,
        done=lambda result: None if done.done() else done.set_result(result),
        context=context,
    )
    try:
        result = await done
    except asyncio.CancelledError:
        handshake.abort("no longer wanted")
        if done.done() and not done.cancelled():
            fabric.reactor.close(sock)  # it was done at the same moment
        raise
    if isinstance(result, HandshakeFailed):
        raise result
    return result
