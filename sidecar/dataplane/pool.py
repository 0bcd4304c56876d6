"""The tunnels that we dialled: opened on demand, shared, kept warm, replaced before their certificates end.

Rules:

1. One dial at a time per endpoint; every stream that waits shares it. A failed endpoint is dialled again after a
   back-off.
2. A tunnel goes to exactly the identity that the directory named. Without a name there is no tunnel.
3. Make before break: after a renewal the old tunnel takes new streams until the new one is ready, then drains and is
   closed when its last stream ends, at the latest when one of the two certificates does.
"""

from __future__ import annotations

import asyncio
import logging

from graph.model import Endpoint
from sidecar.dataplane import sockets, tls
from sidecar.dataplane.balance import EndpointKey, key_of
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.tls import Channel, Handshake, HandshakeFailed, PeerRefused
from sidecar.dataplane.tunnel import Tunnel
from sidecar.errors import SidecarError

_log = logging.getLogger(__name__)

#: The part of a tunnel's life after which a replacement is made, whoever's certificate it is that ends.
_RENEW_AT = 0.8
#: Dials that one stream waits for when the tunnels they give are gone or full at once.
_DIALS = 3


class DialFailed(SidecarError):
    """There is no tunnel to an endpoint.

    :param untrusted: it answered, but did not prove the expected identity
    """

    def __init__(self, message: str, *, untrusted: bool = False) -> None:
        super().__init__(message)
        self.untrusted = untrusted


class Pool:
    """Tunnels by endpoint."""

    __slots__ = ("_fabric", "_slots", "_stopped", "generation")

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._slots: dict[EndpointKey, _Slot] = {}
        self._stopped = False
        #: Counts renewals of our certificate; a tunnel of an earlier one is to be replaced.
        self.generation = 0
        fabric.credentials.subscribe(self._renewed)

    def ready(self, endpoint: Endpoint) -> Tunnel | None:
        """A tunnel that takes a stream now, if there is one."""
        slot = self._slots.get(key_of(endpoint))
        return slot.ready() if slot is not None else None

    async def open(self, endpoint: Endpoint) -> Tunnel:
        """A tunnel that takes a stream, dialled if need be.

        :raises DialFailed: saying why
        """
        if not endpoint.identity:
            raise DialFailed(f"{endpoint.address} is meshed, but the directory names no identity for it")
        key = key_of(endpoint)
        for _ in range(_DIALS):
            if self._stopped:
                raise DialFailed("the data path stops")
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = _Slot(self, self._fabric, endpoint)
            tunnel = slot.ready() or await slot.dial()
            if tunnel.usable:  # between its answer and our turn it may have ended, or filled up
                return tunnel
        raise DialFailed(f"tunnels to {endpoint.identity} end as soon as they begin, or are full")

    def forget(self, endpoint: Endpoint) -> None:
        """The endpoint has neither tunnel nor dial."""
        self._slots.pop(key_of(endpoint), None)

    def tunnels(self) -> list[Tunnel]:
        """Every tunnel, also those that drain."""
        return [tunnel for slot in self._slots.values() for tunnel in slot.tunnels]

    def stop(self) -> None:
        """End every tunnel and dial. Calling it again changes nothing."""
        self._stopped = True
        for slot in list(self._slots.values()):
            slot.stop()

    def _renewed(self) -> None:
        self.generation += 1
        for slot in list(self._slots.values()):
            slot.replace()


