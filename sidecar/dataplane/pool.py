"""The tunnels that we dialled: on demand or ahead of it, shared, kept warm, replaced before their certificates end.

Rules:

1. One dial at a time per endpoint; every stream that waits shares it. A failed endpoint is dialled again after a
   back-off.
2. A tunnel goes to exactly the identity that the directory named. Without a name there is no tunnel.
3. Make before break: after a renewal of either end the old tunnel takes new streams until the new one is ready, then
   drains and is closed when its last stream ends.
4. As long as a tunnel is worth keeping, the pair goes on proving itself: every new tunnel's handshake extends the
   leases of the earlier ones (:mod:`sidecar.dataplane.lease`). What can not be proved again ends with its lease.
"""

from __future__ import annotations

import asyncio
import logging
import time

from graph.directory import Endpoint
from sidecar.dataplane import lease
from sidecar.dataplane.balance import EndpointKey
from sidecar.dataplane.dial import DialFailed, accounted, shake_hands
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.lease import Lease, Leases
from sidecar.dataplane.sockets import Address
from sidecar.dataplane.tls import HandshakeFailed
from sidecar.dataplane.tunnel import Tunnel

_log = logging.getLogger(__name__)

#: Dials that one stream waits for when the tunnels they give are gone or full at once.
_DIALS = 3
#: Seconds between two handshakes that the peer asks for by leaving.
_ASKED_APART = 1.0


class Pool:
    """Tunnels by endpoint."""

    __slots__ = ("_fabric", "_slots", "_stopped", "generation", "leases")

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._slots: dict[EndpointKey, _Slot] = {}
        self._stopped = False
        #: Counts renewals of our certificate; a tunnel of an earlier one is to be replaced.
        self.generation = 0
        self.leases = Leases()
        fabric.credentials.subscribe(self._renewed)

    def ready(self, endpoint: Endpoint) -> Tunnel | None:
        """A tunnel that takes a stream now, if there is one."""
        slot = self._slots.get(endpoint.key)
        return slot.ready() if slot is not None else None

    async def open(self, endpoint: Endpoint) -> Tunnel:
        """A tunnel that takes a stream, dialled if need be.

        :raises DialFailed: saying why
        """
        if not endpoint.identity:
            raise DialFailed(f"{endpoint.address} is meshed, but the directory names no identity for it")
        key = endpoint.key
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

    def warm(self, endpoint: Endpoint) -> None:
        """Have a tunnel dialled, unless there is one that takes a stream, or will be. A failure is counted."""
        if self._stopped or not endpoint.identity:
            return
        slot = self._slots.get(endpoint.key)
        if slot is None:
            slot = self._slots[endpoint.key] = _Slot(self, self._fabric, endpoint)
        slot.warm()

    def forget(self, endpoint: Endpoint) -> None:
        """The endpoint has neither tunnel nor dial."""
        self._slots.pop(endpoint.key, None)

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
            slot.prove()


