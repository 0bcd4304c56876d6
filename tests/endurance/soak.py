"""A mesh of real processes at half of what it can carry, watched from outside: what grows with time is a leak.

The load runs twice as long as nothing: before it and after it the mesh is quiet, and has to hold the same descriptors,
tasks and threads both times, no connection, and no byte. In between memory is sampled, and the line through the samples
after the warm-up says how fast it grows.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graph.flow import EdgeKey
from graph.model import Port, WorkloadRef
from hedgerow.local.description import Program, ServedAs, WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.pod import Pod
from hedgerow.local.processes import Process, python
from tests.endurance.trends import Trend, trend

PROGRAMS = Path(__file__).parent / "programs"
FRONT, WEB, STORE = "test/front-0", "test/web-0", "test/store-0"
WEB_PORT, RULED_PORT, STORE_PORT, DENIED_PORT = 8080, 8081, 9000, 9001
LARGE = 2 << 20
#: Seconds in which the mesh must have let go of everything that ended.
SETTLE = 30.0
#: Edges are learned at once, because nobody but us is there.
LEARNING = {"min_connections": 1, "min_seconds": 0.2, "quiet_seconds": 0.5}
REPORT_INTERVAL = 2.0


def workloads() -> list[WorkloadSpec]:
    """A client, an HTTP server and a server of nobody's protocol."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    assert nginx is not None, "nginx is not installed, and this test needs it: run .ci/system-packages test"
    files = f"mkdir -p /run/pod/www && head -c {LARGE} /dev/urandom >/run/pod/www/large"
    web = Program(("sh", "-ec", f"{files}; exec {nginx} -c {PROGRAMS}/nginx.conf"))
    store = Program((*python(), str(PROGRAMS / "store.py"), str(STORE_PORT), str(DENIED_PORT)))
    return [
        WorkloadSpec(WorkloadRef("test", "front"), service_account="front"),
        _served("web", web, "http", WEB_PORT, RULED_PORT),
        _served("store", store, "tcp", STORE_PORT, DENIED_PORT),
    ]


