"""Whole sidecar processes, looked at from outside: metrics after real traffic, every page, probes, the access log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from sidecar.metrics import own
from tests.sidecar.fake_controller import IDENTITY, WORKLOAD, snapshot, until
from tests.sidecar.http_client import answer, application, free_port, get
from tests.sidecar.processes import CART_ADDRESS, Mesh, Process, ask, echo

OPENMETRICS = "Accept: application/openmetrics-text;version=1.0.0"


class Watched:
    """One sidecar process with its two ports."""

    def __init__(self, process: Process):
        self.process = process
        self.admin, self.stats = free_port(), free_port()
        process.document |= {
            "admin_listen": f"127.0.0.1:{self.admin}",
            "stats_listen": f"0.0.0.0:{self.stats}",
        }

    async def metrics(self, *fields, path="/stats/prometheus"):
        status, head, body = await get(self.stats, path, *fields, host="anybody")
        assert status == 200
        read = read_openmetrics if "openmetrics" in head["content-type"] else read_text
        return {family.name: family for family in read(body.decode())}

    async def page(self, target, method="GET"):
        status, _, body = await get(self.admin, target, method=method)
        return status, body.decode()

    async def shown(self, target, method="GET"):
        status, body = await self.page(target, method)
        assert status == 200, body
        return json.loads(body)


def one(family, **labels):
    """The sum of a family's samples that have these labels."""
    assert family.samples
    return sum(s.value for s in family.samples if labels.items() <= s.labels.items())


@contextlib.asynccontextmanager
async def mesh_of(controller, directory, **settings):
    mesh = Mesh(controller, directory)
    mesh.allow(1)
    front, cart = Watched(mesh.front), Watched(mesh.cart)
    mesh.cart.document |= settings
    server = await asyncio.start_server(echo, "127.0.0.1", mesh.application)
    async with server, mesh.front, mesh.cart:
        await asyncio.gather(mesh.front.ready(), mesh.cart.ready())
        yield mesh, front, cart


async def test_both_ends_count_what_passed_in_istios_words(controller, tmp_path):
    async with mesh_of(controller, tmp_path, metrics={"app": "cart-app", "version": "v2"}) as (mesh, front, cart):
        for _ in range(3):
            assert await ask(mesh.entrance, b"hello") == b"hello"
        reader, writer = await asyncio.open_connection("127.0.0.1", mesh.entrance)
        writer.write(b"12345")
        assert await reader.readexactly(5) == b"12345"

        async def counted(watched):
            families = await watched.metrics()
            closed = families["istio_tcp_connections_closed"]
            return families if closed.samples and one(closed) == 3 else None

        for watched, reporter in ((front, "source"), (cart, "destination")):
            async with asyncio.timeout(20):
                while (families := await counted(watched)) is None:
                    pass
            labels = {
                "reporter": reporter,
                "source_workload": "front",
                "source_workload_namespace": "shop",
                "destination_workload": "cart",
                "destination_canonical_service": "cart",
                "destination_principal": str(IDENTITY),
                "connection_security_policy": "mutual_tls",
                "response_flags": "-",
            }
            assert one(families["istio_tcp_connections_opened"], **labels) == 4
            assert one(families["istio_tcp_received_bytes"], **labels) == 20  # of the living one too
            assert one(families["istio_tcp_sent_bytes"], **labels) == 20
            assert one(families["hedgerow_connections"]) == 1
            assert one(families["hedgerow_ready"]) == 1
            assert one(families["hedgerow_policy_version"]) == 1
            assert one(families["hedgerow_policy_connected"]) == one(families["hedgerow_directory_connected"]) == 1
            assert 0 < one(families["hedgerow_certificate_expiry_seconds"]) <= 3700
            assert one(families["hedgerow_streams"]) == 1
        assert one((await cart.metrics())["istio_tcp_connections_opened"], destination_app="cart-app") == 4
        # every family that a table promises is there, in both formats
        for fields in ((), (OPENMETRICS,)):
            families = await cart.metrics(*fields, path="/metrics")
            missing = {name.removesuffix("_total") for name in own.NAMES} - set(families)
            assert missing <= {"hedgerow_dns", "hedgerow_dns_addresses", "hedgerow_egress_uninspected"}
        writer.close()

        # a refusal is told by its reason
        controller.push(snapshot(2), WORKLOAD)
        await until(lambda: any(ack.version == 2 for w in controller.watchers for ack in w.acks))
        assert await ask(mesh.entrance) == b""
        families = await cart.metrics()
        assert one(families["hedgerow_connections_refused"], direction="inbound", reason="no-rule") == 1
        assert one(families["istio_tcp_connections_opened"], response_flags="DENY") == 1


