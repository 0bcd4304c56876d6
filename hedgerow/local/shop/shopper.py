"""The shopper: drives the front with a fixed mix from a fixed seed and counts every request and every failure.

``RATE`` is in requests a second over all ``SHOPPERS``; every ``RECONNECT`` requests a shopper starts on new
connections.
"""

from __future__ import annotations

import asyncio
import os
from random import Random

from aiohttp import ClientError, ClientSession, ClientTimeout

from hedgerow.local.shop.serving import until_told_to_stop
from hedgerow.local.shop.tally import Tally

#: The mix, as weights.
MIX = {"home": 4, "item": 3, "add": 2, "checkout": 1}
_TIMEOUT = ClientTimeout(total=20.0)


def plan(random: Random, user: str) -> tuple[str, str, object]:
    """The next request: method, path and JSON body."""
    action = random.choices(list(MIX), weights=list(MIX.values()))[0]
    item = random.randint(1, 6)
    if action == "home":
        return "GET", "/", None
    if action == "item":
        return "GET", f"/items/{item}", None
    if action == "add":
        return "POST", f"/carts/{user}", {"item": item}
    return "POST", f"/checkout/{user}", None


async def shop(front: str, number: int, pause: float, reconnect: int, tally: Tally) -> None:
    """One shopper's endless visit."""
    random = Random(number)
    user = f"user-{number}"
    await asyncio.sleep(pause * random.random())
    while True:
        async with ClientSession(timeout=_TIMEOUT) as session:
            for _ in range(reconnect):
                await _visit(session, front, *plan(random, user), tally)
                await asyncio.sleep(pause)


async def _visit(session: ClientSession, front: str, method: str, path: str, body: object, tally: Tally) -> None:
    try:
        async with session.request(method, front + path, json=body) as response:
            text = await response.text()
            if response.status == 200:
                tally.succeeded()
            else:
                tally.failed_with(f"{method} {path}: {response.status} {text[:300]}")
    except (ClientError, OSError, TimeoutError) as error:
        tally.failed_with(f"{method} {path}: {type(error).__name__}: {error}")


async def _main() -> None:
    shoppers = int(os.environ.get("SHOPPERS", "3"))
    pause = shoppers / float(os.environ.get("RATE", "12"))
    reconnect = int(os.environ.get("RECONNECT", "15"))
    tally = Tally()
    async with asyncio.TaskGroup() as group:
        visits = [
            group.create_task(shop(os.environ["FRONT"], number, pause, reconnect, tally)) for number in range(shoppers)
        ]
        await until_told_to_stop()
        for visit in visits:
            visit.cancel()


if __name__ == "__main__":
    asyncio.run(_main())
