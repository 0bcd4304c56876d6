"""What the data path needs to know of ``sidecar.yaml``."""

from __future__ import annotations

from typing import Final

from sidecar.capture_settings import Capture
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound, ExplicitOutbound
from sidecar.dataplane.sockets import Address as SocketAddress
from sidecar.settings import Address, Settings

#: Istio's ports, which are ours whether we listen there or not.
SIDECAR_PORTS: Final = frozenset({15000, 15001, 15006, 15020, 15021, 15053})

#: What stands for an IPv4 address in IPv6.
_SIBLINGS: Final = {"127.0.0.1": "::1", "0.0.0.0": "::"}


def data_plane_settings(settings: Settings) -> DataPlaneSettings:
    """What the data path needs to know of the settings."""
    redirect = settings.capture is Capture.REDIRECT
    own = {settings.outbound_listen.port, settings.inbound_listen.port, settings.ready_listen.port} - {0}
    own |= {one.port for one in (settings.admin_listen, settings.stats_listen) if one is not None and one.port}
    return DataPlaneSettings(
        addresses=frozenset(settings.addresses),
        outbound_listen=_both(settings.outbound_listen, settings.addresses) if redirect else (),
        inbound_listen=_both(settings.inbound_listen, settings.addresses) if redirect else (),
        explicit_outbound=tuple(
            ExplicitOutbound(socket_address(one.listen), socket_address(one.destination))
            for one in settings.explicit.outbound
        ),
        explicit_inbound=tuple(
            ExplicitInbound(listen, socket_address(one.application))
            for one in settings.explicit.inbound
            for listen in _both(one.listen, settings.addresses)
        ),
        sidecar_ports=frozenset(SIDECAR_PORTS | own) if redirect else frozenset(own),
        mark=settings.mark or 0,
        opaque_ports=settings.opaque_ports,
        mtls_ports=settings.mtls_ports,
        mtls_alpn=settings.mtls_alpn,
        http=settings.http,
        **settings.limits,  # type: ignore[arg-type]  # read_limits has checked names and values
    )


def _both(address: Address, own: tuple[str, ...]) -> tuple[SocketAddress, ...]:
    """Where connections arrive: they stay in their address family, so a pod with IPv6 has both."""
    sibling = _SIBLINGS.get(address.host) if any(":" in each for each in own) and address.port else None
    return (socket_address(address), *([SocketAddress(sibling, address.port)] if sibling is not None else ()))


def socket_address(address: Address) -> SocketAddress:
    """An address of the settings as the data path writes it."""
    return SocketAddress(address.host, address.port)
