"""Whole sidecars that are started again: what they used before has its tunnels before the first connection."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from tests.sidecar.processes import Mesh, ask, echo


async def settled(what, condition):
    """Wait until ``condition`` holds of what ``what`` gives, and return that."""
    async with asyncio.timeout(60):
        while not condition(found := await what()):  # noqa: ASYNC110  # processes have no event for it
            await asyncio.sleep(0.02)
        return found


async def stats(process):
    return json.loads((await process.get("/stats"))[1])


async def tunnels(process, count):
    """What a process shows when it has so many tunnels that it dialled."""
    return await settled(lambda: stats(process), lambda shown: shown["tunnels"]["outbound"] == count)


@pytest.fixture(params=[1, 2], ids=["one-process", "workers"])
async def mesh(request, controller, tmp_path):
    """A client that has called a service before."""
    made = Mesh(controller, tmp_path)
    made.workers = request.param
    made.front.configure(workers=made.workers)
    made.allow(1)
    server = await asyncio.start_server(echo, "127.0.0.1", made.application)
    async with server, made.front, made.cart:
        await asyncio.gather(made.front.ready(), made.cart.ready())
        assert await ask(made.entrance) == b"hello"
        yield made
    for process in (made.front, made.cart):
        assert "Traceback" not in process.log.read_text(), process.log.read_text()


async def dialled_ahead(mesh):
    """Wait until every process of the client has its tunnel, without a connection that asked for it."""
    shown = await tunnels(mesh.front, mesh.workers)
    assert shown["flows"]["records"] == 0
    assert await ask(mesh.entrance) == b"hello"
    assert (await tunnels(mesh.front, mesh.workers))["directory"]["addresses"] == 1


async def test_after_another_one_has_taken_over(mesh):
    assert await mesh.front.restart() == 0
    await mesh.front.ready()
    await dialled_ahead(mesh)


async def test_after_a_crash(mesh):
    answers = mesh.front.directory / "state" / "directory.bin"
    async with asyncio.timeout(60):
        while not answers.exists():  # noqa: ASYNC110  # likewise
            await asyncio.sleep(0.02)
    mesh.front.child.send_signal(signal.SIGKILL)
    await mesh.front.child.wait()
    assert answers.stat().st_mode & 0o777 == 0o600
    async with mesh.front:
        await mesh.front.ready()
        await dialled_ahead(mesh)


async def test_while_the_controller_is_away(mesh, controller):
    await controller.stop()
    assert await mesh.front.restart() == 0
    await mesh.front.ready()
    await dialled_ahead(mesh)
