"""A client that does nobody harm: asks over kept connections at an even pace and writes down what each answer took.

Standard input: the ports to ask, one line. Each further line is answered with ``[port, began, seconds, answered]`` of
each request since the last one, by the system's monotonic clock. A connection that fails is made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time

#: Seconds between two requests of one connection; the next is sent at its time, whenever the last was answered.
PACE = 0.01
#: After so many times so many seconds an answer is missing. They are counted one by one, because a machine may stand
#: still and its clock go on: what nobody could answer meanwhile is not missing.
PATIENCE, TICK = 100, 0.1
_ASKED = b"GET /ok HTTP/1.1\r\nHost: web\r\n\r\n"


type Answers = list[tuple[int, float, float, bool]]


class Patience:
    """Cancels who waits when :data:`PATIENCE` ticks have passed in which this process ran."""

    def __init__(self) -> None:
        self._left = PATIENCE
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)

    def _tick(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = asyncio.get_running_loop().call_later(TICK, self._tick)
        else:
            assert self._task is not None
            self._task.cancel()

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._timer.cancel()
        if kind is asyncio.CancelledError and not self._left:
            assert self._task is not None
            self._task.uncancel()
            raise TimeoutError


async def ask(port: int, results: Answers) -> None:
    writer = None
    due = time.monotonic()
    try:
        while True:
            began = time.monotonic()
            answered = False
            try:
                async with Patience():
                    if writer is None:
                        reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(_ASKED)
                    answer = await reader.readuntil(b"ok\n")
                answered = answer.startswith(b"HTTP/1.1 200")
            except (OSError, EOFError, TimeoutError):
                pass
            results.append((port, began, time.monotonic() - began, answered))
            if not answered and writer is not None:
                writer.close()
                writer = None
            due = max(due + PACE, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
    finally:
        if writer is not None:
            writer.close()
            await writer.wait_closed()


async def main() -> None:
    with contextlib.suppress(PermissionError):  # without root it has to share the processor with everybody
        os.nice(-10)
    ports = json.loads(sys.stdin.buffer.raw.readline())  # type: ignore[attr-defined]  # unbuffered: asyncio reads the rest
    results: Answers = []
    reader = asyncio.StreamReader()
    commands, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    asking = [asyncio.create_task(ask(port, results)) for port in ports]
    print("asking", flush=True)
    while await reader.readline():
        for task in asking:
            if task.done():
                task.result()
        print(json.dumps(results), flush=True)
        results.clear()
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    commands.close()


if __name__ == "__main__":
    asyncio.run(main())
