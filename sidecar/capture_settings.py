"""The settings of how connections reach the sidecar and where it listens: parts of ``sidecar.yaml``, read as strictly
as the rest of it (:mod:`sidecar.settings`).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum

from graph.fields import Address, Fields, Unfit, destination_address, ip_address, items, listen_address, unfit


class Capture(StrEnum):
    """How connections reach the sidecar."""

    REDIRECT = "redirect"
    """By nft or iptables in the pod's network namespace; the original destination comes from the kernel."""
    EXPLICIT = "explicit"
    """On declared local ports; the original destination comes from this file."""


class Udp(StrEnum):
    """What becomes of protocols that no sidecar can carry: everything but TCP, and DNS to our proxy."""

    ALLOW = "allow"
    """They pass, whatever the policy says."""
    DROP = "drop"
    """They are dropped in both directions, ICMP excepted."""


#: Istio's ports, so that people's firewalls and habits fit.
OUTBOUND_LISTEN = Address("127.0.0.1", 15001)
INBOUND_LISTEN = Address("0.0.0.0", 15006)
READY_LISTEN = Address("0.0.0.0", 15021)
ADMIN_LISTEN = Address("127.0.0.1", 15000)
STATS_LISTEN = Address("0.0.0.0", 15020)


@dataclass(frozen=True, slots=True)
class OutboundListener:
    """Explicit mode: what connects to ``listen`` is meant for ``destination``."""

    listen: Address
    destination: Address


@dataclass(frozen=True, slots=True)
class InboundListener:
    """Explicit mode: what connects to ``listen`` is meant for our ``application``."""

    listen: Address
    application: Address


@dataclass(frozen=True, slots=True)
class Explicit:
    """The declared ports of explicit mode."""

    outbound: tuple[OutboundListener, ...] = ()
    inbound: tuple[InboundListener, ...] = ()


def read_loopback(value: object) -> Address:
    address = listen_address(value)
    if not ipaddress.ip_address(address.host).is_loopback:
        raise Unfit(f"{address} is not of this pod alone", "write a loopback address such as 127.0.0.1:15000")
    return address


def read_addresses(value: object) -> tuple[str, ...]:
    """A list, or the same as text with commas, as Kubernetes' downward API gives ``status.podIPs``."""
    return items(ip_address, at_least=1)(value.split(",") if isinstance(value, str) else value)


def _outbound(value: object) -> OutboundListener:
    fields = Fields(value, unfit, noun="setting")
    listener = OutboundListener(fields.take("listen", listen_address), fields.take("destination", destination_address))
    fields.finish()
    return listener


def _inbound(value: object) -> InboundListener:
    fields = Fields(value, unfit, noun="setting")
    listener = InboundListener(fields.take("listen", listen_address), fields.take("application", destination_address))
    fields.finish()
    return listener


def read_explicit(value: object) -> Explicit:
    fields = Fields(value, unfit, noun="setting")
    explicit = Explicit(
        outbound=fields.take("outbound", items(_outbound), ()),
        inbound=fields.take("inbound", items(_inbound), ()),
    )
    fields.finish()
    return explicit
