"""Taps from the command to the sidecar and back: a real controller, mutual TLS, and inspected connections in memory.

Over 400 lines: every way in which a tap begins, is held up and ends is tried through one and the same chain.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.rpc.tap import Viewing
from graph.model import Verdict, WorkloadRef
from graph.tap import MAX_BODY, MAX_FIELDS, Message, Shown, TapSpec
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from graph.wire.taps import shown_to_message
from hedgerow.client import Access, ApiError, Client, Refused
from sidecar.channel import Session
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings, Limits
from sidecar.inspect.tap_client import TapClient
from sidecar.inspect.taps import Taps
from tests.controller.running import PERSON, Running, eventually, running
from tests.sidecar.inspect.connection import World, rule
from tests.sidecar.workers.test_supervisor import SHOWN

ASKED = {"workload": "shop/cart", "owner": "anna", "reason": "orders are slow", "for": 60}
POST = (
    b"POST /cart/17?token=hunter2 HTTP/1.1\r\nHost: cart\r\nCookie: hunter2\r\nContent-Type: application/json\r\n"
    b'Content-Length: 23\r\n\r\n{"password": "hunter2"}'
)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"


class Pod:
    """A sidecar whose lane works in memory and whose taps are the controller's."""

    def __init__(self, world: World, taps: Taps, client: TapClient) -> None:
        self.world = world
        self.taps = taps
        self.client = client

    async def request(self) -> None:
        connection = self.world.connect()
        connection.client.give(POST)
        await eventually(lambda: connection.server is not None)  # inspected connections share their turns
        connection.application.give(OK)


@contextlib.asynccontextmanager
async def pod(run: Running, instance: str = "cart-0") -> AsyncIterator[Pod]:
    taps = Taps(asyncio.get_running_loop())
    world = World((rule(),), hub=Inspection(InspectSettings(limits=Limits(slice=60.0)), taps))
    client = TapClient(taps, "boot-1")
    channel = run.mutual(await run.join("shop/cart", instance))
    session = asyncio.create_task(client.session(Session(channel, lambda: None)))
    try:
        await eventually(lambda: client.connected)
        yield Pod(world, taps, client)
    finally:
        session.cancel()
        await asyncio.gather(session, return_exceptions=True)
        world.close()


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as one:
        yield one


def access(run: Running, role: str = "operator") -> Access:
    return Access(run.url, run.token(role))


class Watching:
    """``POST /tap`` in the background."""

    def __init__(self, run: Running, role: str = "operator", **changes: Any) -> None:
        self.events: list[tuple[str, Any]] = []
        self.task = asyncio.create_task(self._watch(access(run, role), {**ASKED, **changes}))

    async def _watch(self, found: Access, body: dict[str, Any]) -> None:
        async with Client(found) as client:
            async for event in client.events("/tap", body=body):
                self.events.append(event)

    def all(self, kind: str) -> list[Any]:
        return [data for event, data in self.events if event == kind]

    async def started(self) -> Any:
        await eventually(lambda: self.all("started") or self.task.done())
        if self.task.done():
            self.task.result()
        return self.all("started")[0]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_a_request_is_shown_to_the_person_who_asked(run: Running) -> None:
    async with pod(run) as cart:
        watching = Watching(run, bodies=True)
        started = await watching.started()
        assert started["sidecars"] == ["cart-0"]
        await eventually(lambda: cart.taps.running)
        await cart.request()
        await eventually(lambda: watching.all("request"))
        (shown,) = watching.all("request")
        assert (shown["operation"], shown["status"], shown["instance"]) == ("POST /cart/{id}", 200, "cart-0")
        assert "hunter2" not in json.dumps(watching.events)
        await watching.stop()


async def test_it_is_in_the_audit_log_before_anything_is_shown(run: Running) -> None:
    async with pod(run):
        watching = Watching(run, bodies=True, operation="GET /a*")
        await watching.started()
        entry = (await run.get("/audit"))["entries"][0]
        assert (entry["actor"], entry["action"], entry["subject"]) == ("anna", "tap.start", "shop/cart")
        assert entry["detail"]["reason"] == "orders are slow"
        assert entry["detail"]["bodies"] is True
        await watching.stop()