class _Slot:
    """The tunnels to one endpoint; their owner."""

    def __init__(self, pool: Pool, fabric: Fabric, endpoint: Endpoint) -> None:
        self._pool = pool
        self._fabric = fabric
        self._endpoint = endpoint
        self.tunnels: dict[Tunnel, int] = {}  # and the generation that each was dialled in
        self._dialling: asyncio.Task[Tunnel] | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._answer: asyncio.Future[None] | None = None  # of the tunnel being dialled
        self._dialled: Tunnel | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._renewal_timer: asyncio.TimerHandle | None = None
        self._empty_at = 0.0

    def ready(self) -> Tunnel | None:
        for tunnel in self.tunnels:
            if tunnel.usable:
                return tunnel
        return None

    async def dial(self) -> Tunnel:
        """Share the dial that is under way, or begin one."""
        if self._dialling is None:
            self._dialling = asyncio.create_task(self._dial())
            self._dialling.add_done_callback(self._dial_done)
        try:
            return await asyncio.shield(self._dialling)
        except asyncio.CancelledError:
            if self._dialling is None or self._dialling.cancelled():
                current = asyncio.current_task()
                if current is None or not current.cancelling():
                    raise DialFailed("the data path stops") from None
            raise

    def replace(self) -> None:
        """Have a new tunnel made beside those of an earlier generation."""
        if self._replacing is None and any(not tunnel.leaving for tunnel in self.tunnels):
            self._replacing = asyncio.create_task(self._replace())

    def stop(self) -> None:
        for task in (self._dialling, self._replacing):
            if task is not None:
                task.cancel()
        for timer in (self._idle_timer, self._renewal_timer):
            if timer is not None:
                timer.cancel()
        for tunnel in list(self.tunnels):
            if tunnel.streams:
                tunnel.abort("the data path stops")
            else:
                tunnel.close("the data path stops")

    # the owner of tunnels

    def tunnel_ready(self, tunnel: Tunnel) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    def tunnel_stream(self, tunnel: Tunnel, stream_id: int) -> None:
        raise AssertionError("a tunnel that we dialled refuses streams by itself")

    def tunnel_leaving(self, tunnel: Tunnel) -> None:
        if not tunnel.streams:
            tunnel.close("the peer leaves")
        elif self._dialling is None and self.ready() is None:
            # Streams are alive, so the next ones are likely; the peer may well be gone, so one attempt is enough.
            self._dialling = asyncio.create_task(self._dial())
            self._dialling.add_done_callback(self._dial_done)

    def tunnel_empty(self, tunnel: Tunnel) -> None:
        if tunnel.leaving:
            tunnel.close("its last stream ended")
            return
        self._empty_at = self._fabric.reactor.loop.time()
        self._arm_idle(self._fabric.settings.tunnel_idle)

    def tunnel_closed(self, tunnel: Tunnel, why: str) -> None:
        _log.debug("tunnel to %s ended: %s", self._endpoint.identity, why)
        if tunnel is self._dialled and self._answer is not None and not self._answer.done():
            self._answer.set_exception(HandshakeFailed(why))
        self.tunnels.pop(tunnel, None)
        self._forget_if_unused()

    # dialling

    async def _dial(self) -> Tunnel:
        """Dial once.

        :raises DialFailed: saying why; the failure is counted
        """
        fabric, endpoint = self._fabric, self._endpoint
        loop = asyncio.get_running_loop()
        wait = fabric.balancer.retry_at(endpoint) - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        generation = self._pool.generation
        untrusted = False
        try:
            async with asyncio.timeout(fabric.settings.connect_timeout):
                tunnel = await self._establish()
        except TimeoutError:
            why = f"no tunnel within {fabric.settings.connect_timeout:g} s"
        except OSError as error:
            why = error.strerror or str(error)
        except HandshakeFailed as error:
            why, untrusted = str(error), error.untrusted
        except PeerRefused as error:
            why, untrusted = str(error), True
        else:
            fabric.balancer.succeeded(endpoint)
            self.tunnels[tunnel] = generation
            self._retire_older(tunnel, generation)
            if generation != self._pool.generation:
                self.replace()  # our certificate was renewed while we dialled with the old one
            return tunnel
        fabric.balancer.failed(endpoint, loop.time())
        message = f"no tunnel to {endpoint.identity} at {Address(endpoint.address, endpoint.port)}: {why}"
        _log.log(logging.WARNING if untrusted else logging.INFO, "%s", message)
        raise DialFailed(message, untrusted=untrusted)

    async def _establish(self) -> Tunnel:
        fabric, endpoint = self._fabric, self._endpoint
        credentials = fabric.credentials
        loop = asyncio.get_running_loop()
        address = Address(endpoint.address, endpoint.port)
        sock = sockets.outgoing(address.family, fabric.settings.mark)
        try:
            await loop.sock_connect(sock, address)
            sockets.tune_tunnel(sock)
        except BaseException:
            sock.close()
            raise
        done: asyncio.Future[Channel | HandshakeFailed] = loop.create_future()
        handshake = Handshake(
            fabric.reactor,
            sock,
            credentials.client_context,
            server_side=False,
            registered=False,
            timeout=fabric.settings.handshake_timeout,
            done=lambda result: None if done.done() else done.set_result(result),
        )
        try:
            channel = await done
        except asyncio.CancelledError:
            handshake.abort("no longer wanted")
            if done.done() and not done.cancelled():
                fabric.reactor.close(sock)  # it was done at the same moment
            raise
        if isinstance(channel, HandshakeFailed):
            raise channel
        tunnel = None
        self._answer = loop.create_future()
        try:
            peer = tls.identify(channel.session, credentials, endpoint.identity)
            seconds = tls.seconds_until(tls.lifetime_end(credentials, peer))
            tunnel = self._dialled = Tunnel(
                fabric.reactor,
                sock,
                channel,
                peer,
                fabric.settings,
                self,
                fabric.budget,
                dialled=True,
                seconds=seconds,
            )
            tunnel.start()
            await self._answer
        except BaseException:
            if tunnel is not None:
                tunnel.abort("it was not wanted any more")
            else:
                fabric.reactor.close(sock)
            raise
        finally:
            if self._answer.done() and not self._answer.cancelled():
                self._answer.exception()  # seen, also when the deadline was faster
            self._answer = None
            self._dialled = None
        self._arm_renewal(seconds * _RENEW_AT)
        self._empty_at = loop.time()
        self._arm_idle(fabric.settings.tunnel_idle)
        return tunnel

    def _dial_done(self, task: asyncio.Task[Tunnel]) -> None:
        if self._dialling is task:
            self._dialling = None
        if not task.cancelled():
            task.exception()  # those who waited have it; a replacement that failed is tried again
        self._forget_if_unused()

    def _retire_older(self, newest: Tunnel, generation: int) -> None:
        for tunnel, made in list(self.tunnels.items()):
            if tunnel is not newest and made < generation:
                tunnel.leaving = True
                if not tunnel.streams:
                    tunnel.close("it was replaced")

    async def _replace(self) -> None:
        """Dial until there is a tunnel of this generation, or no older one is left to replace."""
        try:
            while True:
                old = [
                    tunnel
                    for tunnel, made in self.tunnels.items()
                    if made < self._pool.generation and not tunnel.leaving
                ]
                if not old:
                    return
                try:
                    await self.dial()
                except DialFailed:
                    continue  # the next dial waits for the back-off
        finally:
            self._replacing = None
            self._forget_if_unused()

    # keeping

    def _arm_renewal(self, delay: float) -> None:
        if self._renewal_timer is not None:
            self._renewal_timer.cancel()
        self._renewal_timer = self._fabric.reactor.loop.call_later(delay, self._renew)

    def _renew(self) -> None:
        """A certificate of the newest tunnel comes to its end, and it need not be ours: the peer's counts as well."""
        self._renewal_timer = None
        for tunnel in self.tunnels:
            self.tunnels[tunnel] = -1
        self.replace()

    def _arm_idle(self, delay: float) -> None:
        if self._idle_timer is None:
            self._idle_timer = self._fabric.reactor.loop.call_later(delay, self._check_idle)

    def _check_idle(self) -> None:
        self._idle_timer = None
        if any(tunnel.streams for tunnel in self.tunnels):
            return  # the last stream's end arms it again
        left = self._empty_at + self._fabric.settings.tunnel_idle - self._fabric.reactor.loop.time()
        if left > 0:
            self._arm_idle(left)
            return
        for tunnel in list(self.tunnels):
            tunnel.close("nobody used it")

    def _forget_if_unused(self) -> None:
        if self.tunnels or self._dialling is not None or self._replacing is not None:
            return
        for timer in (self._idle_timer, self._renewal_timer):
            if timer is not None:
                timer.cancel()
        self._idle_timer = self._renewal_timer = None
        self._pool.forget(self._endpoint)
