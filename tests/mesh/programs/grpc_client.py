"""Calls every method of grpc_server.py over one channel, checks each answer and prints how much was said.

python grpc_client.py HOST PORT [--once | --on]

``--once`` makes the unary call alone; ``--on`` makes it again and again over the one channel, until SIGTERM.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator

import grpc

DEADLINE = 20.0
MESSAGES = 500


def main() -> None:
    host, port, *options = sys.argv[1:]
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        name = os.urandom(16)
        reverse = channel.unary_unary("/tests.Kinds/Reverse")
        assert reverse(name, timeout=DEADLINE) == name[::-1]
        if "--on" in options:
            go_on(reverse)
            return
        if options:
            print("answered")
            return

        counted = list(channel.unary_stream("/tests.Kinds/Count")(b"%d" % MESSAGES, timeout=DEADLINE))
        assert counted == [b"%04d" % number * 250 for number in range(MESSAGES)]

        parts = [os.urandom(2000) for _ in range(MESSAGES)]
        digest = channel.stream_unary("/tests.Kinds/Digest")(iter(parts), timeout=DEADLINE)
        assert digest.decode() == hashlib.sha256(b"".join(parts)).hexdigest()

        conversed = converse(channel)
    print(
        json.dumps(
            {
                "sent": len(name) + sum(map(len, parts)) + conversed,
                "received": len(name) + sum(map(len, counted)) + conversed,
            }
        )
    )


def go_on(reverse: grpc.UnaryUnaryMultiCallable) -> None:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    number = 0
    while not ended.wait(0.05):
        number += 1
        text = b"%08d" % number
        assert reverse(text, timeout=DEADLINE) == text[::-1]
    print(f"{number} calls, all answered", flush=True)


def converse(channel: grpc.Channel) -> int:
    """Each message is sent only after the one before it was answered; returns the bytes said each way."""
    waiting: queue.Queue[bytes | None] = queue.Queue()

    def said() -> Iterator[bytes]:
        while (message := waiting.get()) is not None:
            yield message

    answers = channel.stream_stream("/tests.Kinds/Converse")(said(), timeout=DEADLINE)
    size = 0
    for number in range(100):
        message = b"word %d" % number
        waiting.put(message)
        assert next(answers) == message.upper()
        size += len(message)
    waiting.put(None)
    assert list(answers) == [b"answered 100"]
    return size


main()
