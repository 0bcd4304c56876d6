"""Whole sidecars that are told to end, or are replaced by another process, while they carry connections.

``HEDGEROW_RESTARTS`` and ``HEDGEROW_RESTART_RATE`` set how many restarts are tried, and at how many requests a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
from collections import Counter

import pytest

from graph.model import Direction
from tests.sidecar.fake_controller import WORKLOAD, snapshot, until
from tests.sidecar.processes import Mesh, ask, echo

RESTARTS = int(os.environ.get("HEDGEROW_RESTARTS", "4"))
RATE = float(os.environ.get("HEDGEROW_RESTART_RATE", "200"))


@pytest.fixture
async def mesh(controller, tmp_path):
    """Two sidecars that carry connections to an echo service."""
    made = Mesh(controller, tmp_path)
    made.allow(1)
    server = await asyncio.start_server(echo, "127.0.0.1", made.application)
    async with server, made.front, made.cart:
        await asyncio.gather(made.front.ready(), made.cart.ready())
        assert await ask(made.entrance) == b"hello"
        yield made
    for process in (made.front, made.cart):
        assert "Traceback" not in process.log.read_text(), process.log.read_text()


class Load:
    """Requests at a steady rate, each on a connection of its own, until the block ends."""

    def __init__(self, port, rate):
        self._port = port
        self._pause = 1 / rate
        self._running: set[asyncio.Task[None]] = set()
        self.outcomes: Counter[str] = Counter()

    async def __aenter__(self):
        self._task = asyncio.ensure_future(self._run())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._running)

    async def _run(self):
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            task = asyncio.ensure_future(self._ask())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            due += self._pause
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _ask(self):
        try:
            async with asyncio.timeout(30):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(b"how are you?")
                writer.write_eof()
                answer = await reader.read()
                writer.close()
                await writer.wait_closed()
            outcome = "answered" if answer == b"how are you?" else f"wrong: {answer!r}"
        except OSError as error:
            outcome = f"{type(error).__name__}: {error}"
        self.outcomes[outcome] += 1


class Held:
    """One connection that stays open, and is used."""

    def __init__(self, port):
        self._port = port

    async def __aenter__(self):
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        await self.use()
        return self

    async def __aexit__(self, *_):
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def use(self, text=b"still there?"):
        self._writer.write(text)
        assert await asyncio.wait_for(self._reader.readexactly(len(text)), 10) == text

    async def ended(self):
        """Wait until it is reset."""
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(self._reader.readexactly(1), 10)


async def test_restarts_under_load_refuse_nothing(mesh):
    async with Load(mesh.entrance, RATE) as load:
        for number in range(RESTARTS):
            process = (mesh.front, mesh.cart)[number % 2]
            assert await process.restart() == 0, process.log.read_text()
        answered = load.outcomes["answered"]
        await until(lambda: load.outcomes["answered"] > answered + RATE / 2)
    assert set(load.outcomes) == {"answered"}, load.outcomes
    assert await mesh.front.terminate() == 0
    assert await mesh.cart.terminate() == 0


async def test_what_runs_ends_in_the_old_process_and_is_still_subject_to_policy(mesh, controller):
    mesh.cart.configure(drain_seconds=60)
    assert await mesh.cart.restart() == 0
    await mesh.cart.ready()
    watched = 3  # by the entrance's sidecar, and by two processes of the other
    await until(lambda: len(controller.watchers) == watched)
    async with Held(mesh.entrance) as held:
        old = mesh.cart.child
        restarting = asyncio.ensure_future(mesh.cart.restart())
        await until(lambda: mesh.cart.log.read_text().count("has taken over") == 2)
        await held.use()
        assert await ask(mesh.entrance) == b"hello", "the new process serves"
        await mesh.cart.ready()
        await held.use()
        assert old.returncode is None
        # a snapshot on disk makes it ready before the controller has been asked for the next
        await until(lambda: len(controller.watchers) == watched + 1)
        # a new policy reaches connections that run in the old process too, by way of the new one
        controller.push(snapshot(5), WORKLOAD)
        await held.ended()
        assert await restarting == 0
        assert len(controller.watchers) == watched + 1, "the old one does not come back to the controller"
    assert await mesh.cart.terminate() == 0


async def test_every_connection_is_reported_once_whichever_process_it_ran_in(mesh, controller):
    asked = 1
    for number in range(2):
        async with Held(mesh.entrance) as held:
            restarting = asyncio.ensure_future(mesh.cart.restart())
            await until(lambda: mesh.cart.log.read_text().count("has taken over") > number)  # noqa: B023  # at once
            assert await ask(mesh.entrance) == b"hello"
            await held.use()
            asked += 2
        assert await restarting == 0
    assert await mesh.cart.terminate() == 0
    inbound = [flow for flow in controller.flows if flow.direction is Direction.INBOUND]
    assert sum(flow.connections for flow in inbound) == asked
    assert sum(flow.bytes_received for flow in inbound) == 3 * len(b"hello") + 4 * len(b"still there?")


async def test_a_crash_leaves_nothing_to_take_over_and_the_start_is_a_plain_one(mesh):
    socket_of = mesh.cart.directory / "state" / "takeover.sock"
    status = socket_of.stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    mesh.cart.child.send_signal(signal.SIGKILL)
    await mesh.cart.child.wait()
    assert socket_of.exists()
    async with mesh.cart:
        await mesh.cart.ready()
        assert await ask(mesh.entrance) == b"hello"
        assert await mesh.cart.restart() == 0
        assert await ask(mesh.entrance) == b"hello"
        assert await mesh.cart.terminate() == 0
        assert not socket_of.exists()


async def test_a_new_one_that_can_not_start_leaves_the_old_one_as_it_was(mesh, controller):
    """It asks for a port that is taken: what it was given goes back, and the old one writes its state again."""
    blocker = await asyncio.start_server(echo, "127.0.0.1", 0)
    taken = blocker.sockets[0].getsockname()[1]
    good = dict(mesh.cart.document)
    async with blocker:
        outbound = [{"listen": f"127.0.0.1:{taken}", "destination": "10.0.0.1:1"}]
        mesh.cart.configure(explicit={**mesh.cart.document["explicit"], "outbound": outbound})
        second = await mesh.cart.start()
        assert await asyncio.wait_for(second.wait(), 60) == 2
        said = mesh.cart.log.read_text()
        assert f"explicit.outbound[0].listen: cannot listen on 127.0.0.1:{taken}" in said
    mesh.cart.configure(**good)
    assert await ask(mesh.entrance) == b"hello"
    assert mesh.cart.child.returncode is None
    mesh.allow(7)
    await until(lambda: sum(ack.version == 7 for w in controller.watchers for ack in w.acks) == 2)
    await controller.stop()
    assert await mesh.cart.restart() == 0
    await mesh.cart.ready()
    assert json.loads((await mesh.cart.get("/stats"))[1])["policy"]["version"] == 7, "read from the disk"
    assert await ask(mesh.entrance) == b"hello"


async def test_another_instance_is_refused_as_ever(mesh):
    mesh.cart.configure(instance="cart-2")
    second = await mesh.cart.start()
    assert await asyncio.wait_for(second.wait(), 60) == 1
    assert "is in use by instance 'cart-1'; give every instance its own directory" in mesh.cart.log.read_text()
    assert mesh.cart.child.returncode is None
    assert await ask(mesh.entrance) == b"hello"


# --- the end


async def test_a_connection_that_runs_when_it_is_told_to_end_may_finish(mesh):
    cart = mesh.cart
    cart.configure(drain_seconds=60)
    assert await cart.restart() == 0
    await cart.ready()
    async with Held(mesh.entrance) as held:
        cart.child.send_signal(signal.SIGTERM)
        await until(lambda: "draining for at most 60 s" in cart.log.read_text())
        await held.use()
        async with asyncio.timeout(20):
            while await ask(mesh.entrance) == b"hello":  # what crosses its farewell is served still
                pass
        assert await cart.get("/healthz/ready") == (503, "draining: the sidecar was told to end\n")
        await held.use()
        assert cart.child.returncode is None
    assert await asyncio.wait_for(cart.child.wait(), 20) == 0


async def test_a_second_sigterm_ends_at_once(mesh):
    cart = mesh.cart
    cart.configure(drain_seconds=3600)
    assert await cart.restart() == 0
    await cart.ready()
    async with Held(mesh.entrance) as held:
        cart.child.send_signal(signal.SIGTERM)
        await until(lambda: "draining for at most 3600 s" in cart.log.read_text())
        await held.use()
        cart.child.send_signal(signal.SIGTERM)
        await held.ended()
        assert await asyncio.wait_for(cart.child.wait(), 20) == 0


async def test_our_own_application_may_go_on_while_we_drain(mesh):
    front = mesh.front
    front.configure(drain_seconds=60)
    assert await front.restart() == 0
    await front.ready()
    async with Held(mesh.entrance) as held:
        front.child.send_signal(signal.SIGTERM)
        await until(lambda: "draining for at most 60 s" in front.log.read_text())
        assert await ask(mesh.entrance) == b"hello", "what the application needs for its own end"
        await held.use()
    assert await asyncio.wait_for(front.child.wait(), 20) == 0


async def test_new_connections_go_to_another_replica(controller, tmp_path):
    """Of two replicas one is told to end under load: its connections finish, the others go elsewhere."""
    mesh = Mesh(controller, tmp_path)
    mesh.allow(1)
    other = mesh.replica(tmp_path)
    server = await asyncio.start_server(echo, "127.0.0.1", mesh.application)
    async with server, mesh.front, mesh.cart, other:
        await asyncio.gather(mesh.front.ready(), mesh.cart.ready(), other.ready())
        async with Load(mesh.entrance, RATE) as load:
            await until(lambda: load.outcomes["answered"] > RATE / 2)
            before = load.outcomes["answered"]
            assert await mesh.cart.terminate() == 0
            await until(lambda: load.outcomes["answered"] > before + RATE / 2)
        assert set(load.outcomes) == {"answered"}, load.outcomes
        by = Counter()
        assert await other.terminate() == 0
        assert await mesh.front.terminate() == 0
        for flow in controller.flows:
            by[flow.reporter] += flow.connections
        assert by["cart-1"] > 0
        assert by["cart-2"] > RATE / 2
        assert by["cart-1"] + by["cart-2"] == by["front-1"] == load.outcomes["answered"]
