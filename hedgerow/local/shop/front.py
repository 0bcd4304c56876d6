"""The front: HTTP/1.1, the shop's only entry. Everything that it shows comes from the services behind it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import grpc.aio
from aiohttp import ClientError, web

from hedgerow.local.shop.calls import Caller
from hedgerow.local.shop.serving import SESSION, serve_http

RECOMMENDATION: web.AppKey[Caller] = web.AppKey("recommendation", Caller)

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _blame(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Say which call behind the front failed, as a gateway does."""
    try:
        return await handler(request)
    except (ClientError, grpc.aio.AioRpcError, TimeoutError, OSError) as error:
        return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=502)


async def _fetch(request: web.Request, method: str, variable: str, path: str, body: object = None) -> object:
    async with request.app[SESSION].request(method, os.environ[variable] + path, json=body) as response:
        return await response.json()


async def _home(request: web.Request) -> web.Response:
    items = await _fetch(request, "GET", "CATALOGUE", "/items")
    suggested = [item async for item in request.app[RECOMMENDATION].stream("Suggest", {"count": 3})]
    return web.json_response({"items": items, "suggested": suggested})


async def _item(request: web.Request) -> web.Response:
    return web.json_response(await _fetch(request, "GET", "CATALOGUE", f"/items/{request.match_info['id']}"))


async def _add(request: web.Request) -> web.Response:
    path = f"/carts/{request.match_info['user']}"
    return web.json_response(await _fetch(request, "POST", "CART", path, await request.json()))


async def _checkout(request: web.Request) -> web.Response:
    return web.json_response(await _fetch(request, "POST", "CHECKOUT", f"/checkout/{request.match_info['user']}"))


async def _main() -> None:
    app = web.Application(middlewares=[_blame])
    app[RECOMMENDATION] = Caller(os.environ["RECOMMENDATION"], "shop.Recommendation")
    app.add_routes(
        [
            web.get("/", _home),
            web.get(r"/items/{id:\d+}", _item),
            web.post("/carts/{user}", _add),
            web.post("/checkout/{user}", _checkout),
        ]
    )
    await serve_http(app)
    await app[RECOMMENDATION].close()


if __name__ == "__main__":
    asyncio.run(_main())
