"""One run: make the beds and pairs that the wanted measures need, check them, measure in rounds, hand back figures.

Slices of all pairs are taken in a new random order in every round, so that a machine's phases, and whatever one slice
leaves behind for the next, fall on all alike. Any failed request ends the run.
"""

from __future__ import annotations

import math
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.dataplane import checks, envoy, haproxy, mitm
from bench.dataplane.identity import Identities, openssl_config
from bench.dataplane.interpreter import Interpreter, own
from bench.dataplane.launch import BenchFailed, Program, run
from bench.dataplane.load import LoadFailed, command, read
from bench.dataplane.measures import (
    AGAIN,
    DIRECT,
    ENVOY_CONNECT,
    ENVOY_HTTP,
    ENVOY_TCP,
    HAPROXY_HTTP,
    HAPROXY_TCP,
    INSPECTING,
    MITMDUMP,
    OURS,
    QUIET,
    Lane,
    Load,
    Measure,
    loads_of,
)
from bench.dataplane.network import GRPC_PORT, STREAM_PORT, Bed, make_switch, start_nginx
from bench.dataplane.ours import SILENCE, Mesh, prove, prove_silent, why_not
from bench.dataplane.pairs import Pair
from hedgerow.local.sandbox import STATE
from sidecar.__main__ import ALLOCATOR

