"""Stands between a real controller and a real sidecar, reads everything and spoils the policies that pass.

What no wire between the two should let happen is possible here because the test owns both ends' keys: the relay shows
the sidecar a certificate of the controller's own authority, and the controller the sidecar's certificate.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from certs.ca_files import load_authority
from certs.certificate import pem_text
from certs.keys import key_to_pem, make_csr, new_key
from certs.signing import sign_payload
from certs.spiffe import CONTROLLER_DNS_NAME
from graph.wire import hedgerow_pb2 as pb

_WATCH_POLICY = "/hedgerow.v1.Policy/Watch"

type Spoil = Callable[[pb.SignedSnapshot], pb.SignedSnapshot]


def honest(signed: pb.SignedSnapshot) -> pb.SignedSnapshot:
    """Pass it on as it is."""
    return signed


class Relay(grpc.GenericRpcHandler):
    """The handler of every call.

    :param controller_state: the controller's state directory, for its authority
    :param sidecar_state: the sidecar's, for its certificate
    :param upstream: the controller's gRPC address
    """

    def __init__(self, controller_state: Path, sidecar_state: Path, upstream: str) -> None:
        authority = load_authority(controller_state / "ca")
        assert authority is not None
        self._authority = authority
        self._sidecar_state = sidecar_state
        self._upstream = upstream
        self._channel: grpc.aio.Channel | None = None
        self._signer = new_key()
        self._signer_chain = authority.sign_policy_signer(make_csr(self._signer), time.time()).chain_der
        self.spoil: Spoil = honest

    def signed(self, payload: bytes) -> pb.SignedSnapshot:
        """A payload of ours under a signature that is good."""
        return pb.SignedSnapshot(
            payload=payload, signature=sign_payload(self._signer, payload), signer_chain_der=self._signer_chain
        )

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Listen, in a thread, until the block ends; its address."""
        address: Future[str] = Future()
        over: Future[None] = Future()

        async def serve() -> None:
            async with self._served() as listening:
                address.set_result(listening)
                await asyncio.wrap_future(over)

        thread = threading.Thread(target=lambda: asyncio.run(serve()), name="relay")
        thread.start()
        try:
            yield address.result(30)
        finally:
            over.set_result(None)
            thread.join(30)

    @asynccontextmanager
    async def _served(self) -> AsyncIterator[str]:
        key = new_key()
        chain = self._authority.sign_controller(make_csr(key), time.time(), 3600).chain_der
        roots = self._authority.bundle().to_pem().encode()
        credentials = grpc.ssl_server_credentials(
            [(key_to_pem(key), pem_text(chain).encode())], roots, require_client_auth=True
        )
        server = grpc.aio.server(handlers=[self])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)
            if self._channel is not None:
                await self._channel.close()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        method = details.method

        async def forward(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            call = self._to_controller().stream_stream(method)(requests)
            try:
                async for answer in call:
                    yield self._spoilt(answer) if method == _WATCH_POLICY else answer
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
            except asyncio.CancelledError:
                call.cancel()
                raise

        # on the wire a call with one message is a stream of one
        return grpc.stream_stream_rpc_method_handler(forward)

    def _spoilt(self, answer: bytes) -> bytes:
        push = pb.PolicyPush.FromString(answer)
        return pb.PolicyPush(nonce=push.nonce, snapshot=self.spoil(push.snapshot)).SerializeToString()

    def _to_controller(self) -> grpc.aio.Channel:
        if self._channel is None:
            pem = (self._sidecar_state / "svid.pem").read_bytes()
            end = pem.index(b"-----BEGIN CERTIFICATE-----")
            roots = self._authority.bundle().to_pem().encode()
            credentials = grpc.ssl_channel_credentials(roots, pem[:end], pem[end:])
            options = [("grpc.ssl_target_name_override", CONTROLLER_DNS_NAME)]
            self._channel = grpc.aio.secure_channel(self._upstream, credentials, options)
        return self._channel
