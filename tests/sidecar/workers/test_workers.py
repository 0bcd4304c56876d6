"""Whole sidecars with several workers: real processes, a controller that speaks the real protocol."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from graph.model import Direction, Verdict
from tests.sidecar.fake_controller import WORKLOAD, snapshot, until
from tests.sidecar.processes import CART_ADDRESS, FRONT, Mesh, Process, echo, free_port
from tests.sidecar.processes import ask as ask_once

WORKERS = 2
#: So many connections that the kernel gives every worker some: all to one of two happens once in 2 ** 31.
MANY = 32


@contextlib.asynccontextmanager
async def running(controller, directory, workers=WORKERS, **settings):
    """front → cart, and an echo service behind cart's."""
    made = Mesh(controller, directory)
    for process in (made.front, made.cart):
        process.document |= {"workers": workers} | settings
    made.allow(1)
    server = await asyncio.start_server(echo, "127.0.0.1", made.application)
    async with server, made.front, made.cart:
        await asyncio.gather(made.front.ready(), made.cart.ready())
        yield made
    for process in (made.front, made.cart):
        said = process.log.read_text()
        assert "Traceback" not in said, said
        assert "PRIVATE KEY" not in said


@pytest.fixture
async def mesh(controller, tmp_path):
    async with running(controller, tmp_path) as made:
        yield made


async def stats(process):
    return json.loads((await process.get("/stats"))[1])


async def workers_of(process):
    return (await stats(process))["workers"]


async def settled(condition, *, seconds=20):
    """Wait until an awaited condition is true; its value."""
    async with asyncio.timeout(seconds):
        while not (value := await condition()):  # noqa: ASYNC110  # processes have no event for it
            await asyncio.sleep(0.02)
    return value


async def ask(port, text=b"hello"):
    """What comes back for ``text``; empty when the connection is refused, however early."""
    try:
        return await ask_once(port, text)
    except OSError as error:
        if error.errno not in (errno.ECONNRESET, errno.ENOTCONN):
            raise
        return b""


