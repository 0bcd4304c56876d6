"""What a kubelet and Prometheus get of a running controller, and that it tells nothing of anybody."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from controller.cluster_state import ClusterState, PartState, WatchState
from controller.monitoring.metrics import ProcessState, page
from controller.monitoring.server import MAX_CONNECTIONS, MonitoringServer
from controller.rpc.server import PortError
from controller.settings import Address, Settings
from controller.view import View
from tests.controller.running import LOOPBACK, running

PROCESS = ProcessState(1.5, 70_000_000, 12, 1_700_000_000.25, 400_000)


def samples(text: str) -> dict[str, float]:
    """Every sample by its name with its labels, as Prometheus' own parser reads it."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in found, f"{name} twice"
            found[name] = sample.value
    return found


async def get(url: str) -> tuple[int, str, str]:
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status, response.headers.get("Content-Type", ""), await response.text()


async def test_a_running_controller_shows_its_state_in_numbers(tmp_path):
    async with running(tmp_path, monitoring_listen=LOOPBACK) as controller:
        server = controller.controller.monitoring_server
        assert server is not None
        where = f"http://{server.address}"
        assert await get(f"{where}/healthz/live") == (200, "text/plain; charset=utf-8", "ok\n")
        assert (await get(f"{where}/healthz/ready"))[0] == 200
        status, kind, text = await get(f"{where}/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        before = samples(text)
        assert before["hedgerow_controller_workloads{meshed=true}"] == 3
        assert before["hedgerow_controller_workloads{meshed=false}"] == 1
        assert before["hedgerow_controller_instances{ready=true}"] == 5
        assert before["hedgerow_controller_workload_modes{direction=inbound,mode=learn}"] == 4
        assert before["hedgerow_controller_overrides{state=active}"] == 0
        assert before["process_open_fds"] > 3
        body = {
            "effect": "deny", "from": "shop/front", "to": "shop/cart", "port": 8080,
            "owner": "anna", "reason": "a test", "expires_in": None,
        }  # fmt: skip
        await controller.post("/overrides", body, 201)
        after = samples((await get(f"{where}/metrics"))[2])
        assert after["hedgerow_controller_overrides{state=active}"] == 1
        assert after["hedgerow_controller_rules{effect=deny,origin=override}"] == 1
        assert after["hedgerow_controller_changes_total"] > before["hedgerow_controller_changes_total"]
        assert after["hedgerow_controller_audit_entries_total"] > before["hedgerow_controller_audit_entries_total"]
        whole = (await get(f"{where}/metrics"))[2]
        assert not any(name in whole for name in ("front", "cart", "anna")), "it names nobody"


async def test_nothing_else_is_served_there(tmp_path):
    async with running(tmp_path, monitoring_listen=LOOPBACK) as controller:
        server = controller.controller.monitoring_server
        assert server is not None
        for path in ("/", "/api/v1/graph", "/api/v1/status", "/healthz", "/metrics/"):
            assert (await get(f"http://{server.address}{path}"))[0] == 404
        async with aiohttp.ClientSession() as http, http.post(f"http://{server.address}/metrics") as response:
            assert response.status == 405


async def test_it_is_not_ready_before_its_parts_are_and_does_not_say_why_to_everybody():
    cluster = ClusterState((PartState("inventory", False, 0), PartState("trust", False, 7, "a secret of its own")))
    view = View("hedgerow.test", started_at=1.0)
    server = MonitoringServer(Address("127.0.0.1", 0), "1.0", lambda: view, lambda: cluster)
    where = f"http://{await server.start()}"
    try:
        assert await get(f"{where}/healthz/ready") == (
            503, "text/plain; charset=utf-8", "waiting for: inventory, trust\n",
        )  # fmt: skip
        assert (await get(f"{where}/healthz/live"))[0] == 200
        cluster = ClusterState((PartState("inventory", True, 0), PartState("trust", True, 7, "a secret of its own")))
        assert (await get(f"{where}/healthz/ready"))[0] == 200
        view = View("hedgerow.test")
        assert (await get(f"{where}/healthz/ready"))[2] == "waiting for: engine\n"
    finally:
        await server.stop()


async def test_a_port_that_is_taken_is_named_with_its_setting():
    first = MonitoringServer(Address("127.0.0.1", 0), "1.0", lambda: View("t"))
    address = await first.start()
    try:
        with pytest.raises(PortError, match="monitoring_listen"):
            await MonitoringServer(address, "1.0", lambda: View("t")).start()
    finally:
        await first.stop()


def test_parts_of_a_cluster_are_shown():
    cluster = ClusterState(
        (PartState("inventory", True, 0), PartState("trust", False, 3, "shop/cart is away", 4.0)),
        (
            WatchState("pods", 5000, 1, 4, 731, 2, 1, 0.25, 17.0),
            WatchState("servicecidrs.networking.k8s.io", 0, 1, 0, 0, 0, 0, None, None),
        ),
        12,
        0.5,
        {"pod": 3, "name": 1},
        ("pod shop/cart-1: its owner is not there",),
    )
    text = page(View("t"), '1.0"\n\\', PROCESS, cluster)
    found = samples(text)
    assert found["hedgerow_controller_cluster_part_synced{part=inventory}"] == 1
    assert found["hedgerow_controller_cluster_part_synced{part=trust}"] == 0
    assert found["hedgerow_controller_cluster_part_failures_total{part=trust}"] == 3
    prefix = "hedgerow_controller_cluster"
    pods = {name.split("{")[0]: value for name, value in found.items() if name.endswith("{resource=pods}")}
    assert pods == {
        f"{prefix}_objects": 5000,
        f"{prefix}_watch_lists_total": 1,
        f"{prefix}_watches_total": 4,
        f"{prefix}_watch_events_total": 731,
        f"{prefix}_watch_expired_total": 2,
        f"{prefix}_unreadable_total": 1,
        f"{prefix}_watch_quiet_seconds": 0.25,
    }
    assert found[f"{prefix}_objects{{resource=servicecidrs.networking.k8s.io}}"] == 0
    assert f"{prefix}_watch_quiet_seconds{{resource=servicecidrs.networking.k8s.io}}" not in found, "never heard of"
    problems = {
        name.partition("about=")[2]: value for name, value in found.items() if name.startswith(f"{prefix}_prob")
    }
    assert problems == {"pod}": 3, "name}": 1, "identity}": 0, "said}": 0, "network-policies}": 0}
    assert (found[f"{prefix}_inventories_total"], found[f"{prefix}_inventory_seconds"]) == (12, 0.5)
    assert "cart" not in text, "it names nobody"
    assert found['hedgerow_controller_build_info{version=1.0"\n\\}'] == 1
    assert found["process_cpu_seconds_total"] == 1.5
    assert found["hedgerow_controller_memory_blocks"] == 400_000
    assert found["process_start_time_seconds"] == PROCESS.started_at


def test_the_setting_refuses_a_port_of_another_listener(tmp_path):
    base = {"state_dir": "s", "inventory": "i.yaml"}
    assert Settings.parse(base, tmp_path).monitoring_listen is None
    found = Settings.parse({**base, "monitoring_listen": "0.0.0.0:15014"}, tmp_path)
    assert found.monitoring_listen == Address("0.0.0.0", 15014)
    with pytest.raises(Exception, match="monitoring_listen"):
        Settings.parse({**base, "monitoring_listen": "0.0.0.0:15012"}, tmp_path)


async def test_who_takes_every_connection_keeps_no_probe_out_and_fills_no_log(tmp_path, caplog):
    async with running(tmp_path, monitoring_listen=LOOPBACK) as controller:
        server = controller.controller.monitoring_server
        assert server is not None
        held = [await asyncio.open_connection(server.address.host, server.address.port) for _ in range(300)]
        async with asyncio.timeout(60):
            for reader, _ in held[: 300 - MAX_CONNECTIONS]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b"", "those that were there first are ended first"
        assert (await get(f"http://{server.address}/healthz/live"))[0] == 200
        for reader, writer in held[-20:]:
            writer.write(b"GET / HTTP/1.1\r\nno field at all\r\n\r\n")
            async with asyncio.timeout(60):
                assert b" 400 " in await reader.read()
        assert "Traceback" not in caplog.text
        for _, writer in held:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