async def test_a_viewer_may_not(run: Running) -> None:
    async with pod(run) as cart:
        watching = Watching(run, "viewer")
        with pytest.raises(Refused):
            await watching.started()
        assert not cart.taps.running


async def test_a_person_whose_token_was_replaced_sees_nothing_more(run: Running) -> None:
    async with pod(run) as cart:
        watching = Watching(run)
        await watching.started()
        await eventually(lambda: cart.taps.running)
        live = await run.http.get("/api/v1/graph/live")
        assert await live.content.readline() == b"event: graph\n"
        old = run.token()
        (run.settings.state_dir / "operator.token").unlink()
        run.controller.reload()
        await eventually(lambda: (run.settings.state_dir / "operator.token").exists() and run.token() != old)
        await eventually_refused(run)
        await cart.request()
        await asyncio.wait_for(watching.task, 60)
        assert watching.all("request") == []
        assert "token was replaced" in watching.all("problem")[0]["error"]
        await eventually(lambda: not cart.taps.running)
        run.http.headers["Authorization"] = f"Bearer {run.token()}"
        # the other stream: what there was before may be read to its end, and there is one
        mode = {"workload": "shop/cart", "mode": "audit", "wait": 0, **PERSON}
        await run.post("/modes", mode)
        async with asyncio.timeout(60):
            assert b"event: delta" not in await live.read()


async def eventually_refused(run: Running) -> None:
    """Wait until the token that ``run.http`` carries opens nothing."""
    async with asyncio.timeout(60):
        while True:
            async with run.http.get("/api/v1/status") as response:
                if response.status == 401:
                    return
            await asyncio.sleep(0.01)


async def test_when_the_person_leaves_the_sidecar_is_told(run: Running) -> None:
    async with pod(run) as cart:
        watching = Watching(run)
        await watching.started()
        await eventually(lambda: cart.taps.running)
        await watching.stop()
        while cart.taps.running:  # the controller notices with the next thing that it writes
            await cart.request()
            await asyncio.sleep(0)
        assert not cart.taps.wants(8080)


async def test_it_ends_after_so_many(run: Running) -> None:
    async with pod(run) as cart:
        watching = Watching(run, count=2)
        await watching.started()
        await eventually(lambda: cart.taps.running)
        for _ in range(5):
            await cart.request()
        await asyncio.wait_for(watching.task, 20)
        assert len(watching.all("request")) == 2
        assert watching.all("ended")[0]["shown"] == 2
        await eventually(lambda: not cart.taps.running)


async def test_it_ends_after_its_time(run: Running) -> None:
    async with pod(run) as cart:
        watching = Watching(run, **{"for": 0.3})
        await asyncio.wait_for(watching.task, 20)
        assert watching.all("ended")
        await eventually(lambda: not cart.taps.running)


async def test_a_sidecar_that_comes_later_takes_part(run: Running) -> None:
    async with pod(run):
        watching = Watching(run)
        await watching.started()
        async with pod(run, "cart-1") as second:
            await eventually(lambda: second.taps.running)
            await second.request()
            await eventually(lambda: watching.all("request"))
            assert watching.all("request")[0]["instance"] == "cart-1"
        await watching.stop()


