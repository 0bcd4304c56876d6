"""Carts: HTTP/1.1, kept in the cache over one long-lived connection."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from hedgerow.local.shop.cache import CacheClient
from hedgerow.local.shop.serving import serve_http, target

CACHE: web.AppKey[CacheClient] = web.AppKey("cache", CacheClient)


def _key(request: web.Request) -> bytes:
    return b"cart:" + request.match_info["user"].encode()


async def _items(request: web.Request) -> list[int]:
    stored = await request.app[CACHE].call(b"GET", _key(request))
    return list(json.loads(stored)) if stored else []


async def _show(request: web.Request) -> web.Response:
    return web.json_response({"items": await _items(request)})


async def _add(request: web.Request) -> web.Response:
    items = [*await _items(request), int((await request.json())["item"])][-20:]
    await request.app[CACHE].call(b"SET", _key(request), json.dumps(items).encode())
    return web.json_response({"items": items})


async def _empty(request: web.Request) -> web.Response:
    await request.app[CACHE].call(b"DEL", _key(request))
    return web.json_response({"items": []})


def application() -> web.Application:
    app = web.Application()
    app[CACHE] = CacheClient(*target("CACHE"))
    app.add_routes(
        [web.get("/carts/{user}", _show), web.post("/carts/{user}", _add), web.delete("/carts/{user}", _empty)]
    )
    return app


async def _main() -> None:
    await serve_http(application())


if __name__ == "__main__":
    asyncio.run(_main())
