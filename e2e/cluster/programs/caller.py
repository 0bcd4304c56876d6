"""Steady requests to one server, each of them accounted for; what was counted is written once in a while, as JSON.

Three kinds, side by side, each by callers of its own:

- ``fresh``: GET on a connection of its own;
- ``kept``: GET on a connection that is kept. Where the server ends it before it has said a byte, the request is sent
  once more on a new one, as every client does (RFC 9110, section 9.2.2), and counted in ``again``;
- ``post``: POST on a connection of its own, with a body that has to come back. Never sent twice.

A request that was sent is either answered (200, with what was to be expected) or failed, with the reason.
"""

import asyncio
import json
import os
import signal
import time
from collections import Counter

HOST, PORT = os.environ["SERVER"].split(":")
PAUSE = float(os.environ.get("PAUSE", "0.1"))
CALLERS = int(os.environ.get("CALLERS", "2"))
#: A request that takes longer has failed, seconds. Long: a machine may do ten other things.
PATIENCE = 30.0
EVERY = 0.25
WAITS = (0, 5, 60)

sent = answered = again = 0
by = Counter()
failures = []


class Closed(Exception):
    """The server ended a kept connection without a word."""


async def exchange(reader, writer, method, body, close, wait):
    head = f"{method} /?wait={wait} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n"
    head += "Connection: close\r\n\r\n" if close else "\r\n"
    try:
        writer.write(head.encode() + body)
        await writer.drain()
        first = await reader.readline()
    except (ConnectionResetError, BrokenPipeError) as error:
        raise Closed(repr(error)) from None
    if not first:
        raise Closed("ended without an answer")
    if b" 200 " not in first:
        raise OSError(f"answered {first!r} {(await reader.read(300))!r}")
    length, ends = 0, close
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        if name.lower() == "content-length":
            length = int(value)
        elif name.lower() == "connection":
            ends = value.strip().lower() == "close"
    text = await reader.readexactly(length)
    name, _, echoed = text.partition(b" ")
    if echoed != body:
        raise OSError(f"{len(body)} bytes came back as {len(echoed)}")
    return name.decode(), ends


async def once(kind, number, kept):
    """One request; the connection that may be used again."""
    global again
    fresh = kept is None
    reader, writer = kept or await asyncio.open_connection(HOST, int(PORT))
    body = os.urandom(64).hex().encode() * (1 + number % 40) if kind == "post" else b""
    done = None
    try:
        name, ends = await exchange(
            reader, writer, "POST" if kind == "post" else "GET", body, kind != "kept", WAITS[number % len(WAITS)]
        )
        by[name] += 1
        done = None if ends else (reader, writer)
    except Closed as error:
        if fresh:
            raise OSError(str(error)) from None
        again += 1
        return await once(kind, number, None)
    finally:
        if done is None:
            writer.close()
    return done


async def call(kind):
    global sent, answered
    kept = None
    number = 0
    while True:
        if kept and kept[0].at_eof():
            kept[1].close()
            kept = None
        sent += 1
        number += 1
        began = time.time()
        try:
            async with asyncio.timeout(PATIENCE):
                kept = await once(kind, number, kept)
            answered += 1
        except (OSError, EOFError, TimeoutError) as error:
            kept = None
            why = f"{type(error).__name__}: {error}"
            failures.append({"kind": kind, "at": round(began, 3), "after": round(time.time() - began, 3), "why": why})
        await asyncio.sleep(PAUSE)


def say():
    last = [*failures[:5], *failures[5:][-15:]]
    counts = {"sent": sent, "answered": answered, "again": again, "failed": len(failures)}
    print(json.dumps({**counts, "failures": last, "by": by}), flush=True)


async def main():
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    callers = [asyncio.create_task(call(kind)) for kind in ("fresh", "kept", "post") for _ in range(CALLERS)]
    while not told.is_set():
        say()
        await asyncio.sleep(EVERY)
        for caller in callers:
            if caller.done():
                caller.result()
    say()


asyncio.run(main())