async def test_a_controller_that_stops_ends_it(tmp_path: Path) -> None:
    async with running(tmp_path) as one, pod(one) as cart:
        watching = Watching(one)
        await watching.started()
        await eventually(lambda: cart.taps.running)
        one.controller.stop()
        await asyncio.wait({watching.task}, timeout=20)
        assert watching.task.done()
        await eventually(lambda: not cart.taps.running)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"workload": "shop/crat"}, "workload"),
        ({"for": 3601}, "for"),
        ({"status": "9xx"}, "status"),
        ({"status": "500-400"}, "status"),
        ({"rate": 100_000}, "rate"),
        ({"body_bytes": 1 << 20}, "body_bytes"),
        ({"bodies": "yes"}, "bodies"),
        ({"reason": ""}, "reason"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
async def test_what_may_not_be_asked_for(run: Running, changes: dict[str, Any], field: str) -> None:
    async with pod(run) as cart:
        watching = Watching(run, **changes)
        with pytest.raises(ApiError) as refusal:
            await watching.started()
        assert refusal.value.problem.field == field
        assert not cart.taps.running


async def test_a_workload_without_a_sidecar_that_answers(run: Running) -> None:
    with pytest.raises(ApiError, match="no sidecar of shop/cart"):
        await Watching(run).started()


# what a sidecar may send


def shown(tap: str, destination: str = "shop/cart", address: str = "") -> pb.TapEvent:
    message = Message()
    allow = Verdict.ALLOW
    event = Shown(tap, 1.0, "shop/front", address, destination, 8080, "GET /", "http", "GET", "/", "", 200, -1, allow,
                  allow, "allow-rule", "", 0.1, message, None)  # fmt: skip
    return pb.TapEvent(exchange=shown_to_message(event))


async def refusal(call: Any) -> grpc.StatusCode:
    async with asyncio.timeout(20):
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        return await call.code()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda tap: shown(tap, "shop/front"), grpc.StatusCode.PERMISSION_DENIED),
        (lambda tap: shown(tap, address="10.0.0.1\x1b]0;x\x07"), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda tap: pb.TapEvent(), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda tap: pb.TapEvent(hello=pb.TapHello(boot_id="b")), grpc.StatusCode.INVALID_ARGUMENT),
        (
            lambda tap: pb.TapEvent(exchange=pb.TapExchange(id=tap, destination="shop/cart", verdict="perhaps")),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ],
)
async def test_a_sidecar_that_sends_what_it_may_not(
    run: Running, make: Callable[[str], pb.TapEvent], code: grpc.StatusCode
) -> None:
    channel = run.mutual(await run.join("shop/cart", "cart-0"))
    call = rpc.TapStub(channel).Serve()
    await call.write(pb.TapEvent(hello=pb.TapHello(boot_id="b")))
    await call.initial_metadata()
    watching = Watching(run)
    await watching.started()
    command = await call.read()
    await call.write(make(command.start.id))
    assert await refusal(call) is code
    assert not watching.all("request")
    await watching.stop()


async def test_an_event_of_a_tap_that_it_was_not_asked_for_is_nobodys(run: Running) -> None:
    channel = run.mutual(await run.join("shop/cart", "cart-0"))
    call = rpc.TapStub(channel).Serve()
    await call.write(pb.TapEvent(hello=pb.TapHello(boot_id="b")))
    await call.initial_metadata()
    watching = Watching(run)
    await watching.started()
    command = await call.read()
    await call.write(shown("0123456789abcdef"))
    await call.write(shown(command.start.id))
    await eventually(lambda: watching.all("request"))
    assert len(watching.all("request")) == 1
    await watching.stop()


async def test_what_waits_for_a_slow_person_takes_a_bounded_room() -> None:
    """A sidecar that was broken into makes each event as large as the bounds of one allow."""
    body, value = b"b" * MAX_BODY, b"v" * (MAX_FIELDS - 1)
    full = Message(fields=((b"n", value),), trailers=((b"n", value),), size=MAX_BODY, body=body)
    event = replace(SHOWN, tap="t", request=full, response=full)
    viewing = Viewing(TapSpec("t", 60.0), WorkloadRef("shop", "cart"), 60.0)
    for _ in range(1000):
        viewing.offer(("cart-0", event))
    each = 2 * (MAX_BODY + 2 * MAX_FIELDS)
    fitting = 8 * 1024 * 1024 // each
    assert viewing.shed == 1000 - fitting
    waiting = [await viewing.next(0) for _ in range(fitting)]
    assert all(got == ("cart-0", event) for got in waiting)
    assert await viewing.next(0) is None
    viewing.offer(("cart-0", event))
    assert await viewing.next(0) == ("cart-0", event), "who has read has room again"


