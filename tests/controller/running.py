"""A whole controller on loopback for tests, and a sidecar's side of its services: real TLS, real files, real SQLite."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric import ec

from certs.bundle import TrustBundle
from certs.ca import CertificateAuthority
from certs.ca_files import load_authority
from certs.certificate import pem_text
from certs.keys import key_to_pem, make_csr, new_key
from certs.spiffe import CONTROLLER_DNS_NAME, SpiffeId
from controller.app import Controller
from controller.learner import Gate
from controller.settings import Address, Settings
from graph.model import WorkloadRef
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from tests.controller.mesh import INVENTORY, TRUST_DOMAIN

LOOPBACK = Address("127.0.0.1", 0)
#: How the web API writes front -> cart:8080, and what every change through it must say.
EDGE = "shop/front->shop/cart:8080/TCP"
PERSON = {"owner": "anna", "reason": "test"}
CHANNEL = [
    ("grpc.ssl_target_name_override", CONTROLLER_DNS_NAME),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]


async def eventually(met: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Poll until ``met()`` is true, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := met()):
        assert time.monotonic() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.01)
    return found


@dataclass(slots=True)
class Identity:
    """A certificate with its key."""

    key: ec.EllipticCurvePrivateKey
    chain_der: tuple[bytes, ...]

    @property
    def chain_pem(self) -> bytes:
        return pem_text(self.chain_der).encode()


@dataclass
class Running:
    """A controller that serves. ``http`` carries the operator's token and begins at ``/api/v1``."""

    controller: Controller
    settings: Settings
    http: aiohttp.ClientSession
    _channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.controller.web_server.url

    @property
    def bundle(self) -> TrustBundle:
        return TrustBundle.from_pem((self.settings.state_dir / "trust-bundle.pem").read_text(), TRUST_DOMAIN)

    @property
    def authority(self) -> CertificateAuthority:
        """The controller's own authority, to sign what it would never sign."""
        found = load_authority(self.settings.state_dir / "ca")
        assert found is not None
        return found

    def token(self, role: str = "operator") -> str:
        return (self.settings.state_dir / f"{role}.token").read_text().strip()

    async def get(self, path: str, status: int = 200, **query: Any) -> Any:
        async with self.http.get(f"/api/v1{path}", params=query) as response:
            assert response.status == status, await response.text()
            return await response.json()

    async def post(self, path: str, body: Any, status: int = 200) -> Any:
        async with self.http.post(f"/api/v1{path}", json=body) as response:
            assert response.status == status, await response.text()
            return await response.json()

    # --- as a sidecar

    async def join_token(self, workload: str = "shop/front", instance: str = "front-0", expires_in: float = 60) -> str:
        body = {"workload": workload, "instance": instance, "expires_in": expires_in, "owner": "anna"}
        return str((await self.post("/join-tokens", body, 201))["token"])

    def attesting(self) -> grpc.aio.Channel:
        """A channel without a certificate, to the issuer's port."""
        return self._channel(
            self.controller.issuer_server.bound, grpc.ssl_channel_credentials(self.bundle.to_pem().encode())
        )

    def mutual(self, identity: Identity, roots: bytes | None = None) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(
            roots or self.bundle.to_pem().encode(), key_to_pem(identity.key), identity.chain_pem
        )
        return self._channel(self.controller.grpc_server.bound, credentials)

    def _channel(self, address: Address, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
        channel = grpc.aio.secure_channel(str(address), credentials, CHANNEL)
        self._channels.append(channel)
        return channel

    async def join(self, workload: str = "shop/front", instance: str = "front-0") -> Identity:
        """The first certificate of an instance, as its sidecar gets it."""
        token = await self.join_token(workload, instance)
        key = new_key()
        answer = await rpc.IssuerStub(self.attesting()).Sign(pb.SignRequest(csr_der=make_csr(key), join_token=token))
        return Identity(key, tuple(answer.chain_der))

    def forge(
        self, spiffe_id: SpiffeId, instance: str = "", *, now: float | None = None, lifetime: float = 60
    ) -> Identity:
        """A certificate of the controller's authority that its issuer would not have signed."""
        key = new_key()
        chain = self.authority.sign_workload(make_csr(key), spiffe_id, now or time.time(), lifetime, instance)
        return Identity(key, chain.chain_der)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self.http.close()


def settings_for(folder: Path, **changes: Any) -> Settings:
    inventory = folder / "inventory.yaml"
    if not inventory.exists():
        inventory.write_text(INVENTORY)
    given: dict[str, Any] = {
        "state_dir": folder / "state",
        "inventory": inventory,
        "trust_domain": TRUST_DOMAIN,
        "grpc_listen": LOOPBACK,
        "issuer_listen": LOOPBACK,
        "web_listen": LOOPBACK,
        "inventory_interval": 0.05,
        "learning": Gate(min_connections=3, min_seconds=0.0, quiet_seconds=0.0),
    }
    return Settings(**{**given, **changes})


@asynccontextmanager
async def running(folder: Path, **changes: Any) -> AsyncIterator[Running]:
    """Run a controller on the state in ``folder`` until the block ends."""
    settings = settings_for(folder, **changes)
    controller = Controller(settings)
    serving = asyncio.Event()
    task = asyncio.create_task(controller.run(serving.set))
    waiting = asyncio.create_task(serving.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()
    run = Running(controller, settings, aiohttp.ClientSession(controller.web_server.url))
    run.http.headers["Authorization"] = f"Bearer {run.token()}"
    try:
        yield run
    finally:
        await run.close()
        controller.stop()
        await asyncio.wait_for(task, 30)


class PolicyStream:
    """A sidecar's end of ``Policy.Watch``."""

    def __init__(self, channel: grpc.aio.Channel, boot_id: str = "boot-1", held_version: int = 0) -> None:
        self.call = rpc.PolicyStub(channel).Watch()
        self._hello = pb.PolicyHello(boot_id=boot_id, held_version=held_version, software="test")

    async def __aenter__(self) -> PolicyStream:
        await self.call.write(pb.PolicyRequest(hello=self._hello))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()

    async def push(self) -> pb.PolicyPush:
        async with asyncio.timeout(20):
            push = await self.call.read()
        assert isinstance(push, pb.PolicyPush), "the stream has ended"
        return push

    async def ack(self, push: pb.PolicyPush, version: int) -> None:
        await self.call.write(pb.PolicyRequest(ack=pb.PolicyAck(nonce=push.nonce, version=version)))

    async def nack(self, push: pb.PolicyPush, version: int, error: str) -> None:
        await self.call.write(pb.PolicyRequest(nack=pb.PolicyNack(nonce=push.nonce, version=version, error=error)))


def spiffe(ref: WorkloadRef, account: str = "default", trust_domain: str = TRUST_DOMAIN) -> SpiffeId:
    return SpiffeId.for_workload(trust_domain, ref.namespace, account, ref.name)
