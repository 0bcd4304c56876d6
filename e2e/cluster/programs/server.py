"""An ordinary server: HTTP on 8080. On SIGTERM it listens no more, finishes what it has begun, and ends.

It knows of no mesh, has no ``preStop`` hook, and does not wait for anybody to hear that it ends.
"""

import asyncio
import socket

from aiohttp import web

NAME = socket.gethostname()


async def answer(request: web.Request) -> web.Response:
    """Its own name, after as many milliseconds as ``wait`` says, and what was posted."""
    sent = await request.read()
    await asyncio.sleep(int(request.query.get("wait", "0")) / 1000)
    return web.Response(body=NAME.encode() + b" " + sent)


def main() -> None:
    application = web.Application()
    application.router.add_route("*", "/", answer)
    # More waits in the queue of a loaded machine than the default of 128 that aiohttp has anyway.
    web.run_app(application, port=8080, print=None, access_log=None, shutdown_timeout=10, handle_signals=True)


if __name__ == "__main__":
    main()
