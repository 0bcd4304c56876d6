"""One attempt to reach an endpoint: TCP, TLS, whether it is who the directory says, and what is said of a failure."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Coroutine
from typing import Any

from graph.directory import Endpoint, Transport
from sidecar.dataplane import sockets, tls
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.lease import Proof
from sidecar.dataplane.settings import ALPN
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.tls import Channel, Handshake, HandshakeFailed, PeerRefused
from sidecar.errors import SidecarError


class DialFailed(SidecarError):
    """There is no connection to an endpoint.

    :param untrusted: it answered, but did not prove the expected identity
    """

    def __init__(self, message: str, *, untrusted: bool = False) -> None:
        super().__init__(message)
        self.untrusted = untrusted


async def accounted[T](fabric: Fabric, endpoint: Endpoint, what: str, dialling: Coroutine[Any, Any, T]) -> T:
    """What ``dialling`` comes to, in the time that a connection may take. A failure is counted, and told to people.

    :param what: there is none of when it fails, such as ``tunnel to``
    :raises DialFailed: saying why
    """
    untrusted = False
    try:
        async with asyncio.timeout(fabric.settings.connect_timeout):
            return await dialling
    except TimeoutError:
        why = f"no answer within {fabric.settings.connect_timeout:g} s"
    except OSError as error:
        why = error.strerror or str(error)
    except HandshakeFailed as error:
        why, untrusted = str(error), error.untrusted
    except PeerRefused as error:
        why, untrusted = str(error), True
    fabric.balancer.failed(endpoint, fabric.reactor.loop.time())
    place = Address(endpoint.address, endpoint.port)
    level = logging.WARNING if untrusted else logging.INFO
    fabric.complaints.say(level, f"no {what} %s at %s: %s", endpoint.identity, place, why)
    raise DialFailed(f"no {what} {endpoint.identity} at {place}: {why}", untrusted=untrusted)


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
    channel = await handshake(fabric, sock, context)
    if isinstance(channel, HandshakeFailed):
        raise channel
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


async def handshake(
    fabric: Fabric,
    sock: socket.socket,
    context: ssl.SSLContext | None,
    *,
    server_side: bool = False,
    host: str | None = None,
) -> Channel | HandshakeFailed:
    """What a handshake on a connected socket comes to. On failure, and when it is cancelled, the socket is closed.

    :param context: None: that of a tunnel
    :param host: that a server is asked for, and has to prove
    """
    done: asyncio.Future[Channel | HandshakeFailed] = asyncio.get_running_loop().create_future()
    work = Handshake(
        fabric.reactor,
        sock,
        fabric.credentials,
        server_side=server_side,
        registered=False,
        timeout=fabric.settings.handshake_timeout,
        done=lambda result: None if done.done() else done.set_result(result),
        context=context,
        host=host,
    )
    try:
        return await done
    except asyncio.CancelledError:
        work.abort("no longer wanted")
        if done.done() and not done.cancelled():
            fabric.reactor.close(sock)  # it was done at the same moment
        raise
