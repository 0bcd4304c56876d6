"""Two workloads with a data plane each, in this process: a client's connection goes through a real tunnel, with real
TLS, to a real application.

``shop/front`` takes connections at ``door`` and carries them over its tunnel to ``shop/cart``, whose policy speaks of
the port ``inbound``, and which passes them on to the port ``application``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import Any

from certs.ca import CertificateAuthority
from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint
from graph.model import Mode, Origin, PortRange, Rule, Selector, Snapshot, WorkloadRef
from sidecar.dataplane.contracts import Taps
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound, ExplicitOutbound
from sidecar.dataplane.sockets import Address
from sidecar.http.settings import HttpSettings
from tests.sidecar.dataplane.applications import until
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, FlowList, HeldDirectory, HeldPolicy, credentials

HOST = "127.0.0.1"
FRONT, CART = WorkloadRef("shop", "front"), WorkloadRef("shop", "cart")
FRONT_ID, CART_ID = (str(SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", name)) for name in ("front", "cart"))


def ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the kernel gives to clients, so that none takes them meanwhile."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            found.append(port)
    return found


class TwoPods:
    """Both data planes. Made of a certificate authority and a stack that takes them apart.

    :ivar flows: what shop/cart reports
    """

    def __init__(self, authority: CertificateAuthority, stack: contextlib.AsyncExitStack) -> None:
        self._authority, self.stack = authority, stack
        self.door, self.inbound, self.application = ports(3)
        self.flows = FlowList()
        self._version = 1

    async def start(
        self, *operations: str, taps: Taps | None = None, http: HttpSettings | None = None, **settings: Any
    ) -> TwoPods:
        """Start both, with a policy as :meth:`allow` makes it, and shop/cart with these settings."""
        if http is not None:
            settings["http"] = http
        self.front_credentials = credentials(self._authority, "shop", "front")
        self.policy = HeldPolicy(self._snapshot(operations))
        door = ExplicitOutbound(Address(HOST, self.door), Address("192.0.2.1", 80))
        entry = ExplicitInbound(Address(HOST, self.inbound), Address(HOST, self.application))
        self.cart = DataPlane(
            DataPlaneSettings(outbound_listen=(), inbound_listen=(), explicit_inbound=(entry,), **settings),
            self.policy,
            HeldDirectory(),
            credentials(self._authority, "shop", "cart"),
            self.flows,
            taps=taps,
        )
        endpoint = Endpoint(HOST, self.inbound, identity=CART_ID)
        there = Destination("192.0.2.1", 80, workload=CART, meshed=True, endpoints=(endpoint,))
        self.front = DataPlane(
            DataPlaneSettings(outbound_listen=(), inbound_listen=(), explicit_outbound=(door,)),
            HeldPolicy(Snapshot(FRONT, TRUST_DOMAIN, 1, Mode.LEARN, Mode.LEARN)),
            HeldDirectory([there]),
            self.front_credentials,
            FlowList(),
        )
        for plane in (self.cart, self.front):
            await plane.start()
            self.stack.callback(plane.stop)
        return self

    def allow(self, *operations: str) -> None:
        """From now on shop/front may ask for these operations and nothing else; without any, for everything."""
        self._version += 1
        self.policy.apply(self._snapshot(operations))

    def allow_everybody(self) -> None:
        """From now on everybody may ask for everything."""
        self._version += 1
        self.policy.apply(Snapshot(CART, TRUST_DOMAIN, self._version, Mode.LEARN, Mode.LEARN))

    def forbid(self) -> None:
        """From now on nobody may ask for anything."""
        self._version += 1
        self.policy.apply(Snapshot(CART, TRUST_DOMAIN, self._version, Mode.ENFORCE, Mode.ENFORCE))

    def _snapshot(self, operations: tuple[str, ...]) -> Snapshot:
        rule = Rule(
            "static/two-pods",
            Selector.of(FRONT),
            Selector.of(CART),
            (PortRange.single(self.inbound),),
            operations=operations,
            origin=Origin.STATIC,
        )
        return Snapshot(CART, TRUST_DOMAIN, self._version, Mode.ENFORCE, Mode.ENFORCE, rules=(rule,))

    async def serve(self, handler: Any) -> None:
        """Have a function of streams be the application."""
        server = await asyncio.start_server(handler, HOST, self.application, limit=1 << 20)
        self.stack.callback(server.close)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client of shop/front."""
        reader, writer = await asyncio.open_connection(HOST, self.door, limit=1 << 20)
        self.stack.callback(writer.close)
        return reader, writer

    async def connect_plainly(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client of nobody's, which goes to shop/cart without TLS."""
        reader, writer = await asyncio.open_connection(HOST, self.inbound, limit=1 << 20)
        self.stack.callback(writer.close)
        return reader, writer

    async def until(self, condition: Any) -> None:
        await until(condition)
