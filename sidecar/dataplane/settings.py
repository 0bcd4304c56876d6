"""Every number that bounds the data path, with its unit and what it protects against."""

from __future__ import annotations

from dataclasses import dataclass, field

from sidecar.dataplane.detect import OPAQUE_PORTS
from sidecar.dataplane.sockets import Address
from sidecar.http.settings import DEFAULTS as HTTP_DEFAULTS
from sidecar.http.settings import HttpSettings

#: ALPN protocol name of our tunnels (RFC 7301).
ALPN = "hedgerow/1"


@dataclass(frozen=True, slots=True)
class ExplicitOutbound:
    """Without capture: what the application connects to instead of ``destination``."""

    listen: Address
    destination: Address


@dataclass(frozen=True, slots=True)
class ExplicitInbound:
    """Without capture: where peers connect to, and where the application really listens.

    The port of ``listen`` is the one that policy speaks of.
    """

    listen: Address
    application: Address


@dataclass(frozen=True, slots=True)
class DataPlaneSettings:
    """How the data path listens and how much it takes on.

    :param addresses: the pod's own addresses; captured inbound connections to any other are refused
    :param outbound_listen: where captured outbound connections arrive; one per address family. Empty: no capture
    :param inbound_listen: the same for inbound ones
    :param explicit_outbound: declared listeners of a pod without capture; ``explicit_inbound`` likewise
    :param sidecar_ports: ports of the sidecar itself, never relayed to as if they were the application's
    :param mark: ``SO_MARK`` of our own sockets, where capture tells us apart by mark and not by uid; 0: none
    :param connections: connections of applications and peers alive at once; more are refused
    :param handshakes: inbound connections sniffed or in a TLS handshake at once; beyond, the longest waiting is dropped
    :param tunnels_per_source: tunnels that one address may hold to us, whoever it proves to be; more are refused. A
        peer needs one for each port, and a second while certificates change
    :param streams_per_tunnel: streams alive at once in one tunnel; a peer that opens more has them reset
    :param opens_per_second: streams that a peer may open in one tunnel; twice as many in a burst, more end the tunnel
    :param resets_per_second: streams that a peer may reset in one tunnel (rapid reset); as above
    :param pings_per_second: pings that a peer may send in one tunnel; as above
    :param buffered_bytes: bytes held in all streams for receivers that do not read; a stream that goes beyond is reset
    :param control_bytes: control frames queued for a peer that does not read before its tunnel is ended
    :param opaque_ports: ports of our application whose bytes are not looked at, unless the inventory names a protocol
    :param mtls_ports: ports of our application where every TLS client is another mesh's proxy, whatever it offers; the
        application's own TLS can not be had there. Elsewhere such a client is known by its mesh's ALPN protocol
    :param mtls_alpn: ALPN protocols that we offer to other meshes' servers. Istio's sidecars take a TLS client without
        this one for an application's own TLS; others do not mind it
    :param first_byte_wait: seconds to wait for a client's first byte where the inventory says that clients speak
        first, or nothing but operations is allowed
    :param sniff_wait: seconds to wait for a first byte before a connection counts as plaintext (server speaks first)
    :param handshake_timeout: seconds for a whole TLS handshake, for a client hello that arrives in pieces, and for its
        first byte where nobody is let in without a certificate
    :param connect_timeout: seconds for a TCP connection, and for a tunnel to become ready
    :param resolve_timeout: seconds to wait for the directory before an unknown destination is refused
    :param keepalive: seconds without a byte from the peer before a tunnel is pinged
    :param keepalive_timeout: seconds for the answer before the tunnel is ended
    :param connection_idle: seconds that a connection may carry nothing in either direction before it is reset; a
        quarter more may pass. As long as Envoy and Istio allow a TCP connection. 0: no limit
    :param half_closed_idle: seconds that a connection, one direction of which has ended, may carry nothing in the other
        before it is reset; up to twice as long may pass. 0: no limit, and a client that never ends its half stays
    :param slow_reader: seconds that a receiver may take nothing of what is held for it before its connection is reset;
        half as much more may pass. As long as Envoy waits for a stream to be flushed. 0: no limit
    :param tunnel_idle: seconds without a stream before a tunnel is let go
    :param warm_endpoints: endpoints of a destination in use to which a tunnel is dialled before a connection goes
        there. 0: none
    :param warm_destinations: destinations, of those that were in use when the process before us ended, to whose
        endpoints tunnels are dialled after a start, before a connection goes there. 0: none
    :param draining_tunnels: tunnels to one endpoint that drain at once, with connections of before a renewal. Of more,
        one goes on in the place of a new one, so that connections without an end do not add a tunnel at each renewal
    :param early_bytes: what a client may have said before its connection has reached anybody, for it to be tried
        elsewhere; 0: only a client that has said nothing is
    :param backoff: seconds before an endpoint that failed is dialled again; doubles up to ``backoff_max``
    :param patience: seconds that a connection waits for a destination that has answered before and has nobody now,
        until everybody has heard who is there, or an application was started again. 0: none
    :param renewal_spread: seconds over which the peers are asked to come back after our certificate was renewed
    :param memory_limit: bytes that our process may use; 0: what its control group allows, and without such a limit
        nothing is watched
    :param memory_high: the part of it from which on new connections and streams are refused, until we are below
        ``memory_low``; those that run go on
    :param http: bounds of the lane that reads HTTP
    """

    addresses: frozenset[str] = frozenset()
    outbound_listen: tuple[Address, ...] = (Address("127.0.0.1", 15001),)
    inbound_listen: tuple[Address, ...] = (Address("0.0.0.0", 15006),)
    explicit_outbound: tuple[ExplicitOutbound, ...] = ()
    explicit_inbound: tuple[ExplicitInbound, ...] = ()
    sidecar_ports: frozenset[int] = field(default=frozenset({15000, 15001, 15006, 15020, 15021}))
    mark: int = 0
    opaque_ports: frozenset[int] = OPAQUE_PORTS
    mtls_ports: frozenset[int] = frozenset()
    mtls_alpn: tuple[str, ...] = ("istio",)
    connections: int = 16384
    handshakes: int = 1024
    tunnels_per_source: int = 256
    streams_per_tunnel: int = 4096
    opens_per_second: int = 20_000
    resets_per_second: int = 2_000
    pings_per_second: int = 50
    buffered_bytes: int = 256 << 20
    control_bytes: int = 1 << 20
    sniff_wait: float = 0.2
    first_byte_wait: float = 10.0
    handshake_timeout: float = 5.0
    connect_timeout: float = 5.0
    resolve_timeout: float = 5.0
    keepalive: float = 15.0
    keepalive_timeout: float = 10.0
    connection_idle: float = 3600.0
    half_closed_idle: float = 3600.0
    slow_reader: float = 300.0
    tunnel_idle: float = 300.0
    warm_endpoints: int = 4
    warm_destinations: int = 64
    draining_tunnels: int = 4
    early_bytes: int = 16_384
    backoff: float = 0.05
    backoff_max: float = 1.0
    patience: float = 3.0
    renewal_spread: float = 1.0
    memory_limit: int = 0
    memory_high: float = 0.9
    memory_low: float = 0.8
    http: HttpSettings = HTTP_DEFAULTS
