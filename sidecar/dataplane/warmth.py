"""Tunnels before they are needed: to some of the endpoints of each destination that our application has begun to use.

Rules:

1. A connection is dialled for first. Then some of the destination's other endpoints are, so that the connections behind
   it, which go to all of them in turn, wait for no handshake; and again when the directory has something new to say.
2. Nobody is dialled whom the policy does not allow, or who can not be asked to prove an identity, or who has just
   failed. Who is, is drawn by chance: clients of a large service do not all come to the same endpoints.
3. A tunnel that nobody uses is let go like any other, and dialled again when a connection has had to wait.
"""

from __future__ import annotations

from graph.directory import Destination, Endpoint, Transport
from sidecar.dataplane.departure import destination_peer
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.pool import Pool
from sidecar.dataplane.sockets import Address

#: Endpoints that are looked at for each one that may be dialled: a service may have thousands.
_LOOKS = 4


def keep_warm(fabric: Fabric, pool: Pool, target: Address, destination: Destination) -> None:
    """Begin to dial endpoints of ``destination``, as many as the settings' ``warm_endpoints``; nobody waits for it.

    :param target: the destination as applications name it
    """
    most = fabric.settings.warm_endpoints
    endpoints = destination.endpoints
    if not most or len(endpoints) < 2 or fabric.draining or fabric.guards.shedding:
        return
    dialled = 0
    for endpoint in fabric.random.sample(endpoints, min(_LOOKS * most, len(endpoints))):
        if dialled < most and _can_be_dialled(fabric, endpoint) and pool.ready(endpoint) is None:
            peer = destination_peer(destination, endpoint, target)
            if fabric.authority.outbound(peer, endpoint.port).allowed:
                pool.warm(endpoint)
                dialled += 1


def _can_be_dialled(fabric: Fabric, endpoint: Endpoint) -> bool:
    """Whether connections to it go by tunnels, and it is worth a try now."""
    return (
        endpoint.ready
        and bool(endpoint.identity)
        and endpoint.transport is not Transport.MTLS
        and endpoint.address not in fabric.settings.addresses
        and fabric.balancer.retry_at(endpoint) <= fabric.reactor.loop.time()
    )
