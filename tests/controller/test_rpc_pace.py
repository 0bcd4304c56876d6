"""A sidecar that begins streams and ends them without pause, over real connections, and another one beside it.

The flood comes from gRPC's blocking client: the other reports a fault of its own for some calls that are refused early.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from certs.keys import key_to_pem
from controller.rpc import gate
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from tests.controller.running import CHANNEL, Identity, Running, eventually, running

#: As few as there may be, so that a flood is over soon.
RATE = 4
BURST = RATE * gate.BURST_SECONDS
QUESTION = pb.ResolveRequest(address="10.0.0.4", port=6379, protocol="TCP")

type Begin = Callable[[grpc.Channel], None]


def policy(channel: grpc.Channel) -> None:
    hello = pb.PolicyHello(boot_id="boot-1", software="test")
    _begin_and_end(rpc.PolicyStub(channel).Watch, pb.PolicyRequest(hello=hello))


def directory(channel: grpc.Channel) -> None:
    _begin_and_end(rpc.DirectoryStub(channel).Watch, pb.WatchRequest(target=QUESTION))


def telemetry(channel: grpc.Channel) -> None:
    _begin_and_end(rpc.TelemetryStub(channel).ReportFlows, pb.FlowBatch(boot_id="boot-1", sequence=1))


def question(channel: grpc.Channel) -> None:
    rpc.DirectoryStub(channel).Resolve(QUESTION, timeout=60)


def _begin_and_end(stream: Callable[..., Any], first: object) -> None:
    """Hear one answer, and the controller's end: what was only cancelled might still be open when the next comes."""
    heard = threading.Event()

    def said() -> Iterator[object]:
        yield first
        heard.wait(60)

    answers = stream(said(), timeout=60)
    try:
        next(answers)
    finally:
        heard.set()
    for _ in answers:
        pass


KINDS: list[Begin] = [policy, directory, telemetry, question]
TOO_MANY = "RESOURCE_EXHAUSTED streams_per_second"


def begin(channel: grpc.Channel, kind: Begin) -> str:
    """How one attempt ends: ``taken``, or the refusal."""
    try:
        kind(channel)
    except grpc.RpcError as error:
        which = "streams_per_second" if "(streams_per_second)" in error.details() else error.details()
        return f"{error.code().name} {which}"
    return "taken"


def channel_of(run: Running, identity: Identity) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        run.bundle.to_pem().encode(), key_to_pem(identity.key), identity.chain_pem
    )
    return grpc.secure_channel(str(run.controller.grpc_server.bound), credentials, CHANNEL)


def flood(run: Running, identity: Identity, refusals: int) -> tuple[Counter[str], float]:
    """Begin and end, each kind in turn, until so many were refused; and how many seconds that took."""
    codes: Counter[str] = Counter()
    began = time.monotonic()
    with channel_of(run, identity) as channel:
        while codes[TOO_MANY] < refusals:
            codes[begin(channel, KINDS[codes.total() % len(KINDS)])] += 1
            assert codes.total() < 10_000, codes
    return codes, time.monotonic() - began


async def test_who_begins_streams_without_pause_is_held_to_a_pace_and_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "PAUSE", 0.05)
    async with running(tmp_path, streams_per_second=RATE) as run:
        broken, good = await run.join("shop/cart", "cart-0"), await run.join()
        flooding = asyncio.ensure_future(asyncio.to_thread(flood, run, broken, 30))
        with channel_of(run, good) as channel:
            beside = await asyncio.to_thread(lambda: [begin(channel, KINDS[n % 4]) for n in range(BURST - 8)])
            codes, seconds = await asyncio.wait_for(flooding, 120)
            beside += await asyncio.to_thread(lambda: [begin(channel, kind) for kind in KINDS])
        assert beside == ["taken"] * (BURST - 4), "another is not concerned"
        assert codes.keys() <= {"taken", TOO_MANY}, codes
        assert BURST <= codes["taken"] <= BURST + RATE * seconds + 1
        # a refusal takes its time: who waits for each can not keep the controller busy with them
        assert seconds >= 30 * 0.05

        # its bucket is its instance's, whichever connection it comes by; and time brings more
        with channel_of(run, broken) as channel:

            def until_taken() -> bool:
                return begin(channel, question) == "taken"

            deadline = time.monotonic() + 60
            while not await asyncio.to_thread(until_taken):
                assert time.monotonic() < deadline


async def test_refusals_that_wait_are_bounded_and_who_leaves_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "PAUSE", 3600.0)
    monkeypatch.setattr(gate, "PAUSED", 3)
    async with running(tmp_path, streams_per_second=RATE) as run:
        held = run.controller._gate._paused
        with channel_of(run, await run.join("shop/cart", "cart-0")) as channel:
            stub = rpc.DirectoryStub(channel)
            waiting: list[grpc.Future] = []
            async with asyncio.timeout(60):
                while len(waiting) < 3:  # what is left of the burst is taken first, and what time brings back
                    call = stub.Resolve.future(QUESTION, timeout=600)
                    if await eventually(partial(_fate, call, held, len(waiting))) == "held":
                        waiting.append(call)
            assert held["shop/cart-0"] == 3
            assert await asyncio.to_thread(_refused_at_once, stub) is True
            for call in waiting:
                call.cancel()
            await eventually(lambda: not held)


def _fate(call: grpc.Future, held: Counter[str], before: int) -> str:
    """Empty while it is not known."""
    if call.done():
        return "answered"
    return "held" if held["shop/cart-0"] > before else ""


def _refused_at_once(stub: rpc.DirectoryStub) -> bool:
    """Although refusals take an hour. Tokens that came back meanwhile are spent first."""
    for _ in range(1000):
        try:
            stub.Resolve(QUESTION, timeout=60)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return False
