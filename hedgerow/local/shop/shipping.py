"""Shipping: gRPC, calls nobody."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

from hedgerow.local.shop.calls import Message, decode, encode, serve


async def _quote(request: Message, context: grpc.aio.ServicerContext[Message, Message]) -> Message:
    return {"price": 250 + 75 * len(request["items"]), "days": 3}


HANDLERS = {"Quote": grpc.unary_unary_rpc_method_handler(_quote, decode, encode)}

if __name__ == "__main__":
    asyncio.run(serve("shop.Shipping", HANDLERS))