async def test_with_telemetry_off_traffic_passes_and_nothing_is_told_of_it(controller, tmp_path):
    async with mesh_of(controller, tmp_path, telemetry="off") as (mesh, front, _):
        assert await ask(mesh.entrance) == b"hello"
        controller.push(snapshot(2), WORKLOAD)
        await until(lambda: any(ack.version == 2 for w in controller.watchers for ack in w.acks))
        assert await ask(mesh.entrance) == b""  # the rules hold

        # the other end reports both, and had as much time for it
        await until(lambda: sum(flow.connections for flow in controller.flows) == 2)
        assert await mesh.cart.terminate() == 0
        assert {flow.reporter for flow in controller.flows} == {"front-1"}
        assert "telemetry is off" in mesh.cart.log.read_text()
        assert "telemetry is off" not in mesh.front.log.read_text()
        assert "istio_tcp_connections_opened" in await front.metrics()


async def test_with_telemetry_off_there_are_no_metrics_of_traffic(controller, tmp_path):
    async with mesh_of(controller, tmp_path, telemetry=False) as (mesh, _, cart):
        assert await ask(mesh.entrance) == b"hello"
        families = await cart.metrics()
        assert not [name for name in families if name.startswith(("istio_tcp", "istio_requests", "hedgerow_flow"))]
        assert "hedgerow_connections_refused" not in families
        assert one(families["hedgerow_ready"]) == one(families["hedgerow_policy_connected"]) == 1
        assert (await cart.page("/connections"))[0] == 404
        assert (await cart.shown("/stats"))["flows"] is None
        assert (await cart.shown("/config"))["telemetry"] is False


async def test_every_page_of_the_inside(controller, tmp_path):
    async with mesh_of(controller, tmp_path) as (mesh, front, cart):
        reader, writer = await asyncio.open_connection("127.0.0.1", mesh.entrance)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"

        config = await cart.shown("/config")
        assert config["instance"] == "cart-1"
        assert config["admin_listen"] == f"127.0.0.1:{cart.admin}"

        certs = await cart.shown("/certs")
        assert certs["identity"] == str(IDENTITY)
        assert certs["chain"][0]["not_after"] > certs["chain"][0]["not_before"]
        assert len(certs["chain"][0]["sha256"]) == 64
        assert certs["trust_bundle"]["roots"]

        (tunnel,) = (await cart.shown("/tunnels"))["inbound"]
        assert (tunnel["peer"].rpartition("/")[2], tunnel["streams"], tunnel["leaving"]) == ("front", 1, False)
        (tunnel,) = (await front.shown("/tunnels"))["outbound"]
        assert tunnel["place"] == f"{CART_ADDRESS}:{mesh.service}"

        held = await cart.shown("/snapshot")
        assert (held["version"], held["rules"][0]["id"], held["inbound_mode"]) == (1, "learned/1", "enforce")

        connections = await cart.shown("/connections")
        assert connections["total"] == 1
        (connection,) = connections["connections"]
        assert (connection["source"], connection["verdict"], connection["rule"]) == ("shop/front", "allow", "learned/1")
        assert connection["bytes_sent"] == 1

        stats = await cart.shown("/stats")
        assert (stats["ready"], stats["policy"]["version"]) == (True, 1)
        memory = await cart.shown("/memory")
        assert memory["resident_bytes"] > memory["file_bytes"] > 1 << 20
        assert memory["inspect_loaded"] is False

        status, stacks = await cart.page("/profile?seconds=0.2")
        assert status == 200
        assert all(line.rpartition(" ")[2].isdecimal() for line in stacks.splitlines())
        assert await cart.page("/healthz/ready") == (200, "ready\n")
        assert (await get(cart.admin, "/certs", host="rebound.example.com"))[0] == 403
        writer.close()

        seen = "".join([json.dumps(config), json.dumps(certs), json.dumps(held), json.dumps(stats), json.dumps(memory)])
        assert "PRIVATE" not in seen
        assert "token-cart" not in seen.replace(str(tmp_path), "")


