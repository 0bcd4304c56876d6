"""The ports of the inventory: what workloads and services say of theirs."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Hashable, Iterable
from dataclasses import replace

from graph.fields import Check, Fields, Unfit, choice, flag, integer, ip_address, items, matching, unfit
from graph.model import Port, Protocol, ServiceEndpoint, ServicePort, Workload
from graph.wire.bounds import MAX_ENDPOINTS

#: The ``appProtocol`` of a port whose bytes are nobody's business.
OPAQUE = "tcp"
#: What a snapshot has room for (:data:`graph.wire.bounds.MAX_PORT_RANGES`).
MAX_NAMED_PORTS = 256

_PORT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_APP_PROTOCOL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_./]{0,251}[A-Za-z0-9])?")
_port_number = integer(1, 65535)
_protocol = choice(*Protocol)
_port_name = matching(_PORT_NAME, "lower-case letters, digits and '-', 63 characters at most", may_be_empty=True)
_app_protocol = matching(_APP_PROTOCOL, "http, grpc, tcp or another of Kubernetes' appProtocols", may_be_empty=True)

#: Ports that are not to be looked into, whatever is spoken there (Linkerd's ``config.linkerd.io/opaque-ports``).
opaque_ports: Check[tuple[int, ...]] = items(_port_number, at_most=MAX_NAMED_PORTS)


def own_address(value: object) -> str:
    """The address of one machine, in its one spelling."""
    written = ip_address(value)
    address = ipaddress.ip_address(written)
    if address.version == 6 and (address.ipv4_mapped is not None or address.scope_id is not None):
        raise Unfit(f"{written!r} has a second spelling", "write the plain address, no scope")
    if not is_somebodys(written):
        raise Unfit(f"{address} is nobody's own address", "write the address of the instance")
    return written


def is_somebodys(written: str) -> bool:
    """Whether an IP address, in its one spelling, can be that of one machine."""
    address = ipaddress.ip_address(written)
    return not (address.is_unspecified or address.is_multicast or (address.version == 6 and address.scope_id))


def entry_of(value: object) -> Fields:
    """The keys of one entry of a list."""
    return Fields(value, unfit, noun="key")


def unread(value: object) -> object:
    """For what is checked when more is known."""
    return value


def workload_ports(value: object) -> tuple[Port, ...]:
    """What a workload serves."""
    ports = items(_port)(value)
    _refuse_doubles((port.number, port.protocol, port.name) for port in ports)
    return ports


def with_opaque(entry: Fields, ports: tuple[Port, ...], opaque: tuple[int, ...]) -> tuple[Port, ...]:
    """The ports, with those that are not to be looked into said to be plain TCP.

    :param entry: of the workload, which is refused when its ports contradict each other
    """
    known = {(port.number, port.protocol): port for port in ports}
    for index, number in enumerate(opaque):
        port = known.get((number, Protocol.TCP), Port(number))
        if port.app_protocol not in ("", OPAQUE):
            entry.fail(
                f"opaquePorts[{index}]",
                f"{number} is said to be {port.app_protocol!r} in `ports`",
                "leave it out of one of the two",
            )
        known[number, Protocol.TCP] = replace(port, app_protocol=OPAQUE)
    named = sum(1 for port in known.values() if port.app_protocol)
    if named > MAX_NAMED_PORTS:
        entry.fail("ports", f"{named} of them have an appProtocol", f"name that of {MAX_NAMED_PORTS} at most")
    return tuple(known.values())


def _port(value: object) -> Port:
    entry = entry_of(value)
    port = Port(
        entry.take("port", _port_number),
        entry.take("protocol", _protocol, Protocol.TCP),
        entry.take("name", _port_name, ""),
        entry.take("appProtocol", _app_protocol, ""),
    )
    entry.finish()
    return port


def service_ports(workload: Workload | None) -> Check[tuple[ServicePort, ...]]:
    """The ports of a service in front of ``workload``, which may be named by the names of that one's."""

    def check(value: object) -> tuple[ServicePort, ...]:
        ports = items(lambda entry: _service_port(entry, workload), at_least=1)(value)
        _refuse_doubles((port.port, port.protocol, port.name) for port in ports)
        return ports

    return check


def _service_port(value: object, workload: Workload | None) -> ServicePort:
    entry = entry_of(value)
    number, protocol = entry.take("port", _port_number), entry.take("protocol", _protocol, Protocol.TCP)
    name, target = entry.take("name", _port_name, ""), entry.take("targetPort", unread, number)
    endpoints = entry.take("endpoints", _endpoints, None)
    entry.finish()
    target_port = entry.checked("targetPort", target, _target(protocol, workload))
    return ServicePort(number, target_port, protocol, name, endpoints)


def _endpoint(value: object) -> ServiceEndpoint:
    entry = entry_of(value)
    address, port = entry.take("address", own_address), entry.take("port", _port_number)
    ready = entry.take("ready", flag, True)
    entry.finish()
    return ServiceEndpoint(address, port, ready)


_endpoints: Check[tuple[ServiceEndpoint, ...]] = items(_endpoint, at_most=MAX_ENDPOINTS)


def _target(protocol: Protocol, workload: Workload | None) -> Check[int]:
    def check(value: object) -> int:
        if not isinstance(value, str):
            return _port_number(value)
        if workload is None:
            raise Unfit(f"{value[:80]!r} is a name, and there is no one workload to look it up in", "write a number")
        for port in workload.ports:
            if port.name == value and port.protocol is protocol:
                return port.number
        raise Unfit(f"{workload.ref} has no {protocol} port named {value[:80]!r}", "name one of its ports, or a number")

    return check


def _refuse_doubles(ports: Iterable[tuple[int, Protocol, str]]) -> None:
    seen: set[Hashable] = set()
    for index, (number, protocol, name) in enumerate(ports):
        if (number, protocol) in seen:
            raise Unfit(f"{number}/{protocol} is there twice", "list every port once", f"[{index}].port")
        if name and name in seen:
            raise Unfit(
                f"the port name {name!r} is there twice", "give every port a name of its own", f"[{index}].name"
            )
        seen |= {(number, protocol), name}
