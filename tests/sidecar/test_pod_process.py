"""A sidecar process as a container of a pod: settings from the environment, a read-only root, probes, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys

import pytest

from certs.spiffe import SpiffeId
from tests.sidecar.fake_controller import TRUST_DOMAIN, WORKLOAD, snapshot, until
from tests.sidecar.processes import CART_ADDRESS, ROOT, Mesh, Process, ask, echo, free_port

#: Everything that is mounted becomes read-only, but for what a container has of its own anyway. (What lies hidden below
#: another mount can not be changed, nor written to.)
READ_ONLY = """
mount --bind {state} {state}
while read -r _ _ _ _ at _; do
  case "$at" in {state}|/proc|/proc/*|/sys|/sys/*|/dev|/dev/*) ;; *) mount -o remount,bind,ro "$at" 2>&- || : ;; esac
done < /proc/self/mountinfo
for at in {beside} {root} / /tmp /var/tmp /run "$HOME"; do
  if touch "$at/hedgerow-probe" 2>&-; then echo "$at can be written to"; exit 1; fi
done
exec {command}
"""


class Container(Process):
    """A process whose settings are an environment variable and whose root is read-only."""

    async def start(self):
        state = self.directory / "state"
        state.mkdir(mode=0o700, exist_ok=True)
        command = shlex.join([sys.executable, "-m", "sidecar", "--config-env", "HEDGEROW_SIDECAR", *self.arguments])
        script = READ_ONLY.format(state=shlex.quote(str(state)), beside=self.directory, root=ROOT, command=command)
        environment = os.environ | {"HEDGEROW_SIDECAR": json.dumps(self.document)}
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *("unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", script),
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )


@pytest.mark.parametrize("workers", [1, 2])
async def test_with_a_read_only_root_a_startup_probe_passes_when_the_pod_may_begin(controller, tmp_path, workers):
    if os.geteuid() != 0:
        pytest.skip("needs root for a mount namespace")
    listen = {"listen": f"127.0.0.1:{free_port()}", "destination": "127.0.77.9:80"}
    token = tmp_path / "pod-token"
    pod = Container(
        controller,
        tmp_path,
        WORKLOAD,
        CART_ADDRESS,
        explicit={"outbound": [listen]},
        workers=workers,
        service_account_token_file=str(token),
    )
    del pod.document["join_token_file"]
    pod.document["addresses"] = CART_ADDRESS  # as $(POD_IPS) gives it
    async with pod:
        status, text = 0, ""

        async def probed():
            nonlocal status, text
            try:
                status, text = await pod.get("/healthz/ready")
            except OSError:
                assert pod.child.returncode is None, pod.log.read_text()
            return "service_account_token_file" in text

        async with asyncio.timeout(30):
            while not await probed():  # noqa: ASYNC110  # another process has no event for it
                await asyncio.sleep(0.05)
        assert status == 503
        assert "mount a projected volume" in text
        token.write_text("of.the.pod")
        identity = SpiffeId.for_workload(TRUST_DOMAIN, WORKLOAD.namespace, "default", WORKLOAD.name)
        controller.pod_tokens["of.the.pod"] = (identity, pod.instance)
        controller.push(snapshot(1))
        await pod.ready()
        assert await pod.restart() == 0  # in place, as a container that was killed would be
        await pod.ready()
        assert await pod.terminate() == 0
    log = pod.log.read_text()
    assert "Traceback" not in log, log
    assert "Read-only file system" not in log, log
    assert "of.the.pod" not in log


async def test_told_to_end_it_serves_on_until_peers_know(controller, tmp_path):
    mesh = Mesh(controller, tmp_path)
    mesh.allow(1)
    server = await asyncio.start_server(echo, "127.0.0.1", mesh.application)
    mesh.cart.document |= {"hold_seconds": 3600}
    async with server, mesh.front as front, mesh.cart as cart:
        await asyncio.gather(front.ready(), cart.ready())
        assert await ask(mesh.entrance) == b"hello"
        cart.child.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            while (await cart.get("/healthz/ready"))[0] != 503:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.02)
        for _ in range(20):
            assert await ask(mesh.entrance) == b"hello"
        # a new tunnel, too: nothing has been told to go elsewhere
        assert await front.terminate() == 0
        async with front:
            await front.ready()
            assert await ask(mesh.entrance) == b"hello"
            assert cart.child.returncode is None
            assert await cart.terminate() == 0  # told again
            assert await front.terminate() == 0
    await until(lambda: sum(flow.connections for flow in controller.flows) >= 2 * 22, "every connection is reported")
