"""An ordinary server: HTTP on 8080. On SIGTERM it listens no more, answers whoever has come, and ends.

It knows of no mesh, has no ``preStop`` hook, and does not wait for anybody to hear that it ends. But it drops nobody
whom it has let in: who waits in the listener's queue is taken out before that is closed, and the first request of each
connection is answered. (A framework that does less resets a POST there now and then, with every mesh and with none.)
"""

import asyncio
import contextlib
import signal
import socket
from urllib.parse import parse_qs, urlsplit

NAME = socket.gethostname()
#: More waits in the queue of a loaded machine than the usual 128.
QUEUE = 1024
#: Seconds for what was begun.
GRACE = 10.0

serving = set()


async def answer(reader, writer, head, told):
    """Its own name, after as many milliseconds as ``wait`` says, and what was posted; whether there may be more."""
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    sent = await reader.readexactly(int(fields.get("content-length", "0")))
    await asyncio.sleep(int(parse_qs(urlsplit(first.split()[1]).query).get("wait", ["0"])[0]) / 1000)
    more = not told.is_set() and fields.get("connection", "").lower() != "close"
    body = NAME.encode() + b" " + sent
    close = "" if more else "Connection: close\r\n"
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{close}\r\n".encode() + body)
    await writer.drain()
    return more


async def serve(reader, writer, told):
    serving.add(asyncio.current_task())
    ended = asyncio.ensure_future(told.wait())
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        while await answer(reader, writer, head, told):
            following = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
            await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                following.cancel()
                break
            head = following.result()
    except (OSError, EOFError):
        pass
    finally:
        ended.cancel()
        writer.close()
        serving.discard(asyncio.current_task())


async def main():
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    listener = socket.create_server(("", 8080), backlog=QUEUE)
    listener.setblocking(False)
    server = await asyncio.start_server(lambda *ends: serve(*ends, told), sock=listener, backlog=QUEUE)
    await told.wait()
    waiting = []
    with contextlib.suppress(BlockingIOError):
        while True:
            waiting.append(listener.accept()[0])
    server.close()
    late = [asyncio.ensure_future(serve(*await asyncio.open_connection(sock=sock), told)) for sock in waiting]
    await asyncio.sleep(0)  # whoever was let in before has begun by then
    if late or serving:
        await asyncio.wait({*late, *serving}, timeout=GRACE)


if __name__ == "__main__":
    asyncio.run(main())
