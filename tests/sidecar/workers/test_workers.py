"""Whole sidecars with several workers: real processes, a controller that speaks the real protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import time

from graph.model import Direction, Verdict
from tests.sidecar.fake_controller import WORKLOAD, snapshot, until
from tests.sidecar.processes import FRONT, Mesh, echo, free_port
from tests.sidecar.workers.whole import (
    MANY,
    WORKERS,
    Held,
    all_dead,
    ask,
    children,
    connections,
    equal,
    running,
    settled,
    spread,
    stats,
    told,
    workers_of,
)


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
            for name in ("hedgerow_connections", "hedgerow_worker_connections"):  # as of each worker's last word
                await settled(lambda name=name: equal(sample(name), MANY))
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


async def test_a_new_deny_reaches_the_live_connections_of_all(mesh, controller):
    async with Held(mesh.entrance) as held:
        await settled(lambda: spread(mesh.front))
        controller.push(snapshot(2, workload=FRONT), FRONT)
        await held.ended()
        await until(lambda: [ack.version for w in controller.watchers for ack in w.acks].count(2) == 1)
        assert set(await asyncio.gather(*(ask(mesh.entrance) for _ in range(MANY)))) == {b""}
    assert (await stats(mesh.front))["policy"]["version"] == 2


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