async def test_nobody_without_a_certificate(run: Running) -> None:
    call = rpc.TapStub(run.mutual(run.forge(_stranger()))).Serve()
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await call.write(pb.TapEvent(hello=pb.TapHello(boot_id="b")))
    assert await refusal(call) is grpc.StatusCode.PERMISSION_DENIED


def _stranger() -> Any:
    from graph.model import WorkloadRef
    from tests.controller.running import spiffe

    return spiffe(WorkloadRef("shop", "stranger"))


# the command


async def command(run: Running, *arguments: str) -> asyncio.subprocess.Process:
    program = Path(sys.executable).with_name("hedgerow")
    return await asyncio.create_subprocess_exec(
        str(program), "tap", *arguments, "--reason", "orders are slow", "--server", run.url,
        "--token-file", str(run.settings.state_dir / "operator.token"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


async def test_the_command_shows_and_saves(run: Running, tmp_path: Path) -> None:
    with warnings.catch_warnings():  # mitmproxy 12.2 with today's pyparsing
        warnings.simplefilter("ignore", DeprecationWarning)
        from mitmproxy.io import FlowReader

    saved = tmp_path / "cart.flows"
    async with pod(run) as cart:
        process = await command(run, "shop/cart", "--count", "2", "--bodies", "--save", str(saved))
        await eventually(lambda: cart.taps.running)
        await cart.request()
        await cart.request()
        out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0, err
    lines = out.decode().splitlines()
    assert "shop/front → shop/cart:8080  POST /cart/17?token=[redacted]  200" in lines[0]
    assert '    > {"password": "[redacted]"}' in lines
    assert "    < hello" in lines
    assert b"hunter2" not in out
    assert b"hunter2" not in saved.read_bytes()
    assert saved.stat().st_mode & 0o077 == 0
    with saved.open("rb") as file:
        flows = list(FlowReader(file).stream())
    assert [flow.response.status_code for flow in flows] == [200, 200]
    assert flows[0].request.path == "/cart/17?token=[redacted]"
    assert flows[0].response.text == "hello"
    opened = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("mitmdump")), "-nr", str(saved), "--set", "flow_detail=1",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    listed, _ = await asyncio.wait_for(opened.communicate(), 60)
    assert listed.count(b"/cart/17") == 2, listed


async def test_ctrl_c_ends_it_and_says_what_was_saved(run: Running, tmp_path: Path) -> None:
    saved = tmp_path / "cart.flows"
    saved.write_text("of yesterday")
    async with pod(run) as cart:
        process = await command(run, "cart", "-n", "shop", "--save", str(saved))
        assert process.stdout is not None
        await eventually(lambda: cart.taps.running)
        await cart.request()
        assert b"POST /cart/17" in await asyncio.wait_for(process.stdout.readline(), 60)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == f"(1 written to {saved}: mitmweb -r {saved})"
    assert "Traceback" not in err.decode()
    assert b"yesterday" not in saved.read_bytes()


async def test_a_tap_that_is_refused_leaves_the_file_as_it_was(run: Running, tmp_path: Path) -> None:
    saved = tmp_path / "cart.flows"
    saved.write_text("precious")
    process = await command(run, "shop/crt", "--save", str(saved))
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, saved.read_text()) == (1, "precious")
    assert "there is no workload shop/crt" in err.decode()
    assert "written to" not in err.decode()


async def test_the_command_speaks_json(run: Running) -> None:
    async with pod(run) as cart:
        process = await command(run, "shop/front", "--to", "shop/cart", "--count", "1", "-o", "json")
        await eventually(lambda: cart.taps.running)
        await cart.request()
        out, _ = await asyncio.wait_for(process.communicate(), 30)
    (line,) = out.decode().splitlines()
    assert json.loads(line)["from"] == "shop/front"
