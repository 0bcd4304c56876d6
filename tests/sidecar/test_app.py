"""Whole sidecar processes against a controller that speaks the real protocol, in explicit mode on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from graph.model import Direction, Verdict
from tests.sidecar.fake_controller import WORKLOAD, snapshot, until
from tests.sidecar.processes import CART_ADDRESS, ROOT, Mesh, Process, ask, echo, free_port


async def test_two_sidecars_carry_report_enforce_survive_and_end(controller, tmp_path):
    mesh = Mesh(controller, tmp_path)
    mesh.allow(1)
    server = await asyncio.start_server(echo, "127.0.0.1", mesh.application)
    async with server, mesh.front as front, mesh.cart as cart:
        await asyncio.gather(front.ready(), cart.ready())
        assert not front.token.exists()
        assert await ask(mesh.entrance) == b"hello"

        # both ends report it, verified, once
        def reported(direction):
            return [flow for flow in controller.flows if flow.direction is direction]

        await until(lambda: sum(f.bytes_received for f in reported(Direction.INBOUND)) == 5)
        await until(lambda: sum(f.bytes_received for f in reported(Direction.OUTBOUND)) == 5)
        for direction in Direction:
            flows = reported(direction)
            assert sum(flow.connections for flow in flows) == 1
            assert {(str(flow.edge), flow.verified, flow.rule_id) for flow in flows} == {
                (f"shop/front->shop/cart:{mesh.service}/TCP", True, "learned/1")
            }

        status, body = await front.get("/stats")
        stats = json.loads(body)
        assert status == 200
        assert stats["policy"]["version"] == 1
        assert stats["flows"]["records"] == 1
        assert stats["tunnels"]["outbound"] >= 1

        # a push without the rule closes it, and the refusal is reported
        controller.push(snapshot(2), WORKLOAD)
        await until(lambda: any(ack.version == 2 for w in controller.watchers for ack in w.acks))
        assert await ask(mesh.entrance) == b""
        await until(lambda: any(flow.verdict is Verdict.DENY for flow in controller.flows))
        mesh.allow(3)
        await until(lambda: sum(ack.version == 3 for w in controller.watchers for ack in w.acks) == 2)
        assert await ask(mesh.entrance) == b"hello"

        # the controller dies: nothing changes for the traffic
        await controller.stop()
        assert await ask(mesh.entrance) == b"hello"

        # and a sidecar that restarts meanwhile is ready from its disk alone
        assert await front.terminate() == 0
        async with front:
            await front.ready()
            assert await ask(mesh.entrance) == b"hello"
            assert json.loads((await front.get("/stats"))[1])["policy"]["version"] == 3
            await controller.start()
            await until(lambda: controller.watchers[-1].hello.held_version == 3)
            assert await front.terminate() == 0
        assert await cart.terminate() == 0
    opened = sum(flow.connections for flow in reported(Direction.INBOUND) if flow.verdict is Verdict.ALLOW)
    assert opened == 4
    for process in (front, cart):
        log = process.log.read_text()
        assert "Traceback" not in log, log
        assert "PRIVATE KEY" not in log
        assert "token-" not in log


async def test_renewal_in_seconds_under_traffic_fails_no_request(controller, tmp_path):
    controller.lifetime = 3.0
    mesh = Mesh(controller, tmp_path)
    mesh.allow(1)
    server = await asyncio.start_server(echo, "127.0.0.1", mesh.application)
    async with server, mesh.front as front, mesh.cart as cart:
        await asyncio.gather(front.ready(), cart.ready())
        signatures = controller.signatures
        while controller.signatures < signatures + 6:
            assert await ask(mesh.entrance) == b"hello", front.log.read_text() + cart.log.read_text()
        assert await front.terminate() == 0
        assert await cart.terminate() == 0


async def test_the_process_is_hardened(controller, tmp_path):
    listen = {"listen": f"127.0.0.1:{free_port()}", "destination": "127.0.77.9:80"}
    async with Process(controller, tmp_path, WORKLOAD, CART_ADDRESS, explicit={"outbound": [listen]}) as process:
        controller.push(snapshot(1))
        await process.ready()
        proc = Path("/proc") / str(process.child.pid)
        environment = dict(item.split(b"=", 1) for item in (proc / "environ").read_bytes().split(b"\0") if item)
        assert environment[b"MALLOC_MMAP_THRESHOLD_"] == b"67108864"
        assert environment[b"MALLOC_TRIM_THRESHOLD_"] == b"134217728"
        limits = (proc / "limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
        assert await process.terminate() == 0


def test_no_other_process_of_its_user_reads_its_memory():
    script = (
        "import ctypes; from sidecar.__main__ import protect_memory\n"
        "dumpable = lambda: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)\n"
        "before = dumpable(); protect_memory(); print(before, dumpable())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60, capture_output=True)
    assert done.stdout.split() == [b"1", b"0"]


async def test_it_works_as_its_own_user_with_protected_memory(controller):
    # not below pytest's folder, which is root's alone; a process that protects its memory loses its own /proc files
    with tempfile.TemporaryDirectory(prefix="hedgerow-D-") as name:
        directory = Path(name)
        listen = {"listen": f"127.0.0.1:{free_port()}", "destination": "127.0.77.9:80"}
        process = Process(controller, directory, WORKLOAD, CART_ADDRESS, explicit={"outbound": [listen]})
        process.user = 1337
        for path in (directory, process.directory, process.token):
            os.chown(path, 1337, 1337)
        controller.push(snapshot(1))
        async with process:
            await process.ready()
            memory = Path("/proc") / str(process.child.pid) / "mem"
            assert memory.stat().st_uid == 0  # the sign of protected memory
            assert await process.terminate() == 0


async def test_it_is_not_ready_before_it_has_a_policy(controller, tmp_path):
    listen = {"listen": f"127.0.0.1:{free_port()}", "destination": "127.0.77.9:80"}
    async with Process(controller, tmp_path, WORKLOAD, CART_ADDRESS, explicit={"outbound": [listen]}) as process:
        body = ""
        async with asyncio.timeout(30):
            while "no policy snapshot yet" not in body:
                with contextlib.suppress(OSError):
                    status, body = await process.get("/healthz/ready")
                    assert status == 503
                await asyncio.sleep(0.02)
        controller.push(snapshot(1))
        await process.ready()
        assert await process.terminate() == 0


async def test_sigterm_ends_it_while_it_waits_for_the_issuer(controller, tmp_path):
    await controller.stop()
    listen = {"listen": f"127.0.0.1:{free_port()}", "destination": "127.0.77.9:80"}
    async with Process(controller, tmp_path, WORKLOAD, CART_ADDRESS, explicit={"outbound": [listen]}) as process:
        async with asyncio.timeout(30):
            body = ""
            while "waiting for a first certificate" not in body:
                with contextlib.suppress(OSError):
                    _, body = await process.get("/healthz/ready")
                await asyncio.sleep(0.02)
        assert await process.terminate() == 0
        assert process.token.exists()


def start_and_fail(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


async def fail(process):
    process.config.write_text(yaml.safe_dump(process.document))
    return await asyncio.to_thread(start_and_fail, "--config", str(process.config))


EXPLICIT = {"outbound": [{"listen": "127.0.0.1:1", "destination": "127.0.77.9:80"}]}


async def test_a_wrong_setting_is_exit_code_2(controller, tmp_path):
    process = Process(controller, tmp_path, WORKLOAD, CART_ADDRESS, explicit=EXPLICIT, unsynced="dney")
    code, said = await fail(process)
    assert code == 2
    assert "unsynced" in said
    assert "deny, learn" in said


async def test_a_reused_token_is_exit_code_1_with_the_remedy(controller, tmp_path):
    process = Process(controller, tmp_path, WORKLOAD, CART_ADDRESS, explicit=EXPLICIT)
    del controller.tokens["token-cart"]
    code, said = await fail(process)
    assert code == 1
    assert "join_token_file" in said
    assert "used before" in said
    assert "new join token" in said
    assert "token-cart" not in said


async def test_a_busy_port_is_named(controller, tmp_path):
    process = Process(controller, tmp_path, WORKLOAD, CART_ADDRESS, explicit=EXPLICIT)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", process.ready_port))
        taken.listen()
        code, said = await fail(process)
    assert code == 2
    assert "ready_listen" in said
    assert str(process.ready_port) in said


async def test_a_busy_declared_port_is_named(controller, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        explicit = {"outbound": [{"listen": f"127.0.0.1:{port}", "destination": "127.0.77.9:80"}]}
        process = Process(controller, tmp_path, WORKLOAD, CART_ADDRESS, explicit=explicit)
        code, said = await fail(process)
    assert code == 2
    assert str(port) in said


async def test_capture_as_another_user_is_refused(controller, tmp_path):
    process = Process(controller, tmp_path, WORKLOAD, CART_ADDRESS, capture="redirect", uid=os.geteuid() + 1)
    code, said = await fail(process)
    assert code == 2
    assert "uid" in said
    assert "setpriv" in said


def test_wrong_arguments_are_exit_code_2():
    assert start_and_fail()[0] == 2
    assert start_and_fail("--config")[0] == 2
    code, said = start_and_fail("capture")
    assert code == 2
    assert "--config" in said


@pytest.mark.parametrize("module", ["networkx", "kubernetes", "sqlalchemy", "aiohttp", "mitmproxy", "yaml"])
def test_heavy_modules_stay_out(module):
    script = f"import sys, sidecar.app, sidecar.__main__; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, timeout=60).returncode == 0
