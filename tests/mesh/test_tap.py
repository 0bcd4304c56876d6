"""Requests are shown to who asks, in a whole mesh, also those of connections that were open before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hedgerow.local.description import WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.processes import Process
from tests.mesh.running import client, script, server
from tests.mesh.traffic import Load

pytestmark = pytest.mark.asyncio(loop_scope="module")

WEB, GRPC = 8080, 50051
SHOWN = 3


def workloads() -> list[WorkloadSpec]:
    return [
        server("shop/web", script("web_server.py", "web", WEB), WEB, app_protocol="http"),
        server("shop/rpc", script("grpc_server.py", GRPC), GRPC, app_protocol="grpc"),
        client("shop/client"),
    ]


async def watch(mesh: LocalMesh, workload: str) -> list[dict[str, Any]]:
    """What a tap shows until it has shown :data:`SHOWN` requests."""
    asked = {"workload": workload, "count": SHOWN, "for": 30, "bodies": False, "owner": "tests", "reason": "a test"}
    shown = []
    async with asyncio.timeout(40):
        async for event, data in mesh.api.events("/tap", None, asked):
            if event == "request":
                shown.append(data)
    return shown


async def test_a_client_that_keeps_its_connection_is_seen_and_none_of_its_requests_fails(mesh: LocalMesh) -> None:
    async with Load(mesh, "shop/client-0", f"web:{WEB}", fresh=0, kept=1) as load:
        shown = await watch(mesh, "shop/web")
        assert len(shown) == SHOWN
        assert all(one["from"] == "shop/client" for one in shown), shown
        assert len({one["operation"] for one in shown}) == 1, shown
        await load.end()
    audit = (await mesh.api.get("/audit"))["entries"]
    assert any(entry["action"].startswith("tap") and "a test" in str(entry) for entry in audit), audit[:3]


async def test_a_channel_of_grpc_that_was_open_is_seen_and_none_of_its_calls_fails(mesh: LocalMesh) -> None:
    calls = Process("calls", mesh.root / "calls.log")
    await mesh.pod("shop/client-0").spawn(calls, script("grpc_client.py", "rpc", GRPC, "--on"))
    try:

        async def called() -> bool:
            flows = (await mesh.api.get("/flows"))["flows"]
            return any(flow["operation"] == "POST /tests.Kinds/Reverse" for flow in flows)

        await mesh.wait_for(called, "the client's calls")
        shown = await watch(mesh, "shop/rpc")
        assert {one["operation"] for one in shown} == {"POST /tests.Kinds/Reverse"}, shown
        assert calls.running, calls.tail()
    finally:
        await calls.stop()
    assert "all answered" in calls.tail(3)