def _served(name: str, program: Program, protocol: str, *ports: int) -> WorkloadSpec:
    return WorkloadSpec(
        WorkloadRef("test", name),
        program,
        ports=tuple(Port(port, name=f"{protocol}-{port}", app_protocol=protocol) for port in ports),
        services=(ServedAs(name, tuple((port, port) for port in ports)),),
        service_account=name,
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """One sidecar at one moment, by its administration port; bytes and counts.

    :param at: seconds since the load began
    :param files: of what is resident, pages of files: program code that is used now and then
    :param blocks: pieces of memory that Python has in use
    :param buffered: bytes held for receivers that do not read
    """

    at: float
    resident: int
    files: int
    blocks: int
    descriptors: int
    tasks: int
    threads: int
    tunnels: int
    streams: int
    connections: int
    buffered: int
    flows_waiting: int
    process: int

    @property
    def unexplained(self) -> int:
        """Descriptors beside those of streams: how many of these there are is up to the load, and to the machine."""
        return self.descriptors - self.streams


async def sample(pod: Pod, began: float) -> Sample:
    """Look at the sidecar of ``pod``, from inside the pod."""
    pages = [f"http://localhost:15000/{page}" for page in ("memory", "stats")]
    done = await pod.exec(["curl", "--silent", "--show-error", "--fail", *pages])
    assert done.code == 0, f"{pod.name}: {done.stderr}"
    memory, end = json.JSONDecoder().raw_decode(done.stdout)
    stats = json.loads(done.stdout[end:])
    return Sample(
        at=time.monotonic() - began,
        resident=memory["resident_bytes"],
        files=memory["file_bytes"],
        blocks=memory["allocated_blocks"],
        descriptors=memory["open_descriptors"],
        tasks=memory["tasks"],
        threads=len(memory["threads"]),
        tunnels=sum(stats["tunnels"].values()),
        streams=sum(stats["streams"].values()),
        connections=stats["connections"],
        buffered=stats["buffered"],
        flows_waiting=stats["flows"]["waiting"],
        process=memory["process"],
    )


@dataclass(frozen=True, slots=True)
class Course:
    """One sidecar through the whole soak.

    :param quiet_before: before the load, after everything was used once; ``quiet_after`` after its end
    :param samples: under load, after the warm-up
    """

    pod: str
    quiet_before: Sample
    samples: tuple[Sample, ...]
    quiet_after: Sample

    def trend(self, name: str) -> Trend:
        """How a field of the samples grows."""
        return trend([each.at for each in self.samples], [float(getattr(each, name)) for each in self.samples])


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a soak.

    :param seconds: of load, warm-up included
    :param rate: operations a second that were begun
    :param left_out: of them, because too many were in hand
    :param done: by kind; ``failed`` likewise
    """

    seconds: float
    warm_up: float
    rate: float
    left_out: int
    done: dict[str, int]
    failed: dict[str, int]
    errors: list[str]
    courses: tuple[Course, ...]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.document(), indent=1))

    def document(self) -> dict[str, Any]:
        """For JSON, with the trends of every number."""
        made = asdict(self)
        for course, written in zip(self.courses, made["courses"], strict=True):
            numbers = [name for name in Sample.__dataclass_fields__ if name not in ("at", "process")]
            written["an_hour"] = {name: round(course.trend(name).an_hour, 3) for name in numbers}
            written["error_an_hour"] = {name: round(course.trend(name).error * 3600, 3) for name in numbers}
        return made


class Load:
    """The mixed load in the client's pod.

    :param part: of what was possible in ``measure`` seconds, but no more than ``most`` operations a second
    """

    def __init__(self, mesh: LocalMesh, name: str, *, measure: float, part: float, most: float) -> None:
        self._mesh = mesh
        self._process = Process(name, mesh.root / f"{name}.log")
        targets = [f"${{service:web}}:{port}" for port in (WEB_PORT, RULED_PORT)]
        targets += [f"${{service:store}}:{port}" for port in (STORE_PORT, DENIED_PORT)]
        options = ("--measure", measure, "--part", part, "--most", most)
        self._argv = [*python(), str(PROGRAMS / "mixed_load.py"), *targets, *map(str, options)]

    async def start(self) -> None:
        """Returns when the rate is found."""
        await self._mesh.pod(FRONT).spawn(self._process, self._argv)

        async def found() -> bool:
            self.check_running()
            return self.said().get("rate", 0) > 0

        await self._mesh.wait_for(found, "the rate of the load", 60)

    def check_running(self) -> None:
        assert self._process.running, f"the load has ended: {self._process.tail()}"

    async def end(self) -> dict[str, Any]:
        """Finish what is in hand; the last counts."""
        await self._process.stop(grace=60)
        said = self.said()
        assert said.get("ended"), f"the load did not end as it should: {self._process.tail(3)}"
        return said

    async def kill(self) -> None:
        if self._process.running:
            await self._process.kill()

    def said(self) -> dict[str, Any]:
        """The last whole line."""
        for line in reversed(self._process.tail(3).splitlines()):
            with suppress(json.JSONDecodeError):
                said = json.loads(line)
                if isinstance(said, dict):
                    return said
        return {}


async def soak(seconds: float, *, warm_up: float, interval: float, most: float = 1e9) -> Report:
    """Run a mesh under half load.

    :param seconds: of load, ``warm_up`` included, after which one sample of every sidecar is taken every ``interval``
    :param most: operations a second, whatever this machine could do
    """
    settings = {"report_interval": REPORT_INTERVAL}
    mesh = LocalMesh(workloads(), controller_settings={"learning": LEARNING}, sidecar_settings=settings)
    async with mesh:
        await _close(mesh)
        first = Load(mesh, "first", measure=1.0, part=0.5, most=most)
        load = Load(mesh, "load", measure=min(10.0, seconds / 4), part=0.5, most=most)
        try:
            await first.start()  # everything was imported, dialled and asked for once
            await first.end()
            before = await _quiet(mesh)
            await load.start()
            began = time.monotonic()
            await asyncio.sleep(warm_up)
            taken: dict[str, list[Sample]] = {pod: [] for pod in before}
            while (left := began + seconds - time.monotonic()) > 0:
                load.check_running()
                for pod in before:
                    taken[pod].append(await sample(mesh.pod(pod), began))
                await asyncio.sleep(min(interval, left))
            said = await load.end()
        finally:
            await first.kill()
            await load.kill()
        after = await _quiet(mesh)
        faults = [name for name, text in _logs(mesh) if "Traceback" in text or "a fault in the data path" in text]
        assert not faults, f"{faults}: {[text[-4000:] for name, text in _logs(mesh) if name in faults]}"
    courses = tuple(Course(pod, before[pod], tuple(taken[pod]), after[pod]) for pod in before)
    counts = (said["left_out"], said["done"], said["failed"], said["errors"])
    return Report(seconds, warm_up, said["rate"], *counts, courses)


async def _close(mesh: LocalMesh) -> None:
    """Learn what the load needs, enforce that, and deny one operation on one port."""
    edges = [EdgeKey.parse(f"test/front->test/web:{port}/TCP") for port in (WEB_PORT, RULED_PORT)]
    edges.append(EdgeKey.parse(f"test/front->test/store:{STORE_PORT}/TCP"))
    for edge in edges:
        target = f"${{service:{edge.destination.name}}}:{edge.port}"
        done = await mesh.pod(FRONT).exec(
            ["curl", "--silent", "--http0.9", "--max-time", "2", f"http://{target}/items/1"]
        )
        assert done.stdout, f"{target}: {done.stderr}"

    async def learned() -> bool:
        shown = {each["id"]: each["state"] for each in (await mesh.api.get("/graph"))["edges"]}
        return all(shown.get(str(edge)) == "active" for edge in edges)

    await mesh.wait_for(learned, "the edges to be learned")
    because = {"owner": "tests", "reason": "the soak"}
    closed = {"namespace": "test", "direction": "both", "mode": "enforce", "inbound_tls": "strict", **because}
    denied = {
        "effect": "deny",
        "from": "test/front",
        "to": "test/web",
        "port": RULED_PORT,
        "expires_in": None,
        **because,
    }
    for path, asked in (("/modes", closed), ("/overrides", {**denied, "operations": ["DELETE /items/{id}"]})):
        assert (await mesh.api.post(path, asked))["pushed"], f"not every sidecar has taken {path}"


async def _quiet(mesh: LocalMesh) -> dict[str, Sample]:
    """Every sidecar, once it has let go of all that ended."""
    return {name: await _settled(mesh, name) for name in (FRONT, WEB, STORE)}


async def _settled(mesh: LocalMesh, name: str) -> Sample:
    """The second of two looks between which nothing changed, at a time when nothing is open."""
    before: Sample | None = None

    async def settled() -> Sample | None:
        nonlocal before
        last, before = before, await sample(mesh.pod(name), time.monotonic())
        same = last is not None and (last.descriptors, last.tasks, last.threads) == (
            before.descriptors,
            before.tasks,
            before.threads,
        )
        if same and not (before.connections or before.streams or before.buffered or before.flows_waiting):
            return before
        await asyncio.sleep(1.0)  # the two looks are apart
        return None

    found = await mesh.wait_for(settled, f"{name} to be quiet", SETTLE)
    assert found is not None
    return found


def _logs(mesh: LocalMesh) -> Sequence[tuple[str, str]]:
    processes = [mesh.controller, *(pod.sidecar for pod in mesh.pods.values())]
    return [(each.name, each.log.read_text(errors="replace")) for each in processes if each.log.exists()]
