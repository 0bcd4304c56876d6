"""A controller of its own process before many pods that come and go: what it costs, and that it loses nothing.

In the suite with a few hundred pods. With ``HEDGEROW_SCALE_PODS=5000 HEDGEROW_SCALE_SECONDS=60`` it is the measurement
of docs/kubernetes.md; it prints what it found. Pods belong to ConfigMaps, so that nobody but this test makes or
removes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from controller.kube.client import Client
from controller.kube.kinds import CONFIG_MAPS, ENDPOINT_SLICES, PODS
from e2e.apiserver.simulated import Kubelet, deploy, endpoint_slice, pod_spec, service, settings
from e2e.harness.apiserver import ApiServer
from e2e.harness.programs import Program, free_ports

PODS_IN_ALL = int(os.environ.get("HEDGEROW_SCALE_PODS", "200"))
SECONDS = float(os.environ.get("HEDGEROW_SCALE_SECONDS", "6"))
#: Pods that are replaced in a second.
CHURN = float(os.environ.get("HEDGEROW_SCALE_CHURN", "50"))
A_WORKLOAD = 10
AT_ONCE = 8
ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


class Measured:
    """A controller as a process, and what it says and costs."""

    def __init__(self, program: Program, state: Path, port: int) -> None:
        self._program, self._state, self._port = program, state, port

    def inventory(self) -> dict[str, Any]:
        token = (self._state / "viewer.token").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/api/v1/inventory", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def pods(self, namespace: str) -> dict[str, str]:
        try:
            instances = self.inventory()["instances"]
        except OSError:  # not serving yet
            return {}
        return {one["name"]: one["address"] for one in instances if one["workload"].startswith(f"{namespace}/")}

    async def until_serving(self) -> None:
        async with asyncio.timeout(100):
            while True:
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(self.inventory)
                    return
                await asyncio.sleep(0.2)

    async def until(self, namespace: str, wanted: dict[str, str]) -> None:
        async with asyncio.timeout(100):
            while await asyncio.to_thread(self.pods, namespace) != wanted:  # noqa: ASYNC110  # in another process
                await asyncio.sleep(0.5)

    def cpu(self) -> float:
        """Seconds."""
        fields = Path(f"/proc/{self._program.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> float:
        """MB that are resident."""
        status = Path(f"/proc/{self._program.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))) / 1024


@contextlib.contextmanager
def controller(kubeconfig: Path, directory: Path) -> Iterator[Measured]:
    port = free_ports(1)[0]
    state = directory / "state"
    document = {
        "state_dir": str(state),
        "grpc_listen": "127.0.0.1:0",
        "issuer_listen": "127.0.0.1:0",
        "web_listen": f"127.0.0.1:{port}",
        "kubernetes": {"kubeconfig": str(kubeconfig), "injector_certificate": "external"},
    }
    config = directory / "controller.yaml"
    config.write_text(yaml.safe_dump(document))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = Program(
        "controller",
        [sys.executable, "-m", "controller", "--config", str(config)],
        directory / "controller.log",
        environment,
    )
    program.start()
    try:
        yield Measured(program, state, port)
    finally:
        program.kill()


class Crowd:
    """Pods of one namespace, in workloads of ten, each with a service and a slice."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client, self.namespace = client, namespace
        self.kubelet = Kubelet(client)
        self.running: dict[str, str] = {}
        self._members: dict[int, dict[str, str]] = {}
        self._owners: dict[int, dict[str, Any]] = {}
        self._made = 0
        self._locks: dict[int, asyncio.Lock] = {}

    async def grow(self, count: int) -> None:
        for group in range(count // A_WORKLOAD):
            name = f"w{group}"
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
            made = await self.client.create(CONFIG_MAPS, body, self.namespace)
            uid = made["metadata"]["uid"]
            self._owners[group] = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "name": name,
                "uid": uid,
                "controller": True,
            }
            self._members[group], self._locks[group] = {}, asyncio.Lock()
            await deploy(self.client, self.namespace, service(name, None), endpoint_slice(name, name, 8080))
        await self._each([(group, A_WORKLOAD) for group in self._owners], self._fill)

    async def _each(self, work: list[Any], do: Any) -> None:
        queue = iter(work)

        async def take() -> None:
            for each in queue:
                await do(*each)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(take())

    async def _fill(self, group: int, count: int) -> None:
        for _ in range(count):
            await self._add(group)
        await self._publish(group)

    async def _add(self, group: int) -> None:
        self._made += 1
        name = f"w{group}-{self._made}"
        metadata = {"name": name, "labels": {"app": f"w{group}"}, "ownerReferences": [self._owners[group]]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec()}
        await self.client.create(PODS, body, self.namespace)
        self._members[group][name] = self.running[name] = await self.kubelet.run(self.namespace, name)

    async def _publish(self, group: int) -> None:
        endpoints = [{"addresses": [at], "conditions": {"ready": True}} for at in self._members[group].values()]
        await self.client.patch(ENDPOINT_SLICES, f"w{group}", {"endpoints": endpoints}, self.namespace)

    async def _remove(self, group: int, name: str) -> None:
        del self._members[group][name], self.running[name]
        await self.client.delete(PODS, name, self.namespace, grace=0)

    async def churn(self, seconds: float) -> float:
        """Replace pods. :returns: how many in a second"""
        began, done = time.monotonic(), 0
        groups = list(self._owners)

        async def take() -> None:
            nonlocal done
            while time.monotonic() < began + seconds:
                number, done = done, done + 1
                await asyncio.sleep(max(0.0, began + number / CHURN - time.monotonic()))
                group = groups[number % len(groups)]
                async with self._locks[group]:
                    await self._remove(group, next(iter(self._members[group])))
                    await self._add(group)
                    await self._publish(group)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(take())
        return done / (time.monotonic() - began)

    async def shrink(self, share: float) -> None:
        """Remove so many of the workloads' pods."""
        groups = list(self._owners)[: int(len(self._owners) * share)]
        await self._each([(group, list(self._members[group])) for group in groups], self._empty)

    async def _empty(self, group: int, names: list[str]) -> None:
        for name in names:
            await self._remove(group, name)
        await self._publish(group)


