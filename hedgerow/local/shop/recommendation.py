"""Recommendations: gRPC with a stream of answers, made from the catalogue (HTTP/1.1)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import grpc
import grpc.aio
from aiohttp import ClientSession, ClientTimeout

from hedgerow.local.shop.calls import Message, decode, encode, serve
from hedgerow.local.shop.serving import CALL_TIMEOUT


async def _main() -> None:
    async with ClientSession(timeout=ClientTimeout(total=CALL_TIMEOUT), raise_for_status=True) as session:

        async def suggest(
            request: Message, context: grpc.aio.ServicerContext[Message, Message]
        ) -> AsyncIterator[Message]:
            async with session.get(f"{os.environ['CATALOGUE']}/items") as response:
                items = await response.json()
            for item in sorted(items, key=lambda item: item["price"])[: int(request.get("count", 3))]:
                yield {"id": item["id"], "name": item["name"]}

        await serve("shop.Recommendation", {"Suggest": grpc.unary_stream_rpc_method_handler(suggest, decode, encode)})


if __name__ == "__main__":
    asyncio.run(_main())
