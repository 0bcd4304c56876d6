"""Workers that are killed, hang, are restarted, or end: what it costs, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest

from graph.model import Direction
from tests.sidecar.fake_controller import WORKLOAD, snapshot, until
from tests.sidecar.processes import CART_ADDRESS, FRONT, Process, free_port
from tests.sidecar.workers.whole import (
    MANY,
    WORKERS,
    Held,
    all_of,
    ask,
    back,
    boot_of,
    children,
    connections,
    grown,
    hello,
    listening,
    load,
    one_missing,
    running,
    settled,
    spread,
    stats,
    workers_of,
)


async def test_a_killed_worker_costs_its_connections_and_nothing_else(mesh, controller):
    async with Held(mesh.entrance) as held:
        await settled(lambda: spread(mesh.front))
        first, second = await workers_of(mesh.front)
        os.kill(first["process"], signal.SIGKILL)
        alive = Counter(await held.alive())
        assert alive == {True: second["connections"], False: first["connections"]}
        # the other one takes what comes to its sockets, until it is back
        assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(MANY)))) == {b"hello"}
        assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(MANY)))) == {b"hello"}
        await settled(lambda: back(mesh.front, first["process"]))
        await mesh.front.ready()
        assert Counter(await held.alive())[True] == second["connections"]
    before = {one["worker"]: one["records"] for one in await workers_of(mesh.front)}
    for _ in range(2):
        assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(MANY)))) == {b"hello"}
    await settled(lambda: grown(mesh.front, before))
    # what it carried and had not reported is shed, and said to be
    shed = (await stats(mesh.front))["flows"]["shed"]
    assert shed == first["connections"]
    assert await mesh.front.terminate() == 0
    by_front = [batch for (boot, _), batch in controller.batches.items() if boot == boot_of(mesh.front, controller)]
    assert sum(batch.shed_flows for batch in by_front) == shed


async def test_connections_are_taken_while_a_worker_can_not_come_back(mesh):
    """It is killed again and again, and each start waits longer."""
    for _ in range(4):
        (first, *_) = await settled(lambda: all_of(mesh.front))
        os.kill(first["process"], signal.SIGKILL)
        await settled(lambda: one_missing(mesh.front))
        assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(MANY)))) == {b"hello"}
    status, said = await mesh.front.get("/healthz/ready")
    assert status == 200 or "worker 0 of 2" in said


async def test_peers_of_a_killed_worker_come_to_the_others(mesh):
    for one in await workers_of(mesh.cart):
        os.kill(one["process"], signal.SIGKILL)
        await settled(lambda: one_missing(mesh.cart))
        await settled(lambda: hello(mesh))  # those whose tunnel was the worker's have to notice
        assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(MANY)))) == {b"hello"}
        await settled(lambda: all_of(mesh.cart))


async def test_a_worker_that_hangs_can_not_keep_a_new_deny_out(mesh, controller):
    """It is stopped and can not answer: it is killed, and the policy is in force where it is acknowledged."""
    victim = (await workers_of(mesh.front))[0]["process"]
    async with Held(mesh.entrance) as held:
        os.kill(victim, signal.SIGSTOP)
        controller.push(snapshot(2, workload=FRONT), FRONT)
        await held.ended()
        await until(lambda: [ack.version for w in controller.watchers for ack in w.acks].count(2) == 1)
    assert "does not answer and is killed" in mesh.front.log.read_text()
    await mesh.front.ready()
    assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(MANY)))) == {b""}


async def test_sigterm_lets_what_runs_finish_everywhere(controller, tmp_path):
    async with running(controller, tmp_path, drain_seconds=60) as mesh:
        async with Held(mesh.entrance) as held:
            mesh.cart.child.send_signal(signal.SIGTERM)
            await until(lambda: "draining for at most 60 s" in mesh.cart.log.read_text())
            await held.use()
            assert await mesh.cart.get("/healthz/ready") == (503, "draining: the sidecar was told to end\n")
            async with asyncio.timeout(20):
                while await ask(mesh.entrance) == b"hello":  # what crosses its farewell is served still
                    pass
            await held.use()
            assert mesh.cart.child.returncode is None
        assert await asyncio.wait_for(mesh.cart.child.wait(), 20) == 0
        assert await mesh.front.terminate() == 0
    received = sum(flow.bytes_received for flow in controller.flows if flow.direction is Direction.INBOUND)
    assert received >= 3 * 12 * MANY


async def test_a_second_sigterm_ends_all_at_once(controller, tmp_path):
    async with running(controller, tmp_path, drain_seconds=3600) as mesh, Held(mesh.entrance) as held:
        mesh.cart.child.send_signal(signal.SIGTERM)
        await until(lambda: "draining for at most 3600 s" in mesh.cart.log.read_text())
        await held.use()
        mesh.cart.child.send_signal(signal.SIGTERM)
        await held.ended()
        assert await asyncio.wait_for(mesh.cart.child.wait(), 20) == 0


async def test_workers_end_with_their_supervisor(mesh):
    workers = children(mesh.front)
    assert len(workers) == WORKERS
    mesh.front.child.kill()
    await mesh.front.child.wait()
    await until(lambda: not any((Path("/proc") / str(one) / "cwd").exists() for one in workers))
    async with mesh.front:  # and leave nothing behind that is in the way
        await mesh.front.ready()
        assert await ask(mesh.entrance) == b"hello"
        assert await mesh.front.terminate() == 0


@pytest.mark.parametrize("numbers", [(2, 2), (1, 3), (3, 1), (3, 1, 2)], ids=str)
async def test_a_restart_under_load_refuses_nothing_whatever_the_number_of_workers(controller, tmp_path, numbers):
    """A socket that the kernel deals connections to is never closed, also when there are fewer to take them: what waits
    in it would be reset. Whoever is left takes from all of them."""
    sockets = numbers[0]
    # What runs in the process before has all the time that it wants: what is not answered has been lost.
    async with running(controller, tmp_path, workers=numbers[0], drain_seconds=80) as mesh:
        async with load(mesh.entrance) as outcomes:
            for after in numbers[1:]:
                sockets = max(sockets, after)
                for process in (mesh.front, mesh.cart):
                    process.configure(workers=after)
                    assert await process.restart() == 0, process.log.read_text()
                    await process.ready()
                answered = outcomes["answered"]
                await until(lambda answered=answered: outcomes["answered"] > answered + 100)
            for port in (mesh.entrance, mesh.service):
                assert len(listening(port)) == sockets
        assert set(outcomes) == {"answered"}, outcomes
        for port in (mesh.entrance, mesh.service):
            await until(lambda port=port: listening(port) == [0] * sockets)
        assert len(children(mesh.front)) == (numbers[-1] if numbers[-1] > 1 else 0)
        assert await mesh.front.terminate() == 0
        assert await mesh.cart.terminate() == 0
    assert connections(controller, Direction.OUTBOUND) == outcomes["answered"], "each is one, however often tried"
    assert connections(controller, Direction.INBOUND) >= outcomes["answered"], "and here one for each try"


async def test_one_worker_is_this_very_process(controller, tmp_path):
    async with running(controller, tmp_path, workers=1) as mesh:
        assert await ask(mesh.entrance) == b"hello"
        assert children(mesh.front) == {}
        assert "workers" not in await stats(mesh.front)


async def test_workers_are_fresh_processes_without_grpc_and_without_secrets_in_sight(mesh):
    found = children(mesh.front)
    assert len(found) == WORKERS
    for pid, command in found.items():
        assert command[1:3] == [b"-m", b"sidecar.workers"]
        proc = Path("/proc") / str(pid)
        maps = (proc / "maps").read_text()
        assert "uvloop" in maps
        assert "grpc" not in maps
        assert re.search(r"^Max core file size +0 +0 ", (proc / "limits").read_text(), re.MULTILINE)
        state = mesh.front.directory / "state"
        names = {os.readlink(one) for one in (proc / "fd").iterdir() if one.is_symlink()}
        assert not [name for name in names if name.startswith(str(state))], "a worker has nothing of the disk"
    assert "grpc" in (Path("/proc") / str(mesh.front.child.pid) / "maps").read_text()


async def test_the_command_line_goes_before_the_file(controller, tmp_path):
    listen = {"listen": f"127.0.0.1:{free_port()}", "destination": "127.0.77.9:80"}
    process = Process(controller, tmp_path, WORKLOAD, CART_ADDRESS, explicit={"outbound": [listen]}, workers=1)
    process.arguments = ["--workers", "3"]
    controller.push(snapshot(1))
    async with process:
        await process.ready()
        assert len(children(process)) == 3
        assert await process.terminate() == 0
