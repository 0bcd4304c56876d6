"""A small controller that speaks the production protocol: real gRPC, real TLS, real signatures, state in memory.

It outlives its servers: :meth:`FakeController.stop` and :meth:`FakeController.start` are a crash and a restart on the
same ports, with everything that a real one keeps on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import grpc
import grpc.aio

from certs.bundle import TrustBundle
from certs.ca import CertificateAuthority
from certs.certificate import pem_text
from certs.keys import key_to_pem, make_csr, new_key
from certs.signing import sign_payload
from certs.spiffe import SpiffeId
from certs.svid import check_leaf, instance_of
from graph.directory import Destination
from graph.flow import Flow
from graph.model import InboundTls, Mode, Rule, Snapshot, WorkloadRef
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from graph.wire.codec import destination_to_message, encode_snapshot, flow_from_message
from sidecar.settings import Address, Settings

TRUST_DOMAIN = "hedgerow.test"
WORKLOAD = WorkloadRef("shop", "cart")
IDENTITY = SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "cart")
INSTANCE = "cart-1"
ADDRESS = "10.77.0.5"
DEADLINE = 20.0


async def until(condition, what: str = "the condition"):
    """Wait for a condition of the program under test, bounded; returns its value."""
    async with asyncio.timeout(DEADLINE):
        while not (value := condition()):  # noqa: ASYNC110  # production objects have no event for every condition
            await asyncio.sleep(0.01)
    return value


def snapshot(version: int = 1, *rules: Rule, mode: Mode = Mode.ENFORCE, **changes) -> Snapshot:
    made = Snapshot(WORKLOAD, TRUST_DOMAIN, version, mode, mode, InboundTls.PERMISSIVE, rules, issued_at=time.time())
    return replace(made, **changes)


@dataclass
class Answers:
    """What one policy watcher said."""

    hello: pb.PolicyHello
    acks: list[pb.PolicyAck] = field(default_factory=list)
    nacks: list[pb.PolicyNack] = field(default_factory=list)


class FakeController(rpc.IssuerServicer, rpc.TelemetryServicer):
    def __init__(self, lifetime: float = 3600.0) -> None:
        now = time.time()
        self.authority = CertificateAuthority.create(TRUST_DOMAIN, now)
        self.lifetime = lifetime
        self.tokens: dict[str, tuple[SpiffeId, str]] = {"token-1": (IDENTITY, INSTANCE)}
        self.pod_tokens: dict[str, tuple[SpiffeId, str]] = {}  # Kubernetes' own: good again and again
        self.pod_refusal = (grpc.StatusCode.PERMISSION_DENIED, "service_account_token: unknown [attestation-invalid]")
        self.shown: list[pb.SignRequest] = []
        self.bundle: TrustBundle | None = None  # when set, sent instead of the authority's
        self.signatures = 0
        self.refuse_renewals = False
        signer_key = new_key()
        self.signer_key = signer_key
        self.signer_chain = self.authority.sign_policy_signer(make_csr(signer_key), now).chain_der
        self.current: dict[WorkloadRef, pb.SignedSnapshot] = {}
        self.watchers: list[Answers] = []
        self._pushes: dict[asyncio.Queue[pb.SignedSnapshot], WorkloadRef] = {}
        self.batches: dict[tuple[str, int], pb.FlowBatch] = {}
        self.received = 0
        self.acknowledge = True
        self.refuse_batches = ""
        self.destinations: dict[tuple[str, int], Destination] = {}
        self.silent_directory = False
        self.asked: list[tuple[str, int]] = []
        self.released: list[tuple[str, int]] = []
        self._directories: dict[asyncio.Queue[pb.Destination], set[tuple[str, int]]] = {}
        self._servers: list[grpc.aio.Server] = []
        self.controller = Address("127.0.0.1", 0)
        self.issuer = Address("127.0.0.1", 0)

    # Its life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        key = new_key()
        chain = self.authority.sign_controller(make_csr(key), time.time(), 3600.0).chain_der
        pair = [(key_to_pem(key), pem_text(chain).encode())]
        roots = self.authority.bundle().to_pem().encode()
        mutual = grpc.ssl_server_credentials(pair, roots, require_client_auth=True)
        self.controller = await self._serve(self.controller, mutual, everything=True)
        self.issuer = await self._serve(self.issuer, grpc.ssl_server_credentials(pair), everything=False)

    async def _serve(self, address: Address, credentials: grpc.ServerCredentials, everything: bool) -> Address:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        rpc.add_IssuerServicer_to_server(self, server)
        if everything:
            rpc.add_PolicyServicer_to_server(_Policy(self), server)
            rpc.add_TelemetryServicer_to_server(self, server)
            rpc.add_DirectoryServicer_to_server(_Directory(self), server)
        port = server.add_secure_port(str(address), credentials)
        await server.start()
        self._servers.append(server)
        return Address("127.0.0.1", port)

    async def stop(self) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            await server.stop(0)

    async def __aenter__(self) -> FakeController:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def settings(self, directory, **changes) -> Settings:
        """Settings of a sidecar that joins this controller, with its files below ``directory``."""
        bundle, token = directory / "trust-bundle.pem", directory / "join-token"
        bundle.write_text(self.authority.bundle().to_pem())
        if not (directory / "state").exists():
            token.write_text("token-1\n")
        made = Settings(
            instance=INSTANCE,
            controller=self.controller,
            issuer=self.issuer,
            trust_domain=TRUST_DOMAIN,
            trust_bundle=bundle,
            state_dir=directory / "state",
            addresses=(ADDRESS,),
            join_token_file=token,
            ready_listen=Address("127.0.0.1", 0),
            report_interval=0.05,
            drain_seconds=0.5,
        )
        return replace(made, **changes)

    # Issuer -----------------------------------------------------------------------------------------------------------

    async def Sign(self, request: pb.SignRequest, context) -> pb.SignResponse:
        caller = self._caller(context)
        if caller is None and request.service_account_token:
            self.shown.append(request)
            identity, instance = self.pod_tokens.get(request.service_account_token, (None, ""))
            if identity is None or instance != request.instance:
                await context.abort(*self.pod_refusal)
        elif caller is None:
            found = self.tokens.pop(request.join_token, None)
            if found is None:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "join token: unknown, expired or used before")
            identity, instance = found
        else:
            if self.refuse_renewals:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
            identity, instance = caller, instance_of(self._leaf(context))
        self.signatures += 1
        signed = self.authority.sign_workload(request.csr_der, identity, time.time(), self.lifetime, instance)
        bundle = self.bundle or self.authority.bundle()
        return pb.SignResponse(
            chain_der=signed.chain_der,
            bundle=pb.TrustBundle(
                trust_domain=bundle.trust_domain, sequence=bundle.sequence, roots_der=bundle.roots_der
            ),
            spiffe_id=str(identity),
            instance=instance,
            workload=f"{identity.namespace}/{identity.workload}",
        )

    @staticmethod
    def _leaf(context) -> bytes:
        pem = context.auth_context().get("x509_pem_cert")
        return ssl.PEM_cert_to_DER_cert(pem[0].decode()) if pem else b""

    def _caller(self, context) -> SpiffeId | None:
        leaf = self._leaf(context)
        return check_leaf(leaf, TRUST_DOMAIN, time.time()) if leaf else None

    # Policy -----------------------------------------------------------------------------------------------------------

    def sign(self, made: Snapshot) -> pb.SignedSnapshot:
        payload = encode_snapshot(made)
        return pb.SignedSnapshot(
            payload=payload, signature=sign_payload(self.signer_key, payload), signer_chain_der=self.signer_chain
        )

    def push(self, signed: pb.SignedSnapshot | Snapshot, workload: WorkloadRef = WORKLOAD) -> None:
        """Send it to the sidecars of ``workload``, whatever it says."""
        self.current[workload] = self.sign(signed) if isinstance(signed, Snapshot) else signed
        for queue, watcher in self._pushes.items():
            if watcher == workload:
                queue.put_nowait(self.current[workload])

    async def watch_policy(self, hello: pb.PolicyHello, requests: AsyncIterator, context):
        caller = self._caller(context)
        workload = WorkloadRef(caller.namespace, caller.workload)
        answers = Answers(hello)
        self.watchers.append(answers)
        queue: asyncio.Queue[pb.SignedSnapshot] = asyncio.Queue()
        if workload in self.current:
            queue.put_nowait(self.current[workload])
        self._pushes[queue] = workload
        reading = asyncio.ensure_future(self._read_answers(answers, requests))
        try:
            nonce = 0
            while True:
                signed = await queue.get()
                nonce += 1
                yield pb.PolicyPush(nonce=str(nonce), snapshot=signed)
        finally:
            del self._pushes[queue]
            reading.cancel()

    async def _read_answers(self, answers: Answers, requests: AsyncIterator) -> None:
        async for request in requests:
            if request.HasField("ack"):
                answers.acks.append(request.ack)
            else:
                answers.nacks.append(request.nack)

    # Telemetry --------------------------------------------------------------------------------------------------------

    async def ReportFlows(self, requests: AsyncIterator, context):
        async for batch in requests:
            if self.refuse_batches:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refuse_batches)
            self.received += 1
            self.batches.setdefault((batch.boot_id, batch.sequence), batch)
            if self.acknowledge:
                yield pb.FlowAck(boot_id=batch.boot_id, sequence=batch.sequence)

    @property
    def flows(self) -> list[Flow]:
        """Every flow, each batch once, as a real controller would store them."""
        return [flow_from_message(flow) for batch in self.batches.values() for flow in batch.flows]

    # Directory --------------------------------------------------------------------------------------------------------

    def answer(self, destination: Destination) -> None:
        key = (destination.address, destination.port)
        self.destinations[key] = destination
        for queue, watched in self._directories.items():
            if key in watched:
                queue.put_nowait(destination_to_message(destination))

    async def watch_directory(self, first: pb.WatchRequest, requests: AsyncIterator):
        queue: asyncio.Queue[pb.Destination] = asyncio.Queue()
        watched: set[tuple[str, int]] = set()
        self._directories[queue] = watched

        def take(request: pb.WatchRequest) -> None:
            key = (request.target.address, request.target.port)
            if request.remove:
                watched.discard(key)
                self.released.append(key)
                return
            watched.add(key)
            self.asked.append(key)
            if not self.silent_directory:
                found = self.destinations.get(key, Destination(*key))
                queue.put_nowait(destination_to_message(found))

        async def read() -> None:
            async for request in requests:
                take(request)

        take(first)
        reading = asyncio.ensure_future(read())
        try:
            while True:
                yield await queue.get()
        finally:
            del self._directories[queue]
            reading.cancel()


class _Policy(rpc.PolicyServicer):
    def __init__(self, owner: FakeController) -> None:
        self._owner = owner

    async def Watch(self, requests: AsyncIterator, context):
        first = await anext(aiter(requests), None)
        if first is not None:
            async for push in self._owner.watch_policy(first.hello, requests, context):
                yield push


class _Directory(rpc.DirectoryServicer):
    def __init__(self, owner: FakeController) -> None:
        self._owner = owner

    async def Watch(self, requests: AsyncIterator, context):
        first = await anext(aiter(requests), None)
        if first is not None:
            async for destination in self._owner.watch_directory(first, requests):
                yield destination


@contextlib.asynccontextmanager
async def running(*works) -> AsyncIterator[list[asyncio.Task]]:
    """Run coroutines beside the test; an error in one of them fails the test."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
