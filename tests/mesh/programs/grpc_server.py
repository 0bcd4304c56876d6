"""A gRPC server with one method of every kind. Messages are plain bytes.

python grpc_server.py PORT
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator

import grpc
import grpc.aio


async def reverse(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return request[::-1]


async def count(request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    """So many messages as the request says, of 1000 bytes each."""
    for number in range(int(request)):
        yield b"%04d" % number * 250


async def digest(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
    total = hashlib.sha256()
    async for request in requests:
        total.update(request)
    return total.hexdigest().encode()


async def converse(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    """Answers each message when it comes, and says how many there were when the client has ended."""
    answered = 0
    async for request in requests:
        answered += 1
        yield request.upper()
    yield b"answered %d" % answered


async def main() -> None:
    server = grpc.aio.server()
    handlers = {
        "Reverse": grpc.unary_unary_rpc_method_handler(reverse),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Digest": grpc.stream_unary_rpc_method_handler(digest),
        "Converse": grpc.stream_stream_rpc_method_handler(converse),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tests.Kinds", handlers),))
    server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
