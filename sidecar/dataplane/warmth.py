"""Tunnels before they are needed: to some of the endpoints of each destination that our application uses.

Rules:

1. Of a destination whose use begins, a connection is dialled for first. Then some of the other endpoints are, so that
   the connections behind it, which go to all of them in turn, wait for no handshake; and again when the directory has
   something new to say.
2. After a start, the destinations that were in use when the process before us ended are dialled without waiting for a
   connection, as soon as there is a policy and the directory knows them: a few at once, those used last first.
3. Nobody is dialled whom the policy does not allow, or who can not be asked to prove an identity, or who has just
   failed. Who is, is drawn by chance: clients of a large service do not all come to the same endpoints.
4. A tunnel that nobody uses is let go like any other, and dialled again when a connection has had to wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from graph.directory import Destination, Endpoint, Transport
from sidecar.dataplane.contracts import Authority
from sidecar.dataplane.departure import destination_peer
from sidecar.dataplane.dial import DialFailed
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.pool import Pool
from sidecar.dataplane.sockets import Address
from sidecar.errors import Unresolved

_log = logging.getLogger(__name__)

#: Endpoints that are looked at for each one that may be dialled: a service may have thousands.
_LOOKS = 4
#: Destinations that are dialled at once after a start.
AT_ONCE: Final = 4
#: How often the directory is asked about one of them, and seconds between.
_ASKED: Final = 3
_PAUSE: Final = 1.0


def keep_warm(fabric: Fabric, pool: Pool, target: Address, destination: Destination) -> None:
    """Begin to dial endpoints of ``destination``, as many as the settings' ``warm_endpoints``; nobody waits for it.

    :param target: the destination as applications name it
    """
    if len(destination.endpoints) > 1:
        for endpoint in _cold(fabric, pool, target, destination):
            pool.warm(endpoint)


async def warm_ahead(
    fabric: Fabric, pool: Pool, places: Iterable[Address], warmed: Callable[[Address, Destination], None]
) -> None:
    """Dial endpoints of destinations that nobody has asked for yet, when there is a policy; ends when that is done.

    :param places: the destinations as applications name them, in the order in which to dial
    :param warmed: gets each, with what the directory says of it, before it is dialled
    """
    waiting = deque((place, _ASKED) for place in places)
    if not waiting or not fabric.settings.warm_endpoints:
        return
    await _a_policy(fabric.authority)

    async def dial() -> None:
        while waiting and not _busy(fabric):
            place, asked = waiting.popleft()
            try:
                destination = await fabric.directory.resolve(place.host, place.port)
            except Unresolved as error:
                _log.debug("%s is not dialled ahead: %s", place, error)
                if asked > 1:
                    await asyncio.sleep(_PAUSE)
                    waiting.append((place, asked - 1))
                continue
            warmed(place, destination)
            for endpoint in _cold(fabric, pool, place, destination):
                with contextlib.suppress(DialFailed):  # counted, and told
                    await pool.open(endpoint)

    async with asyncio.TaskGroup() as dialling:
        for _ in range(min(AT_ONCE, len(waiting))):
            dialling.create_task(dial())


async def _a_policy(authority: Authority) -> None:
    """Wait until there is one."""
    if not authority.version:
        there = asyncio.Event()
        authority.subscribe(there.set)
        while not authority.version:
            there.clear()
            await there.wait()


def _cold(fabric: Fabric, pool: Pool, target: Address, destination: Destination) -> Iterator[Endpoint]:
    """Endpoints to which there is no tunnel and may be one, as many as the settings' ``warm_endpoints``."""
    most = fabric.settings.warm_endpoints
    endpoints = destination.endpoints
    found = 0
    for endpoint in fabric.random.sample(endpoints, min(_LOOKS * most, len(endpoints))):
        if found == most or _busy(fabric):
            return
        if _can_be_dialled(fabric, endpoint) and pool.ready(endpoint) is None:
            peer = destination_peer(destination, endpoint, target)
            if fabric.authority.outbound(peer, endpoint.port).allowed:
                found += 1
                yield endpoint


def _busy(fabric: Fabric) -> bool:
    """Whether there is something more urgent than what nobody has asked for."""
    return fabric.draining or fabric.guards.shedding


def _can_be_dialled(fabric: Fabric, endpoint: Endpoint) -> bool:
    """Whether connections to it go by tunnels, and it is worth a try now."""
    return (
        endpoint.ready
        and bool(endpoint.identity)
        and endpoint.transport is not Transport.MTLS
        and endpoint.address not in fabric.settings.addresses
        and fabric.balancer.retry_at(endpoint) <= fabric.reactor.loop.time()
    )
