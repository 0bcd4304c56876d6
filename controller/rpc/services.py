"""The issuer's and the telemetry's gRPC services: messages in, calls of the issuer and the engine, messages out."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import unquote

import grpc

from controller.inspection import InspectionIssuer
from controller.issuer import Issued, Issuer, Throttled, network_of
from controller.rpc.caller import Caller, Refused
from controller.rpc.gate import Context, Gate, Outgoing, answered
from graph.flow import Flow
from graph.model import Instance
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from graph.wire.codec import flow_from_message

#: The most flows that one batch may hold; a sidecar has at most a few hundred peers in one interval.
MAX_FLOWS = 10_000
#: Calls without a certificate that one address may have under way: half of what all may (``server.ATTESTING_CALLS``).
CALLS_OF_AN_ADDRESS = 256


class Ingest(Protocol):
    """What the telemetry service asks of the engine."""

    async def ingest(
        self,
        instance: Instance,
        boot_id: str,
        sequence: int,
        policy_version: int,
        flows: Sequence[Flow],
        shed: int = 0,
    ) -> int: ...


class AttestingIssuer(rpc.IssuerServicer):
    """The issuer for those who have no certificate yet: a join token, or one of Kubernetes, says who they are."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer
        self._calls: Counter[str] = Counter()

    async def Sign(self, request: pb.SignRequest, context: Context) -> pb.SignResponse:
        async with answered(context):
            address = address_of(context.peer())
            with self._one_of(network_of(address)):
                match request.WhichOneof("attestation"):
                    case "join_token":
                        return _signed(await self._issuer.join(request.csr_der, request.join_token, address))
                    case "service_account_token":
                        token = request.service_account_token
                        return _signed(await self._issuer.attest(request.csr_der, token, request.instance, address))
                    case _:
                        raise Refused(
                            grpc.StatusCode.INVALID_ARGUMENT,
                            "attestation: missing; send a join token or a ServiceAccount token (renewals belong on the "
                            "mutual TLS port)",
                        )
        raise AssertionError("answered() does not swallow")  # for the type checker: abort always raises

    @contextmanager
    def _one_of(self, address: str) -> Iterator[None]:
        """Nobody fills by itself what all share. :raises Throttled:"""
        if self._calls[address] >= CALLS_OF_AN_ADDRESS:
            raise Throttled(
                f"{CALLS_OF_AN_ADDRESS} calls of this address wait for their answers", remedy="try again in a moment"
            )
        self._calls[address] += 1
        try:
            yield
        finally:
            self._calls[address] -= 1
            if not self._calls[address]:
                del self._calls[address]


class RenewingIssuer(rpc.IssuerServicer):
    """The issuer for those who have one: it is renewed, for the same workload and instance."""

    def __init__(self, issuer: Issuer, gate: Gate) -> None:
        self._issuer = issuer
        self._gate = gate

    async def Sign(self, request: pb.SignRequest, context: Context) -> pb.SignResponse:
        async with answered(context):
            caller = self._gate.caller(context)
            if request.WhichOneof("attestation") is not None:
                raise Refused(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "attestation: not taken on this port, where the certificate says who you are; leave it out",
                )
            return _signed(await self._issuer.renew(request.csr_der, caller.instance))
        raise AssertionError("answered() does not swallow")  # for the type checker: abort always raises


class InspectionService(rpc.InspectionServicer):
    """Signs what sidecars show their own applications in place of inspected hosts."""

    def __init__(self, issuer: InspectionIssuer, gate: Gate) -> None:
        self._issuer = issuer
        self._gate = gate

    async def Sign(self, request: pb.InspectionRequest, context: Context) -> pb.InspectionResponse:
        async with answered(context):
            caller = self._gate.caller(context)
            chain, hosts = await self._issuer.sign(request.csr_der, caller.instance)
            return pb.InspectionResponse(chain_der=chain, hosts=hosts)
        raise AssertionError("answered() does not swallow")  # for the type checker: abort always raises


def _signed(issued: Issued) -> pb.SignResponse:
    return pb.SignResponse(
        chain_der=issued.chain.chain_der,
        bundle=pb.TrustBundle(
            trust_domain=issued.bundle.trust_domain,
            sequence=issued.bundle.sequence,
            roots_der=issued.bundle.roots_der,
        ),
        spiffe_id=str(issued.chain.spiffe_id),
        instance=issued.instance.name,
        workload=str(issued.instance.workload),
    )


class TelemetryService(rpc.TelemetryServicer):
    """Takes flow reports. One batch after the other: an acknowledgement means that it is on disk."""

    def __init__(self, engine: Ingest, gate: Gate) -> None:
        self._engine = engine
        self._gate = gate

    async def ReportFlows(self, requests: AsyncIterator[pb.FlowBatch], context: Context) -> None:
        async def serve(caller: Caller, outgoing: Outgoing) -> None:
            async for batch in requests:
                if len(batch.flows) > MAX_FLOWS:
                    raise Refused(
                        grpc.StatusCode.INVALID_ARGUMENT, f"flows: {len(batch.flows)} in one batch, {MAX_FLOWS} at most"
                    )
                flows = [flow_from_message(message) for message in batch.flows]
                sequence = await self._engine.ingest(
                    caller.instance, batch.boot_id, batch.sequence, batch.policy_version, flows, batch.shed_flows
                )
                await outgoing.write(pb.FlowAck(boot_id=batch.boot_id, sequence=sequence))

        async with answered(context):
            await self._gate.stream(context, "telemetry", serve)


def address_of(peer: str) -> str:
    """The IP address in gRPC's name of a peer (``ipv4:10.0.0.1:47``, ``ipv6:%5B::1%5D:47``); else the name itself."""
    _, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return peer