KNOCKS = 10_000
#: Seconds after one request in which every kind of process may let go of what only its start needed. It is part of what
#: is measured (README.md), so that there is nothing else to wait for; ours does it after ``sidecar.heap.BEGUN``.
IDLE_SECONDS = 5.0
#: Our pairs and the beds that they have to themselves.
_OWN_BEDS = {OURS: "ours", QUIET: "quiet", INSPECTING: "inspecting"}
#: What is added to each of a pair's first ports, see the modules of the peers.
_BASES = {ENVOY_TCP: 1, ENVOY_CONNECT: 2, ENVOY_HTTP: 3, HAPROXY_TCP: 4, HAPROXY_HTTP: 5, MITMDUMP: 6}
_FRESH_BASE = 50
_DESCRIPTORS = 65_536


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done.

    :param seconds: of one slice
    :param bulk_bytes: of one download
    :param memory_rounds: how often fresh processes are started for the memory rows
    :param capture: whether peers are captured, as ours always are
    :param seed: of the order of slices
    :param interpreter: what our sidecars run with
    :param rounds_end: the moment, of ``time.monotonic``, by which the last round is to be over; one that would not be
        is not begun, except for the first
    """

    rounds: int
    seconds: float
    bulk_bytes: int
    memory_rounds: int
    seed: int
    capture: bool = True
    interpreter: Interpreter = field(default_factory=lambda: own("the one that runs the benchmark"))
    rounds_end: float = math.inf


@dataclass(slots=True)
class Taken:
    """What a run found: figures by (load, figure) and pair, one a round; measures that could not be taken, and why."""

    figures: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    rounds: int = 0

    def add(self, load: str, pair: str, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.figures.setdefault((load, name), {}).setdefault(pair, []).append(value)

    def of(self, measure: Measure) -> dict[str, list[float]]:
        """The figures of a measure by pair."""
        return self.figures[measure.load, measure.figure]

    def cpu_of(self, measure: Measure) -> dict[str, list[float]]:
        """The processor time for a request in the same slices, by pair; empty for memory."""
        return self.figures.get((measure.load, "cpu"), {})


class Session:
    """Everything that runs during a benchmark; made inside a sandbox, which clears away what is left.

    :param say: takes one line of progress
    """

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._random = random.Random(plan.seed)
        self._stack = ExitStack()
        self._servers: dict[str, Program] = {}
        self._beds: dict[str, Bed] = {}
        self.pairs: dict[str, Pair] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="bench-", dir=STATE))
        self.folder.chmod(0o755)

    def __enter__(self) -> Session:
        try:
            return self._prepare()
        except BaseException:
            self._stack.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _prepare(self) -> Session:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, most), most))
        make_switch()
        for number, name in enumerate(("peers", *_OWN_BEDS.values(), "fresh"), 1):
            captured = name == "peers" and self._plan.capture
            self._beds[name] = bed = Bed.make(name, number, captured=captured)
            server = start_nginx(bed, self.folder / f"nginx-{name}", self._plan.bulk_bytes)
            self._servers[name] = server
            self._stack.callback(server.stop)
        message = self.folder / "message"
        message.write_bytes(b"\0\0\0\0\x05hello")
        self._grpc_message = str(message)
        environment = {"OPENSSL_CONF": str(openssl_config(self.folder)), **ALLOCATOR}
        ours = [self._beds[name] for name in (*_OWN_BEDS.values(), "fresh")]
        self.mesh = Mesh(self.folder / "mesh", ours, environment, self._plan.interpreter)
        self._stack.callback(self.mesh.close)
        self.mesh.enforce()
        self.identities = Identities.make(self.mesh.authority, self.folder / "identities")
        self._impostor = checks.Impostor(self.identities)
        self._stack.callback(self._impostor.close)
        return self

    # --- pairs

    def start(self, name: str, *, profile: bool = False) -> Pair:
        """Start a pair and check it; it lives until the session ends."""
        if name not in self.pairs:
            bed = self._beds[_OWN_BEDS.get(name, "peers")]
            pair = self._make(name, bed, _BASES.get(name, 0), profile=profile)
            self.pairs[name] = pair
            self._stack.callback(pair.stop)
        return self.pairs[name]

    def _make(self, name: str, bed: Bed, base: int, *, profile: bool = False) -> Pair:
        """Start a pair in a bed, its first connection under the eyes of the checks."""
        wire = checks.Wire(bed)
        try:
            pair = self._started(name, bed, base, profile)
            try:
                # what the other lanes of ours can do is asked when they are wanted
                lanes = [Lane.STREAM] if name in _OWN_BEDS else list(pair.fronts)
                checks.check(pair, lanes, self.identities, self._impostor)
                if pair.tls is not None:
                    checks.check_wire(pair, wire.take())
            except BenchFailed as failure:
                pair.stop()
                raise BenchFailed(f"{failure}\n{_last_words(pair)}") from None
            except BaseException:
                pair.stop()
                raise
        finally:
            wire.close()
        self._say(f"{name}: mutual TLS checked" if pair.tls else f"{name}: no proxy")
        return pair

    def _started(self, name: str, bed: Bed, base: int, profile: bool) -> Pair:
        if name in _OWN_BEDS:
            settings = SILENCE if name == QUIET else {}
            return self.mesh.pair(f"{name}-{bed.number}", bed, settings=settings, profile=profile)
        if name == DIRECT:
            port = (bed.server.address, STREAM_PORT)
            calls = (bed.server.address, GRPC_PORT)
            return Pair(name, bed, {Lane.STREAM: port, Lane.HTTP: port, Lane.GRPC: calls})
        if name == MITMDUMP:
            python, view = self._plan.interpreter, self.mesh.view
            return mitm.pair(bed, self.identities, self.folder, base, interpreter=python, view=view)
        make = haproxy.pair if name in (HAPROXY_TCP, HAPROXY_HTTP) else envoy.pair
        return make(name, bed, self.identities, self.folder, base)

    # --- measuring

    def take(self, measures: list[Measure]) -> Taken:
        """Take the figures of all ``measures`` that can be taken.

        :raises BenchFailed: when a pair is not what it should be, or ends
        :raises LoadFailed: when a request failed
        """
        taken = Taken()
        todo: list[tuple[Load, str]] = []
        reasons: dict[Lane, str] = {}
        for load, names in loads_of(measures):
            if load.lane not in reasons:
                reasons[load.lane] = self._ask(load.lane)
            if reasons[load.lane]:
                mine = [measure.name for measure in measures if measure.load == load.name]
                taken.skipped |= dict.fromkeys(mine, reasons[load.lane])
                continue
            for name in names:
                self.start(of_ours(load.lane) if name in (OURS, AGAIN) else name)
            todo += [(load, name) for name in names]
        self._warm(todo)
        begun, longest = time.monotonic(), 0.0
        while taken.rounds < self._plan.rounds:
            if taken.rounds and begun + longest > self._plan.rounds_end:
                self._say(f"{taken.rounds} rounds have to do: there is no time for another")
                break
            self._random.shuffle(todo)
            for load, name in todo:
                taken.add(load.name, name, self.slice(load, self._pair(load, name)))
            for program in (self.mesh.controller, *self._servers.values()):
                program.check()
            taken.rounds += 1
            now = time.monotonic()
            begun, longest = now, max(longest, now - begun)
            self._say(f"round {taken.rounds} of {self._plan.rounds}")
        if QUIET in self.pairs:
            prove_silent(self.mesh, self.pairs[QUIET])
        if any(not measure.load for measure in measures):
            for _ in range(self._plan.memory_rounds):
                self._memory(taken)
        return taken

    def _ask(self, lane: Lane) -> str:
        """Have our pair for ``lane``, with policy and telemetry on, and ask it why it can not do what is measured."""
        name = of_ours(lane)
        new = name not in self.pairs
        ours = self.start(name)
        if new:
            prove(self.mesh, ours)
        return why_not(self.mesh, lane, ours)

    def _pair(self, load: Load, name: str) -> Pair:
        return self.pairs[of_ours(load.lane) if name in (OURS, AGAIN) else name]

    def _warm(self, todo: Iterable[tuple[Load, str]]) -> None:
        """One slice of each, unmeasured: tunnels, pools, caches, grown windows."""
        for load, name in todo:
            if name != AGAIN:
                self.slice(load, self._pair(load, name))

    def slice(self, load: Load, pair: Pair, seconds: float | None = None) -> dict[str, float]:
        """One slice of a load through a pair.

        :returns: its figures; ``cpu`` is microseconds of processor time for a request, on each side
        """
        host, port = pair.fronts[load.lane]
        argv = command(load, host, port, seconds or self._plan.seconds, self._grpc_message)
        before = pair.cpu()
        try:
            text = run([*pair.bed.client.enter(), *argv])
            figures = read(load, text, bulk_bytes=self._plan.bulk_bytes)
        except LoadFailed as failure:
            raise LoadFailed(f"{load.name} through {pair.name}: {failure}\n{_last_words(pair)}") from None
        if pair.programs:
            figures["cpu"] = (pair.cpu() - before) / figures["requests"] / 2 * 1e6
        return figures

    # --- memory

    def _memory(self, taken: Taken) -> None:
        """Fresh processes of each kind: resident bytes idle after one request, and after ten thousand connections."""
        kinds = [OURS, ENVOY_TCP, ENVOY_CONNECT]
        self._random.shuffle(kinds)
        for name in kinds:
            bed = self._beds["fresh" if name == OURS else "peers"]
            pair = self._make(name, bed, _FRESH_BASE + _BASES.get(name, 0))
            try:
                time.sleep(IDLE_SECONDS)
                idle = pair.rss()
                host, port = pair.fronts[Lane.STREAM]
                knock = [sys.executable, "-m", "bench.dataplane.knock", host, str(port), str(KNOCKS)]
                path = {"PYTHONPATH": str(Path(__file__).parents[2])}
                run([*pair.bed.client.enter(), *knock], seconds=180, env=path)
                taken.add("", name, {"idle": idle, "after": pair.rss()})
            finally:
                pair.stop()
        self._say("memory of fresh processes taken")


def of_ours(lane: Lane) -> str:
    """Which of our pairs a lane is measured with."""
    return INSPECTING if lane is Lane.INSPECT else OURS


def _last_words(pair: Pair) -> str:
    return "\n".join(f"{program.name}: {program.last_words()}" for program in pair.programs)
