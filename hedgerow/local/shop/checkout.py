"""Checkout: HTTP/1.1 in, carts over HTTP/1.1, shipping and payment over gRPC."""

from __future__ import annotations

import asyncio
import os

from aiohttp import web

from hedgerow.local.shop.calls import Caller
from hedgerow.local.shop.serving import SESSION, serve_http

PAYMENT: web.AppKey[Caller] = web.AppKey("payment", Caller)
SHIPPING: web.AppKey[Caller] = web.AppKey("shipping", Caller)


async def _buy(request: web.Request) -> web.Response:
    user = request.match_info["user"]
    session = request.app[SESSION]
    cart = f"{os.environ['CART']}/carts/{user}"
    async with session.get(cart) as response:
        items = (await response.json())["items"]
    quote = await request.app[SHIPPING].call("Quote", {"items": items})
    paid = await request.app[PAYMENT].call("Charge", {"user": user, "amount": quote["price"] + 400 * len(items)})
    async with session.delete(cart):
        pass
    return web.json_response({"receipt": paid["receipt"], "amount": paid["amount"], "days": quote["days"]})


async def _main() -> None:
    app = web.Application()
    app[PAYMENT] = Caller(os.environ["PAYMENT"], "shop.Payment")
    app[SHIPPING] = Caller(os.environ["SHIPPING"], "shop.Shipping")
    app.add_routes([web.post("/checkout/{user}", _buy)])
    await serve_http(app)
    await asyncio.gather(app[PAYMENT].close(), app[SHIPPING].close())


if __name__ == "__main__":
    asyncio.run(_main())