class _Slot:
    """The tunnels to one endpoint; their owner."""

    def __init__(self, pool: Pool, fabric: Fabric, endpoint: Endpoint) -> None:
        self._pool = pool
        self._fabric = fabric
        self._endpoint = endpoint
        self.tunnels: dict[Tunnel, int] = {}  # and the generation that each was dialled in; -1: it is to be replaced
        self._dialling: asyncio.Task[Tunnel] | None = None
        self._dialled_at = 0.0
        self._answer: asyncio.Future[None] | None = None  # of the tunnel being dialled
        self._dialled: Tunnel | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._proof_timer: asyncio.TimerHandle | None = None
        self._empty_at = 0.0

    def ready(self) -> Tunnel | None:
        for tunnel in self.tunnels:
            if tunnel.usable:
                return tunnel
        return None

    async def dial(self) -> Tunnel:
        """Share the dial that is under way, or begin one."""
        dialling = self._dialling or self._begin_dial()
        try:
            return await asyncio.shield(dialling)
        except asyncio.CancelledError:
            if dialling.cancelled():
                current = asyncio.current_task()
                if current is None or not current.cancelling():
                    raise DialFailed("the data path stops") from None
            raise

    def warm(self) -> None:
        """Have a tunnel that takes a stream, without anybody who waits for it."""
        if self._dialling is None and self.ready() is None:
            self._begin_dial()

    def prove(self) -> None:
        """Have a handshake made now, if there is what it would keep alive and none was made since the last renewal."""
        if self._dialling is None and self._proof_wanted():
            self._begin_dial()

    def stop(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
        self._cancel_timers()
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
        """The peer has a new certificate, or ends: a handshake will show which."""
        if not tunnel.streams:
            tunnel.close("the peer leaves")
        if self._dialling is None and self._proof_wanted():
            self._arm_proof(max(0.0, self._dialled_at + _ASKED_APART - self._fabric.reactor.loop.time()))

    def tunnel_empty(self, tunnel: Tunnel) -> None:
        self._empty_at = self._fabric.reactor.loop.time()
        self._arm_idle(self._fabric.settings.tunnel_idle)
        if tunnel.leaving:
            tunnel.close("its last stream ended")

    def tunnel_complaint(self, tunnel: Tunnel, about: str) -> None:
        place = Address(self._endpoint.address, self._endpoint.port)
        self._fabric.complaints.say(logging.WARNING, "the peer %s at %s %s", self._endpoint.identity, place, about)

    def tunnel_closed(self, tunnel: Tunnel, why: str) -> None:
        _log.debug("tunnel to %s ended: %s", self._endpoint.identity, why)
        if tunnel is self._dialled and self._answer is not None and not self._answer.done():
            self._answer.set_exception(HandshakeFailed(why))
        self.tunnels.pop(tunnel, None)
        self._pool.leases.leave(tunnel)
        self._forget_if_unused()

    # dialling

    def _begin_dial(self) -> asyncio.Task[Tunnel]:
        self._dialled_at = self._fabric.reactor.loop.time()
        self._dialling = asyncio.create_task(self._dial(self._pool.generation))
        self._dialling.add_done_callback(self._dial_done)
        return self._dialling

    async def _dial(self, generation: int) -> Tunnel:
        """Dial once.

        :raises DialFailed: saying why; the failure is counted
        """
        fabric, endpoint = self._fabric, self._endpoint
        wait = fabric.balancer.retry_at(endpoint) - fabric.reactor.loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        tunnel = await accounted(fabric, endpoint, "tunnel to", self._establish())
        fabric.balancer.succeeded(endpoint)
        if not tunnel.closed:
            self._established(tunnel, generation)
        return tunnel

    async def _establish(self) -> Tunnel:
        """A tunnel whose peer has accepted us."""
        fabric = self._fabric
        sock, channel, proof = await shake_hands(fabric, self._endpoint)
        self._answer = asyncio.get_running_loop().create_future()
        tunnel = self._dialled = Tunnel(
            fabric.reactor,
            sock,
            channel,
            Lease.of(proof),
            fabric.settings,
            self,
            fabric.budget,
            dialled=True,
        )
        try:
            tunnel.start()
            await self._answer
        except BaseException:
            tunnel.abort("it was not wanted any more")
            raise
        finally:
            if self._answer.done() and not self._answer.cancelled():
                self._answer.exception()  # seen, also when the deadline was faster
            self._answer = None
            self._dialled = None
        return tunnel

    def _established(self, newest: Tunnel, generation: int) -> None:
        """Both ends are proved: extend what the pair has already, and let the new tunnel take over from it."""
        now, random = time.time(), self._fabric.random
        if not self.tunnels:
            self._empty_at = self._fabric.reactor.loop.time()
        self._pool.leases.enter(newest, now)
        self._arm_proof(lease.prove_after(newest.lease.end, now, random))
        self._arm_idle(self._fabric.settings.tunnel_idle)
        older = [tunnel for tunnel, made in self.tunnels.items() if made < generation]
        self.tunnels[newest] = generation
        if newest.usable:
            self._take_over(newest, older, generation)

    def _take_over(self, newest: Tunnel, older: list[Tunnel], generation: int) -> None:
        for tunnel in older:
            tunnel.leaving = True
            if not tunnel.streams:
                tunnel.close("it was replaced")
        draining = [tunnel for tunnel in self.tunnels if tunnel.leaving and tunnel.streams]
        if len(draining) <= self._fabric.settings.draining_tunnels:
            return
        # Enough drain already. The pair is proved, so the emptiest of those that this proof extended goes on.
        proved = [tunnel for tunnel in draining if tunnel.lease.end >= newest.lease.end]
        if not proved:
            return
        successor = min(proved, key=lambda tunnel: len(tunnel.streams))
        successor.leaving = False
        if not successor.usable:
            successor.leaving = True
            return
        self.tunnels[successor] = generation
        newest.close("it was only needed as a proof")

    def _dial_done(self, task: asyncio.Task[Tunnel]) -> None:
        self._dialling = None
        if not task.cancelled():
            failed = task.exception() is not None  # those who waited have it
            if self._proof_wanted():
                # What was made meanwhile may be of an old certificate of ours: then there is no need to wait.
                self._arm_proof(self._retry_wait() if failed or task.result().leaving else 0.0)
        self._forget_if_unused()

    # keeping

    def _proof_wanted(self) -> bool:
        """Whether there is a tunnel to keep, and none that was made since the last renewal of either end."""
        kept = False
        for tunnel, made in self.tunnels.items():
            if made == self._pool.generation and not tunnel.leaving:
                return False
            kept = kept or _kept(tunnel)
        return kept

    def _retry_wait(self) -> float:
        return lease.retry_after(min(tunnel.lease.end for tunnel in self.tunnels if _kept(tunnel)), time.time())

    def _arm_proof(self, delay: float) -> None:
        if self._proof_timer is not None:
            self._proof_timer.cancel()
        self._proof_timer = self._fabric.reactor.loop.call_later(delay, self._proof_due)

    def _proof_due(self) -> None:
        """A certificate comes to its end, and it need not be ours: the peer's counts as well."""
        self._proof_timer = None
        for tunnel in self.tunnels:
            self.tunnels[tunnel] = -1
        self.prove()

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

    def _cancel_timers(self) -> None:
        for timer in (self._idle_timer, self._proof_timer):
            if timer is not None:
                timer.cancel()
        self._idle_timer = self._proof_timer = None

    def _forget_if_unused(self) -> None:
        if not self.tunnels and self._dialling is None:
            self._cancel_timers()
            self._pool.forget(self._endpoint)


def _kept(tunnel: Tunnel) -> bool:
    """Whether it carries something, or will carry what comes next."""
    return bool(tunnel.streams) or not tunnel.leaving
