"""The catalogue: HTTP/1.1 in front of the database, a new database connection for each question."""

from __future__ import annotations

import asyncio

from aiohttp import web

from hedgerow.local.shop import database
from hedgerow.local.shop.serving import serve_http, target


async def _all(request: web.Request) -> web.Response:
    return web.json_response(await database.ask(*target("DATABASE"), "ALL"))


async def _one(request: web.Request) -> web.Response:
    item = await database.ask(*target("DATABASE"), f"GET {request.match_info['id']}")
    if item is None:
        raise web.HTTPNotFound(text="no such item")
    return web.json_response(item)


def application() -> web.Application:
    app = web.Application()
    app.add_routes([web.get("/items", _all), web.get(r"/items/{id:\d+}", _one)])
    return app


if __name__ == "__main__":
    asyncio.run(serve_http(application()))
