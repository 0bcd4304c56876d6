"""The ``dns:`` section of ``sidecar.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from graph.fields import Address, Fields, destination_address, flag, integer, items, listen_address, seconds, unfit

#: Istio's port for its own DNS proxy.
DNS_LISTEN: Final = Address("127.0.0.1", 15053)


@dataclass(frozen=True, slots=True)
class Dns:
    """How the application's questions to DNS are handled.

    :param proxy: whether they go through us; None: where connections are captured. Without it nothing outside the mesh
        is known by its name
    :param listen: where captured questions arrive; the same port of ``::1`` beside it where the pod has IPv6
    :param upstreams: the resolvers that are asked; empty: those of the pod's ``resolv.conf``
    :param patience: seconds before the next resolver is asked as well; ``deadline`` for the whole question
    :param keep: seconds that a name stays bound to an address beyond its time to live
    :param in_flight: questions at once; more are answered with SERVFAIL
    :param connections: TCP connections at once; more are refused
    :param pipelined: questions of one TCP connection that are asked at once; more wait at the application
    :param idle: seconds that a TCP connection may be open without a question, or with an answer that nobody takes
    :param addresses: that have names at once; beyond, the least lately used are forgotten
    :param names: of one address, likewise
    """

    proxy: bool | None = None
    listen: Address = DNS_LISTEN
    upstreams: tuple[Address, ...] = ()
    patience: float = 1.5
    deadline: float = 4.5
    keep: float = 300.0
    in_flight: int = 1024
    connections: int = 256
    pipelined: int = 32
    idle: float = 10.0
    addresses: int = 4096
    names: int = 32


def read_dns(value: object) -> Dns:
    """Read the section.

    :raises Unfit: naming the setting, what is wrong with it and what to write instead
    """
    fields = Fields(value, unfit, noun="setting")
    found = Dns(
        proxy=fields.take("proxy", flag, None),
        listen=fields.take("listen", listen_address, DNS_LISTEN),
        upstreams=fields.take("upstreams", items(destination_address, at_most=8), ()),
        patience=fields.take("patience", seconds(0.05, 30), 1.5),
        deadline=fields.take("deadline", seconds(0.1, 60), 4.5),
        keep=fields.take("keep", seconds(0, 86_400), 300.0),
        in_flight=fields.take("in_flight", integer(1, 65_536), 1024),
        connections=fields.take("connections", integer(1, 65_536), 256),
        pipelined=fields.take("pipelined", integer(1, 1024), 32),
        idle=fields.take("idle", seconds(0.1, 3600), 10.0),
        addresses=fields.take("addresses", integer(1, 1_000_000), 4096),
        names=fields.take("names", integer(1, 1024), 32),
    )
    fields.finish()
    if found.listen.port == 0:
        fields.fail("listen", "port 0 can not be captured to", "write a port such as 15053")
    if found.listen in found.upstreams:
        fields.fail("upstreams", f"{found.listen} is where we listen", "name the pod's own resolvers")
    return found
