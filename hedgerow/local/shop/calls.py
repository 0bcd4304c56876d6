"""gRPC without generated code: JSON messages, methods named by their full path."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import grpc
import grpc.aio

from hedgerow.local.shop.serving import CALL_TIMEOUT, listen, until_told_to_stop

type Message = dict[str, Any]


def encode(message: Message) -> bytes:
    return json.dumps(message).encode()


def decode(data: bytes) -> Message:
    return cast(Message, json.loads(data))


async def serve(service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
    """Serve one gRPC service until SIGTERM."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(handlers)),))
    host, port = listen()
    if server.add_insecure_port(f"{host}:{port}") == 0:
        raise OSError(f"cannot listen on {host}:{port}")
    await server.start()
    await until_told_to_stop()
    await server.stop(1.0)


class Caller:
    """A client of one gRPC service over one long-lived channel."""

    def __init__(self, target: str, service: str) -> None:
        # The target is one address behind a service; the name is in the pod's hosts file and not in any DNS.
        self._channel = grpc.aio.insecure_channel(target)
        self._service = service

    async def call(self, method: str, request: Message) -> Message:
        """One request, one answer.

        :raises grpc.aio.AioRpcError: when it failed
        """
        stub = self._channel.unary_unary(f"/{self._service}/{method}", encode, decode)
        return cast(Message, await stub(request, timeout=CALL_TIMEOUT))

    async def stream(self, method: str, request: Message) -> AsyncIterator[Message]:
        """One request, a stream of answers."""
        stub = self._channel.unary_stream(f"/{self._service}/{method}", encode, decode)
        async for message in stub(request, timeout=CALL_TIMEOUT):
            yield message

    async def close(self) -> None:
        await self._channel.close(None)
