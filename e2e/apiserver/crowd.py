"""Very many pods that come and go, written as cheaply as can be: who writes shares the machine with what is measured.

Objects are bytes that were made before, sent over a few connections that stay open; answers are read and not decoded.
Pods belong to ConfigMaps, so that nobody but this removes or replaces them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from e2e.apiserver.simulated import Kubelet, endpoint_slice, pod_spec, service

A_WORKLOAD = 10
AT_ONCE = 8
_MERGE = "application/merge-patch+json"
_JSON = "application/json"
_NAME, _ADDRESS = "@name@", "@address@"
_RUNNING = {
    "status": {
        "phase": "Running",
        "podIP": _ADDRESS,
        "podIPs": [{"ip": _ADDRESS}],
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }
}


class Writer:
    """Sends bytes to an API server as its administrator."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, kubeconfig: Path, directory: Path) -> AsyncIterator[Writer]:
        """:param kubeconfig: with a client certificate; ``directory`` for that, as files"""
        url, tls = _access(kubeconfig, directory)
        connector = aiohttp.TCPConnector(limit=AT_ONCE, ssl=tls)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield cls(session, url)

    async def send(self, method: str, path: str, body: bytes, form: str = _JSON) -> bytes:
        """:returns: the answer, as it came"""
        async with self._session.request(method, self._url + path, data=body, headers={"Content-Type": form}) as answer:
            content = await answer.read()
            assert answer.status < 300, f"{method} {path}: {answer.status} {content[:500]!r}"
            return content


def _access(kubeconfig: Path, directory: Path) -> tuple[str, ssl.SSLContext]:
    found = yaml.safe_load(kubeconfig.read_text())
    cluster, user = found["clusters"][0]["cluster"], found["users"][0]["user"]
    given = {"ca": cluster["certificate-authority-data"], "key": user["client-key-data"]}
    given |= {"certificate": user["client-certificate-data"]}
    for name, content in given.items():
        (directory / f"writer-{name}.pem").write_bytes(base64.b64decode(content))
    tls = ssl.create_default_context(cafile=str(directory / "writer-ca.pem"))
    tls.load_cert_chain(directory / "writer-certificate.pem", directory / "writer-key.pem")
    return cluster["server"], tls


def _bytes(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


class Crowd:
    """Pods of one namespace, in workloads of ten, each with a service and a slice.

    :ivar running: the addresses of those that run, by name
    """

    def __init__(self, writer: Writer, kubelet: Kubelet, namespace: str) -> None:
        self.writer = writer
        self.running: dict[str, str] = {}
        self._kubelet = kubelet
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        self._in = namespace
        self._members: dict[int, dict[str, str]] = {}
        self._made_of: dict[int, bytes] = {}
        self._count = 0

    async def grow(self, count: int) -> None:
        """So many pods that run."""
        first = len(self._members)
        await _each(range(first, first + count // A_WORKLOAD), self._begin)
        await self.refill()

    async def refill(self) -> None:
        """Let every workload have all of its pods."""
        await _each([group for group, held in self._members.items() if len(held) < A_WORKLOAD], self._fill)

    async def _begin(self, group: int) -> None:
        name, core = f"w{group}", f"/api/v1/namespaces/{self._in}"
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
        made = json.loads(await self.writer.send("POST", f"{core}/configmaps", _bytes(body)))
        owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": made["metadata"]["uid"]}
        metadata = {"name": _NAME, "labels": {"app": name}, "ownerReferences": [{**owner, "controller": True}]}
        self._made_of[group] = _bytes({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec()})
        self._members[group] = {}
        await self.writer.send("POST", f"{core}/services", _bytes(service(name, None)))
        await self.writer.send("POST", self._slices, _bytes(endpoint_slice(name, name, 8080)))

    async def _fill(self, group: int) -> None:
        for _ in range(A_WORKLOAD - len(self._members[group])):
            await self._add(group)
        await self._publish(group)

    async def _add(self, group: int) -> None:
        self._count += 1
        name, address = f"w{group}-{self._count}", self._kubelet.address()
        await self.writer.send("POST", self._pods, self._made_of[group].replace(_NAME.encode(), name.encode()))
        status = _STATUS.replace(_ADDRESS.encode(), address.encode())
        await self.writer.send("PATCH", f"{self._pods}/{name}/status", status, _MERGE)
        self._members[group][name] = self.running[name] = address

    async def _remove(self, group: int, name: str) -> None:
        del self._members[group][name], self.running[name]
        await self.writer.send("DELETE", f"{self._pods}/{name}", _AT_ONCE)

    async def _publish(self, group: int) -> None:
        endpoints = [{"addresses": [at], "conditions": {"ready": True}} for at in self._members[group].values()]
        await self.writer.send("PATCH", f"{self._slices}/w{group}", _bytes({"endpoints": endpoints}), _MERGE)

    async def churn(self, seconds: float, rate: float) -> float:
        """Replace ``rate`` pods a second, or as many as can be. :returns: how many it were in a second"""
        began, begun, done = time.monotonic(), 0, 0
        groups = list(self._members)

        async def take(own: list[int]) -> None:
            """Each has workloads of its own, so that two never write the same slice."""
            nonlocal begun, done
            turn = 0
            while True:
                due = began + begun / rate
                if max(due, time.monotonic()) >= began + seconds:
                    return
                begun += 1
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                group, turn = own[turn % len(own)], turn + 1
                await self._remove(group, next(iter(self._members[group])))
                await self._add(group)
                await self._publish(group)
                done += 1

        async with asyncio.TaskGroup() as tasks:
            for number in range(min(AT_ONCE, len(groups))):
                tasks.create_task(take(groups[number::AT_ONCE]))
        return done / (time.monotonic() - began)

    async def shrink(self, share: float) -> None:
        """Remove the pods of so many of the workloads."""
        await _each(list(self._members)[: int(len(self._members) * share)], self._empty)

    async def _empty(self, group: int) -> None:
        for name in list(self._members[group]):
            await self._remove(group, name)
        await self._publish(group)

    def behind(self) -> dict[str, set[str]]:
        """The addresses behind each service."""
        return {f"w{group}": set(held.values()) for group, held in self._members.items()}


_STATUS = _bytes(_RUNNING)
_AT_ONCE = _bytes({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0})


async def _each[T](work: Iterable[T], do: Callable[[T], Awaitable[None]]) -> None:
    """Some at a time."""
    queue = iter(work)

    async def take() -> None:
        for each in queue:
            await do(each)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(take())