async def test_15020_shows_nothing_but_metrics_readiness_and_probes(controller, tmp_path):
    async with mesh_of(controller, tmp_path) as (_, _, cart):
        for target in ("/", "/config", "/stats", "/certs", "/logging", "/quitquitquit", "/app-health/web/livez"):
            assert (await get(cart.stats, target))[0] == 404, target
            assert (await get(cart.stats, target, method="POST"))[0] == 405, target
        assert (await get(cart.stats, "/healthz/ready"))[0] == 200
        status, _, body = await get(cart.stats, "/metrics?format=prometheus", method="HEAD")
        assert (status, body) == (200, b"")


async def test_what_the_kubelet_and_the_scraper_want_of_the_application(controller, tmp_path):
    healthy = True

    def page(head):
        if head.startswith("GET /metrics "):
            return answer("200 OK", b"app_carts 7\n")
        return answer("200 OK" if healthy else "503 Service Unavailable")

    async with application(page) as (port, _):
        probes = [
            {"container": "cart", "kind": "livez", "http": {"port": port, "path": "/healthz"}, "address": "127.0.0.1"},
            {"container": "cart", "kind": "readyz", "tcp": {"port": port}, "address": "127.0.0.1"},
            {"container": "cart", "kind": "startupz", "tcp": {"port": free_port()}, "address": "127.0.0.1"},
        ]
        merge = {"port": port, "address": "127.0.0.1"}
        async with mesh_of(controller, tmp_path, probes=probes, merge_metrics=merge) as (_, _, cart):
            assert (await get(cart.stats, "/app-health/cart/livez"))[0] == 200
            assert (await get(cart.stats, "/app-health/cart/readyz"))[0] == 200
            assert (await get(cart.stats, "/app-health/cart/startupz"))[0] == 500
            healthy = False
            assert (await get(cart.stats, "/app-health/cart/livez"))[0] == 503
            families = await cart.metrics(OPENMETRICS)
            assert one(families["app_carts"]) == 7
            probed = families["hedgerow_probes"]
            assert one(probed, container="cart", kind="livez", result="success") == 1
            assert one(probed, container="cart", kind="livez", result="failure") == 1
            assert one(probed, kind="startupz", result="failure") == 1


async def test_the_access_log_goes_on_and_off_at_run_time(controller, tmp_path):
    async with mesh_of(controller, tmp_path) as (mesh, _, cart):
        log = mesh.cart.log

        def logged():
            return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]

        assert await ask(mesh.entrance) == b"hello"
        assert (await cart.shown("/access-log?mode=all", "POST"))["mode"] == "all"
        before = len(logged())
        assert await ask(mesh.entrance) == b"hello"
        await until(lambda: len(logged()) > before)
        line = logged()[-1]
        assert (line["source"], line["verdict"], line["rule"]) == ("shop/front", "allow", "learned/1")
        assert (line["bytes_received"], line["bytes_sent"]) == (5, 5)
        assert (await cart.shown("/access-log?mode=off", "POST"))["lines"] >= 1
        counted = (await cart.shown("/access-log"))["lines"]
        assert await ask(mesh.entrance) == b"hello"
        await until(lambda: sum(flow.connections for flow in controller.flows) == 6)  # the third one has ended
        assert (await cart.shown("/access-log"))["lines"] == counted
        assert one((await cart.metrics())["hedgerow_access_log_lines"]) == counted


