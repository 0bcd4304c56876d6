"""Payment: gRPC, calls nobody."""

from __future__ import annotations

import asyncio
import hashlib

import grpc
import grpc.aio

from hedgerow.local.shop.calls import Message, decode, encode, serve


async def _charge(request: Message, context: grpc.aio.ServicerContext[Message, Message]) -> Message:
    amount = int(request["amount"])
    if amount <= 0:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the amount is not positive")
    receipt = hashlib.sha256(f"{request['user']}:{amount}".encode()).hexdigest()[:12]
    return {"receipt": receipt, "amount": amount}


HANDLERS = {"Charge": grpc.unary_unary_rpc_method_handler(_charge, decode, encode)}

if __name__ == "__main__":
    asyncio.run(serve("shop.Payment", HANDLERS))
