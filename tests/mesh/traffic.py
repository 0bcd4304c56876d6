"""Traffic that tests keep going while they break or change things, and single attempts to connect."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from graph.model import Port, WorkloadRef
from hedgerow.local.description import Program, ServedAs, WorkloadSpec
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.processes import Process
from tests.mesh.running import Traffic, script

_numbers = itertools.count()

#: What :func:`reach` says of a connection that was refused.
REFUSED = "refused"


def web(name: str, *ports: int, **more: Any) -> WorkloadSpec:
    """A workload whose pods answer HTTP on ``ports`` with their address, behind a service of its name."""
    ref = WorkloadRef.parse(name)
    return WorkloadSpec(
        ref,
        Program(script("web_server.py", "${address}", *ports)),
        ports=tuple(Port(port, name=f"http-{port}", app_protocol="http") for port in ports),
        services=(ServedAs(ref.name, tuple((port, port) for port in ports)),),
        service_account=ref.name,
        **more,
    )


@dataclass(frozen=True, slots=True)
class Tally:
    """What clients of one kind did so far.

    :param answered_by: requests by the address of the pod that answered
    """

    requests: int = 0
    failed: int = 0
    connections: int = 0
    answered_by: Mapping[str, int] = field(default_factory=Counter)
    errors: tuple[str, ...] = ()

    @property
    def answered(self) -> int:
        return sum(self.answered_by.values())


class Load:
    """A request loop in a pod. Use as an asynchronous context manager.

    :param target: ``HOST:PORT``, placeholders of the mesh included
    :param fresh: clients that make a connection for every request
    :param kept: clients that keep theirs for ``reuse`` requests, 0: for ever
    """

    def __init__(
        self, mesh: LocalMesh, pod: str, target: str, *, fresh: int = 1, kept: int = 1, reuse: int = 0
    ) -> None:
        self._mesh = mesh
        self._pod = mesh.pod(pod)
        host, _, port = target.rpartition(":")
        options = ("--fresh", fresh, "--kept", kept, "--reuse", reuse)
        self._argv = script("load.py", host, port, *options)
        self._kinds = [name for name, many in (("fresh", fresh), ("kept", kept)) if many]
        self._process = Process(f"load in {pod}", mesh.root / f"load-{next(_numbers)}.log")

    async def __aenter__(self) -> Self:
        await self._pod.spawn(self._process, self._argv)
        try:
            await self.more(1)
        except BaseException:
            await self._process.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._process.kill()

    def tallies(self) -> dict[str, Tally]:
        """What was last said, by kind."""
        said = self._last()
        return {name: _tally(said[name]) for name in self._kinds} if said else dict.fromkeys(self._kinds, Tally())

    def total(self) -> Tally:
        return _sum(self.tallies().values())

    async def more(self, requests: int, deadline: float = 60.0) -> None:
        """Wait until each kind of client was answered so many times more.

        :raises NotReady: when they were not in time; also when one of them failed
        """
        before = self.tallies()

        async def answered() -> bool:
            assert self._process.running, f"the load has ended: {self._process.tail()}"
            now = self.tallies()
            if any(now[name].failed > before[name].failed for name in now):
                return True
            return all(now[name].answered >= before[name].answered + requests for name in now)

        await self._mesh.wait_for(answered, f"{requests} more requests to be answered", deadline)
        self.check()

    def check(self) -> None:
        """Nothing has failed so far."""
        for name, tally in self.tallies().items():
            problem = f"{tally.failed} of {tally.requests} requests ({name}) failed: {'; '.join(tally.errors[:5])}"
            assert (tally.failed, tally.errors) == (0, ()), problem

    async def end(self, deadline: float = 30.0) -> dict[str, Tally]:
        """Let every client finish its request, and return what they did in all. Nothing may have failed."""
        await self._process.stop(grace=deadline)
        said = self._last()
        assert said == {**(said or {}), "ended": True}, f"the load did not end as it should: {self._process.tail(3)}"
        self.check()
        return self.tallies()

    def _last(self) -> dict[str, Any] | None:
        """The last whole line that the clients wrote."""
        for line in reversed(self._process.tail(3).splitlines()):
            try:
                said = json.loads(line)
            except json.JSONDecodeError:  # half of a line, or the last words of a traceback
                continue
            if isinstance(said, dict):
                return said
        return None


def _tally(said: Mapping[str, Any]) -> Tally:
    counts = (said["requests"], said["failed"], said["connections"])
    return Tally(*counts, Counter(said["answered_by"]), tuple(said["errors"]))


def _sum(tallies: Iterable[Tally]) -> Tally:
    tallies = list(tallies)
    by: Counter[str] = Counter()
    for tally in tallies:
        by.update(tally.answered_by)
    counts = (sum(getattr(tally, name) for tally in tallies) for name in ("requests", "failed", "connections"))
    return Tally(*counts, by, tuple(error for tally in tallies for error in tally.errors))


def connections(made: int) -> Traffic:
    """For :func:`tests.mesh.running.counted`, where bytes are beside the point."""
    return Traffic(made, (0, 0), (0, 0))


class Held:
    """One connection, held open and used. Use as an asynchronous context manager; it works when that is entered.

    :param target: ``HOST:PORT``, placeholders of the mesh included
    """

    def __init__(self, mesh: LocalMesh, pod: str, target: str) -> None:
        self._mesh = mesh
        self._pod = mesh.pod(pod)
        host, _, port = target.rpartition(":")
        self._argv = script("held.py", host, port)
        self._process = Process(f"a connection of {pod}", mesh.root / f"held-{next(_numbers)}.log")

    async def __aenter__(self) -> Self:
        await self._pod.spawn(self._process, self._argv)
        try:
            await self._mesh.wait_for(self._answered, f"an answer to {self._process.name}")
        except BaseException:
            await self._process.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._process.kill()

    async def _answered(self) -> bool:
        assert self._process.running, f"it was never answered: {self._process.tail()}"
        return bool(self.answers())

    def events(self) -> list[dict[str, Any]]:
        *whole, _ = self._process.log.read_text().split("\n")
        return [json.loads(line) for line in whole]

    def answers(self) -> list[float]:
        """When each question was asked that was answered, seconds since the epoch."""
        return [event["asked"] for event in self.events() if event["event"] == "answered"]

    @property
    def is_cut(self) -> bool:
        return self.events()[-1]["event"] == "cut"

    async def cut(self, deadline: float = 15.0) -> float:
        """Wait until it is cut; when that was, seconds since the epoch."""

        async def ended() -> bool:
            return self.is_cut

        await self._mesh.wait_for(ended, f"the end of {self._process.name}", deadline)
        return float(self.events()[-1]["at"])


async def reach(mesh: LocalMesh, pod: str, *addresses: str) -> dict[str, str]:
    """Connect once from a pod to each ``HOST:PORT``: the address of the pod that answered, or :data:`REFUSED`.

    A connection of which nothing comes is neither, and the test fails: refusals are to be said.
    """
    done = await mesh.pod(pod).exec(script("reach.py", *addresses))
    assert done.code == 0, done.stderr
    said = dict(zip(addresses, json.loads(done.stdout).values(), strict=True))
    assert "silent" not in said.values(), f"{pod} heard nothing at all: {said}"
    return said


async def reaches(mesh: LocalMesh, pod: str, address: str) -> bool:
    """Whether one connection from a pod is answered."""
    said = (await reach(mesh, pod, address))[address]
    assert said == REFUSED or said in {each.address for each in mesh.pods.values()}, said
    return said != REFUSED