async def test_quitting_drains_and_ends_without_a_fault(controller, tmp_path):
    async with mesh_of(controller, tmp_path) as (mesh, _, cart):
        assert await cart.page("/quitquitquit", "POST") == (200, "draining\n")
        assert await asyncio.wait_for(mesh.cart.child.wait(), 20) == 0


async def test_a_restart_takes_these_ports_over_too(controller, tmp_path):
    async with mesh_of(controller, tmp_path) as (mesh, _, cart):
        first = (await cart.shown("/memory"))["process"]
        done = asyncio.Event()
        failed = []

        async def keep_asking():
            while not done.is_set():
                try:
                    assert (await get(cart.stats, "/healthz/ready"))[0] in (200, 503)
                except (OSError, IndexError, AssertionError) as error:
                    failed.append(error)

        asking = asyncio.create_task(keep_asking())
        assert await mesh.cart.restart() == 0
        await mesh.cart.ready()
        done.set()
        await asking
        assert not failed
        assert (await cart.shown("/memory"))["process"] not in (first, None)
        assert one((await cart.metrics())["hedgerow_ready"]) == 1


async def test_it_shows_what_there_is_before_there_is_a_certificate(controller, tmp_path):
    await controller.stop()
    listen = {"listen": f"127.0.0.1:{free_port()}", "destination": "127.0.77.9:80"}
    process = Process(controller, tmp_path, WORKLOAD, CART_ADDRESS, explicit={"outbound": [listen]})
    watched = Watched(process)
    async with process:
        async with asyncio.timeout(30):
            status = 0
            while status != 503:
                with contextlib.suppress(OSError):
                    status, _ = await watched.page("/certs")
                await asyncio.sleep(0.02)
        for target in ("/snapshot", "/tunnels"):
            assert (await watched.page(target))[0] == 503
        assert (await watched.shown("/stats"))["ready"] is False
        assert one((await watched.metrics())["hedgerow_ready"]) == 0
        assert (await get(watched.stats, "/healthz/ready"))[0] == 503
        assert await watched.page("/quitquitquit", "POST") == (200, "draining\n")
        assert await asyncio.wait_for(process.child.wait(), 20) == 0


async def test_it_sees_itself_as_its_own_user_with_protected_memory(controller):
    # not below pytest's folder, which is root's alone; a process that protects its memory loses its own /proc files
    with tempfile.TemporaryDirectory(prefix="hedgerow-O-") as name:
        directory = Path(name)
        listen = {"listen": f"127.0.0.1:{free_port()}", "destination": "127.0.77.9:80"}
        process = Process(controller, directory, WORKLOAD, CART_ADDRESS, explicit={"outbound": [listen]})
        watched = Watched(process)
        process.user = 1337
        for path in (directory, process.directory, process.token):
            os.chown(path, 1337, 1337)
        controller.push(snapshot(1))
        async with process:
            await process.ready()
            families = await watched.metrics()
            assert one(families["hedgerow_process_resident_bytes"]) > 1 << 20
            assert one(families["hedgerow_process_open_descriptors"]) > 3
            assert (await watched.shown("/memory"))["open_descriptors"] > 3
            assert await process.terminate() == 0


@pytest.mark.parametrize("setting", ["admin_listen", "stats_listen"])
async def test_a_busy_port_is_named_and_nothing_else_is_touched(controller, tmp_path, setting):
    listen = {"listen": f"127.0.0.1:{free_port()}", "destination": "127.0.77.9:80"}
    process = Process(controller, tmp_path, WORKLOAD, CART_ADDRESS, explicit={"outbound": [listen]})
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        process.document[setting] = f"127.0.0.1:{port}"
        async with process:
            assert await asyncio.wait_for(process.child.wait(), 30) == 2
    said = process.log.read_text()
    assert f"{setting}: cannot listen on 127.0.0.1:{port}" in said
    assert "Traceback" not in said
    assert process.token.exists()