def children(process):
    """The processes that a sidecar has started, with their command lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == process.child.pid:
                found[int(path.name)] = (path / "cmdline").read_bytes().split(b"\0")
    return found


class Held:
    """Connections that stay open, and are used."""

    def __init__(self, port, count=MANY):
        self._port = port
        self._count = count

    async def __aenter__(self):
        opened = (asyncio.open_connection("127.0.0.1", self._port) for _ in range(self._count))
        self._open = await asyncio.gather(*opened)
        await self.use()
        return self

    async def __aexit__(self, *_):
        for _, writer in self._open:
            writer.close()
        for _, writer in self._open:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def use(self):
        """One request on each, which is answered."""
        assert all(await self.alive())

    async def alive(self):
        """One request on each; whether it was answered."""
        return await asyncio.gather(*(self._ask(*one) for one in self._open))

    @staticmethod
    async def _ask(reader, writer):
        try:
            writer.write(b"still there?")
            async with asyncio.timeout(10):
                return await reader.readexactly(12) == b"still there?"
        except (ConnectionError, asyncio.IncompleteReadError):
            return False

    async def ended(self):
        """Wait until every one is over."""

        async def one(reader):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(1), 10)

        await asyncio.gather(*(one(reader) for reader, _ in self._open))


@contextlib.asynccontextmanager
async def load(port, rate=100):
    """Requests at a steady rate, each on a connection of its own; how many ended how."""
    outcomes: Counter[str] = Counter()
    asking: set[asyncio.Task[None]] = set()

    async def one():
        try:
            async with asyncio.timeout(30):
                answer = await ask(port, b"how are you?")
            outcomes["answered" if answer == b"how are you?" else f"wrong: {answer!r}"] += 1
        except OSError as error:
            outcomes[f"{type(error).__name__}: {error}"] += 1

    async def run():
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for number in itertools.count():
            task = asyncio.ensure_future(one())
            asking.add(task)
            task.add_done_callback(asking.discard)
            await asyncio.sleep(max(0.0, begin + number / rate - loop.time()))

    running_ = asyncio.ensure_future(run())
    try:
        yield outcomes
    finally:
        running_.cancel()
        await asyncio.gather(running_, return_exceptions=True)
        await asyncio.gather(*asking)


def connections(controller, direction, reporter=""):
    flows = [one for one in controller.flows if one.direction is direction and one.reporter.startswith(reporter)]
    return sum(flow.connections for flow in flows)


# --- carrying and reporting


async def test_all_workers_carry_and_every_connection_is_reported_once(mesh, controller):
    asked = 0
    for _ in range(5):
        assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(MANY)))) == {b"hello"}
        asked += MANY
    await until(lambda: connections(controller, Direction.INBOUND) == asked)
    await settled(lambda: told(mesh.front, asked))
    assert (await stats(mesh.front))["flows"]["records"] == asked
    by_worker = [one["records"] for one in await workers_of(mesh.front)]
    assert len(by_worker) == WORKERS
    assert min(by_worker) > 0, "the kernel deals connections to each"
    assert sum(by_worker) == asked
    assert await mesh.front.terminate() == 0
    assert await mesh.cart.terminate() == 0
    for direction in Direction:
        flows = [flow for flow in controller.flows if flow.direction is direction]
        assert sum(flow.connections for flow in flows) == asked
        assert sum(flow.bytes_received for flow in flows) == asked * 5
        assert {(str(flow.edge), flow.verified, flow.rule_id, flow.verdict) for flow in flows} == {
            (f"shop/front->shop/cart:{mesh.service}/TCP", True, "learned/1", Verdict.ALLOW)
        }
    assert sum(batch.shed_flows for batch in controller.batches.values()) == 0


async def told(process, records):
    """Whether workers have told of so many connections."""
    return sum(one["records"] for one in await workers_of(process)) == records


async def test_what_people_see_is_the_sum_of_all_workers(controller, tmp_path):
    ports = {"stats_listen": f"127.0.0.1:{free_port()}", "admin_listen": f"127.0.0.1:{free_port()}"}
    made = Mesh(controller, tmp_path)
    made.front.document |= {"workers": WORKERS} | ports
    made.allow(1)

    async def get(name, path, method="GET"):
        port = ports[name].rpartition(":")[2]
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        response = (await asyncio.wait_for(reader.read(), 10)).decode()
        writer.close()
        await writer.wait_closed()
        head, _, body = response.partition("\r\n\r\n")
        assert head.split()[1] == "200", response
        return body

    async def sample(name):
        page = await get("stats_listen", "/metrics")
        return sum(float(one) for one in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", page, re.MULTILINE))

    server = await asyncio.start_server(echo, "127.0.0.1", made.application)
    async with server, made.front, made.cart:
        await asyncio.gather(made.front.ready(), made.cart.ready())
        async with Held(made.entrance) as held:
            await settled(lambda: equal(sample("istio_tcp_connections_opened_total"), MANY))
            assert await sample("istio_tcp_connections_closed_total") == 0
            assert await sample("hedgerow_connections") == MANY
            assert await sample("hedgerow_worker_connections") == MANY
            assert await sample("hedgerow_worker_starts_total") == WORKERS
            pages = json.loads(await get("admin_listen", "/connections"))
            assert sum(page["total"] for page in pages) == MANY
            assert [page["worker"] for page in pages] == list(range(WORKERS))
            assert {one["destination"] for page in pages for one in page["connections"]} == {"shop/cart"}
            tunnels = json.loads(await get("admin_listen", "/tunnels"))
            assert sum(one["streams"] for page in tunnels for one in page["outbound"]) == MANY
            assert {one["instance"] for page in tunnels for one in page["outbound"]} == {"cart-1"}
            memory = json.loads(await get("admin_listen", "/memory"))
            assert memory["supervisor"]["process"] == made.front.child.pid
            assert {page["process"] for page in memory["workers"]} == set(children(made.front))
            await get("admin_listen", "/access-log?mode=all", "POST")
            await get("admin_listen", "/logging?level=debug", "POST")
            await held.use()
        # counters do not go back when a worker dies
        await settled(lambda: equal(sample("istio_tcp_connections_closed_total"), MANY))
        os.kill(next(iter(children(made.front))), signal.SIGKILL)
        await settled(lambda: equal(sample("hedgerow_worker_starts_total"), WORKERS + 1))
        assert await sample("istio_tcp_connections_opened_total") == MANY
        await made.front.ready()
        assert await made.front.terminate() == 0
    lines = [line for line in made.front.log.read_text().splitlines() if line.startswith('{"start_time"')]
    assert len(lines) == MANY, "workers write the access log themselves"
    assert {json.loads(line)["destination"] for line in lines} == {"shop/cart"}


async def equal(measured, wanted):
    return await measured == wanted


async def test_requests_of_http_are_counted_over_all_workers(controller, tmp_path):
    """Both ends add up by operation and status what the application answered."""

    async def application(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    made = Mesh(controller, tmp_path)
    for process in (made.front, made.cart):
        process.document |= {"workers": WORKERS}
    made.allow(1)

    async def client():
        reader, writer = await asyncio.open_connection("127.0.0.1", made.entrance)
        for number in range(4):
            writer.write(f"GET /items/{number} HTTP/1.1\r\nHost: cart\r\n\r\n".encode())
            assert (await asyncio.wait_for(reader.readuntil(b"ok"), 10)).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(application, "127.0.0.1", made.application)
    async with server, made.front, made.cart:
        await asyncio.gather(made.front.ready(), made.cart.ready())
        await asyncio.gather(*(client() for _ in range(MANY)))
        await until(lambda: sum(flow.requests for flow in controller.flows) == 4 * MANY)
        assert {flow.operation for flow in controller.flows if flow.requests} == {"GET /items/{id}"}
        assert await made.front.terminate() == 0
        assert await made.cart.terminate() == 0
    assert sum(flow.requests for flow in controller.flows) == 4 * MANY


# --- policy and certificates


async def test_a_new_deny_reaches_the_live_connections_of_all(mesh, controller):
    async with Held(mesh.entrance) as held:
        await settled(lambda: spread(mesh.front))
        controller.push(snapshot(2, workload=FRONT), FRONT)
        await held.ended()
        await until(lambda: [ack.version for w in controller.watchers for ack in w.acks].count(2) == 1)
        assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(MANY)))) == {b""}
    assert (await stats(mesh.front))["policy"]["version"] == 2


async def spread(process):
    """Whether every worker carries connections, as of its last word."""
    return all(one["connections"] for one in await workers_of(process))


async def test_a_deny_at_the_destination_reaches_the_live_connections_of_all(mesh, controller):
    async with Held(mesh.entrance) as held:
        controller.push(snapshot(2), WORKLOAD)
        await held.ended()
        assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(MANY)))) == {b""}


async def test_a_forged_policy_is_in_force_nowhere(mesh, controller):
    forged = controller.sign(snapshot(5))
    forged.signature = b"\x00" * len(forged.signature)
    async with Held(mesh.entrance) as held:
        controller.push(forged, WORKLOAD)
        await until(lambda: any(watcher.nacks for watcher in controller.watchers))
        await held.use()
        assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(MANY)))) == {b"hello"}
    assert (await stats(mesh.cart))["policy"]["version"] == 1


async def test_renewals_reach_all_and_cost_no_connection(controller, tmp_path):
    """Certificates of eight seconds, and connections that outlive them. Fresh handshakes of a pair come to any worker,
    and prove what the others hold too."""
    controller.lifetime = 8.0
    async with running(controller, tmp_path) as mesh, Held(mesh.entrance) as held:
        begin = time.monotonic()
        signatures = controller.signatures
        while time.monotonic() < begin + 1.5 * controller.lifetime or controller.signatures < signatures + 4:
            await held.use()
            assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(4)))) == {b"hello"}
        assert (await stats(mesh.front))["certificate"]["renewals"] >= 2
        controller.refuse_renewals = True  # now certificates end, and so does what they carried, in every worker
        await settled(lambda: all_dead(held))


async def all_dead(held):
    return not any(await held.alive())


# --- life


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


def boot_of(process, controller):
    """The run of the sidecar that reported for an instance."""
    (boot,) = {
        boot for (boot, _), batch in controller.batches.items() for flow in batch.flows if flow.reporter == "front-1"
    }
    assert process.instance == "front-1"
    return boot


async def back(process, gone):
    """Whether all workers listen, and ``gone`` is none of them."""
    workers = await workers_of(process)
    return len(workers) == WORKERS and all(one["listening"] and one["process"] != gone for one in workers)


async def grown(process, before):
    """Whether each has carried more than it had."""
    return all(one["records"] > before[one["worker"]] for one in await workers_of(process))


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


async def hello(mesh):
    return set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(8)))) == {b"hello"}


async def all_of(process):
    workers = await workers_of(process)
    return workers if len(workers) == WORKERS and all(one["listening"] for one in workers) else None


async def one_missing(process):
    return len([one for one in await workers_of(process) if one["listening"]]) < WORKERS


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


def listening(port):
    """Of each socket that listens on ``port``: how many connections wait in it, by the kernel's word (proc(5))."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return [int(queues.split(":")[1], 16) for _, local, _, state, queues, *_ in lines if (
        state == "0A" and int(local.split(":")[1], 16) == port
    )]  # fmt: skip


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


# --- processes


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