async def test_many_pods_that_come_and_go(apiserver: ApiServer, namespace: str, tmp_path: Path) -> None:
    figures: dict[str, Any] = {"pods": PODS_IN_ALL}
    async with Client(settings(apiserver.kubeconfig)) as client:
        crowd = Crowd(client, namespace)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(crowd.kubelet.alive())
            measured = stack.enter_context(controller(apiserver.kubeconfig, tmp_path))
            await measured.until_serving()
            figures["MB before"] = round(measured.memory())
            began, used = time.monotonic(), measured.cpu()
            await crowd.grow(PODS_IN_ALL)
            figures["pods a second while growing"] = round(PODS_IN_ALL / (time.monotonic() - began))
            figures["cores while growing"] = round((measured.cpu() - used) / (time.monotonic() - began), 2)
            await measured.until(namespace, crowd.running)
            figures["MB with all"] = round(measured.memory())
            print("scale so far:", json.dumps(figures), flush=True)
            began, used = time.monotonic(), measured.cpu()
            figures["churn"] = round(await crowd.churn(SECONDS), 1)
            share = (measured.cpu() - used) / (time.monotonic() - began)
            figures["cores while they come and go"] = round(share, 2)
            figures["MB after"] = round(measured.memory())
            await measured.until(namespace, crowd.running)
            services = {
                each["name"]: each for each in measured.inventory()["services"] if each["namespace"] == namespace
            }
            assert len(services) == PODS_IN_ALL // A_WORKLOAD
            for name, each in services.items():
                behind = {at["address"] for port in each["ports"] for at in port["endpoints"]}
                assert behind == {at for pod, at in crowd.running.items() if pod.startswith(f"{name}-")}
            # every watch is broken off at once, while more comes and goes
            await asyncio.to_thread(apiserver.stop)
            apiserver.start()
            await crowd.churn(SECONDS / 3)
            await measured.until(namespace, crowd.running)
            await crowd.shrink(0.9)
            await measured.until(namespace, crowd.running)
            figures["MB after -90 %"] = round(measured.memory())
    print("scale:", json.dumps(figures))
    assert share < 1.0, figures
    assert figures["MB after"] < figures["MB with all"] * 1.5, figures
