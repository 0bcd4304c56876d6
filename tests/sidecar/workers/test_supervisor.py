"""The supervisor in this process, with real workers: what whole sidecars can not be made to do."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import time
from random import Random

import pytest

from graph.directory import Destination
from graph.model import Rule, Selector, Verdict, WorkloadRef
from graph.tap import Message, Shown, TapSpec
from sidecar.capture_settings import Capture, Explicit, OutboundListener
from sidecar.errors import CannotListen, SidecarError, SnapshotRejected, Unresolved
from sidecar.inspect.settings import InspectSettings
from sidecar.inspect.taps import Ended
from sidecar.metrics.istio import IstioMetrics
from sidecar.settings import Address, Unsynced
from sidecar.workers import crew, supervisor, values
from sidecar.workers.figures import Figures
from sidecar.workers.frames import Broken, Frame, Kind
from sidecar.workers.harvests import Harvests
from sidecar.workers.questions import Questions
from sidecar.workers.relayed_taps import RelayedTaps
from sidecar.workers.settings import WorkerSettings
from sidecar.workers.supervisor import Workers
from tests.sidecar.fake_controller import WORKLOAD, snapshot, until
from tests.sidecar.processes import free_port

SHOWN = Shown(
    tap="t1",
    at=1.0,
    source="shop/front",
    source_address="10.0.0.1",
    destination="shop/cart",
    port=80,
    operation="GET /",
    protocol="http",
    method="GET",
    path="/",
    host="cart",
    status=200,
    grpc_status=-1,
    verdict=Verdict.ALLOW,
    pending=Verdict.ALLOW,
    reason="allow-rule",
    rule_id="a",
    seconds=0.1,
    request=Message(),
    response=Message(),
    shed=0,
)
RULE = Rule("a", Selector.of(WORKLOAD), Selector.of(WORKLOAD))


class Nobody:
    """A directory that knows nobody."""

    def cached(self, address, port):
        return None

    def subscribe(self, told):
        pass

    async def resolve(self, address, port) -> Destination:
        raise Unresolved("nobody is known here")


class Supervised:
    """Two workers and everything around them."""

    def __init__(self, joined, controller, **changes):
        self.port = free_port()
        explicit = Explicit((OutboundListener(Address("127.0.0.1", self.port), Address("10.0.0.1", 80)),))
        self.settings = dataclasses.replace(
            joined.settings, **({"capture": Capture.EXPLICIT, "explicit": explicit, "workers": 2} | changes)
        )
        self.credentials = joined.credentials
        self.controller = controller
        self.harvests = Harvests()
        self.taps = RelayedTaps(asyncio.get_running_loop())
        self.figures = Figures(IstioMetrics(), "off")
        self.workers = Workers(
            self.settings,
            joined.credentials,
            Questions(Nobody(), None, frozenset()),
            self.harvests,
            self.figures,
            self.taps,
            Random(5),
        )

    def signed(self, version=1, **changes):
        return self.controller.sign(snapshot(version, RULE, **changes)).SerializeToString()

    @property
    def processes(self):
        return [worker for _, worker in sorted(self.workers._crew.workers.items())]

    @property
    def versions(self):
        return [worker.version for worker in self.processes]


@pytest.fixture
async def made(joined, controller):
    one = Supervised(joined, controller)
    one.workers.hold(one.signed(1))
    await one.workers.listen(None)
    await one.workers.start()
    yield one
    await one.workers.stop()
    assert one.processes == []


async def test_a_new_policy_is_in_force_when_all_have_it(made):
    await until(lambda: made.versions == [1, 1])
    assert made.workers.missing() == []
    await made.workers.prepare(made.signed(2))
    assert made.versions == [1, 1], "verified, not yet applied"
    await made.workers.commit()
    assert made.versions == [2, 2]


async def test_what_one_refuses_none_applies(made):
    await made.workers.prepare(made.signed(3))
    await made.workers.commit()
    forged = made.controller.sign(snapshot(4, RULE))
    forged.signature = bytes(len(forged.signature))
    refused = {
        "workload: it is for shop/front": made.signed(4, workload=WorkloadRef("shop", "front")),
        "trust_domain: it is for 'other.test'": made.signed(4, trust_domain="other.test"),
        "version: 2 is older than 3": made.signed(2),
        "signature: ": forged.SerializeToString(),
        "no snapshot: ": b"\xff",
    }
    for why, signed in refused.items():
        with pytest.raises(SnapshotRejected, match=f"worker 0: {why}"):
            await made.workers.prepare(signed)
        assert made.versions == [3, 3]
    await made.workers.prepare(made.signed(5))
    await made.workers.commit()
    assert made.versions == [5, 5]
    # one refusal is enough: worker 1 alone has gone ahead, so it alone refuses
    made.processes[1].send(Kind.HOLD, {"number": 1000}, (made.signed(9),))
    await until(lambda: made.versions == [5, 9])
    with pytest.raises(SnapshotRejected, match="worker 1: version: 7 is older than 9"):
        await made.workers.prepare(made.signed(7))
    assert made.versions == [5, 9]


async def test_one_that_begins_between_the_steps_gets_the_new_policy(made):
    await made.workers.prepare(made.signed(2))
    gone = made.processes[0]
    gone.kill()
    await until(lambda: len(made.processes) == 2 and made.processes[0] is not gone and made.processes[0].listening)
    await made.workers.commit()
    assert made.versions == [2, 2]


async def test_one_that_dies_between_the_steps_holds_nobody_up(made):
    made.processes[0].kill()
    await made.workers.prepare(made.signed(2))
    made.processes[-1].kill()
    await made.workers.commit()
    await until(lambda: made.versions == [2, 2])


async def test_one_that_does_not_even_die_holds_nobody_up(made, monkeypatch):
    """The kernel may have it wait for a disk that hangs; SIGKILL ends it when that goes on."""
    monkeypatch.setattr(supervisor, "PATIENCE", 0.5)
    monkeypatch.setattr(supervisor, "REAPED_SECONDS", 0.1)
    await until(lambda: made.versions == [1, 1])
    stuck, other = made.processes
    os.kill(stuck.pid, signal.SIGSTOP)
    killed = []
    monkeypatch.setattr(stuck, "kill", lambda: killed.append(True))
    await made.workers.prepare(made.signed(2))
    await made.workers.commit()
    assert (other.version, killed) == (2, [True])
    await made.workers.prepare(made.signed(3))
    await made.workers.commit()
    assert (other.version, killed) == (3, [True]), "it is asked no more"
    stuck.process.kill()
    await until(lambda: len(made.processes) == 2 and made.versions == [3, 3])


async def test_one_that_begins_after_the_first_policy_denies_until_it_can_use_it(joined, controller):
    one = Supervised(joined, controller, unsynced=Unsynced.LEARN)
    told = []

    class Fresh:
        index, pid = 0, 1

        def send(self, kind, head=None, blobs=(), descriptors=()):
            if kind is Kind.START:
                told.append(values.decode(WorkerSettings, head["settings"]).unsynced)

    one.workers.began(Fresh())
    one.workers.hold(one.signed(1))
    one.workers.began(Fresh())
    assert told == [Unsynced.LEARN, Unsynced.DENY]


async def test_one_that_says_nothing_any_more_is_killed(made):
    silent, other = made.processes
    now = time.monotonic()
    silent.heard_at = now - crew.SILENCE - 1
    made.workers._crew.kill_silent(now)
    await until(lambda: len(made.processes) == 2 and silent not in made.processes)
    assert other in made.processes


async def test_one_that_breaks_the_protocol_is_replaced(made):
    victim = made.processes[0]
    made.workers.heard(victim, Frame(Kind.FLOWS, {"number": 1, "shed": 0, "live": 0, "records": 0}, (b"",)))
    # the next one that it really sends has a number that came already
    with pytest.raises(Broken, match="comes after 1"):
        made.workers.heard(victim, Frame(Kind.FLOWS, {"number": 1, "shed": 0, "live": 0, "records": 0}, (b"",)))
    victim.send(Kind.READY)  # what no worker may be told: it leaves
    await until(lambda: victim not in made.processes)
    await until(lambda: len(made.processes) == 2 and made.processes[0].listening)


async def test_a_stopped_worker_comes_to_its_end_too(joined, controller, monkeypatch):
    """At the end one does not answer; it is killed when its time is over."""
    monkeypatch.setattr(crew, "END_SECONDS", 0.5)
    one = Supervised(joined, controller)
    await one.workers.listen(None)
    await one.workers.start()
    os.kill(one.processes[0].pid, signal.SIGSTOP)
    await one.workers.stop()
    assert one.processes == []
    await one.workers.stop()


async def test_a_worker_that_can_not_begin_is_an_error_with_its_log(joined, controller, capfd, tmp_path):
    addon = tmp_path / "addon.py"
    addon.write_text("import nothing_of_that_name\n")
    one = Supervised(joined, controller, inspect=InspectSettings(addons=(addon,)))
    with pytest.raises(SidecarError, match=r"worker [01] ended with code 1 before it could carry anything"):
        await one.workers.listen(None)
    assert one.processes == []
    assert "nothing_of_that_name" in capfd.readouterr().err
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", one.port))


async def test_a_port_that_is_taken_starts_no_worker(joined, controller):
    one = Supervised(joined, controller)
    with socket.create_server(("127.0.0.1", one.port)), pytest.raises(CannotListen):
        await one.workers.listen(None)
    assert one.processes == []
    await one.workers.stop()


async def test_taps_run_in_every_worker_and_begin_in_new_ones(made):
    made.taps.start(TapSpec("t1", 60.0, count=2))
    gone, other = made.processes
    gone.kill()
    await until(lambda: len(made.processes) == 2 and made.processes[0] is not gone and made.processes[0].listening)
    assert len(made.taps.commands()) == 1
    for _ in range(3):  # what workers show counts against the one tap
        made.taps.came(SHOWN, 100)
    made.taps.came(dataclasses.replace(SHOWN, tap="another"), 100)
    first, second, end = [await made.taps.next() for _ in range(3)]
    assert (first, second) == (SHOWN, SHOWN)
    assert end == Ended("t1")
    assert made.taps.commands() == []
    made.taps.stop("t1")
    assert len(await made.workers.show("memory")) == 2
    assert other in made.processes, "nobody died of it"


async def refusals(port, count):
    """How many connections are accepted; nobody is known, so each is reset."""

    async def one():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionResetError:
            return
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 10)
        writer.close()

    await asyncio.gather(*(one() for _ in range(count)))
    return count


async def descriptors(made):
    return {page["worker"]: page["open_descriptors"] for page in await made.workers.show("memory")}


async def test_another_one_accepts_for_one_that_is_dead_until_it_is_back(made, monkeypatch):
    assert await refusals(made.port, 32) == 32
    before = await descriptors(made)
    pauses = []
    monkeypatch.setattr(crew.Backoff, "failed", lambda _: pauses.append(1) or 3600.0)
    gone, other = made.processes
    gone.kill()
    await until(lambda: pauses)
    assert await refusals(made.port, 32) == 32
    assert made.processes == [other]
    (missing,) = made.workers.missing()
    assert missing.startswith("worker 0 of 2 is not running; it starts in 3")
    assert (await descriptors(made))[1] == before[1] + 1
    # both are dead: who comes back first accepts for the other
    monkeypatch.setattr(crew, "STEADY", 0.0)
    other.kill()
    await until(lambda: len(made.processes) == 1 and made.processes[0] is not other and made.processes[0].listening)
    assert await refusals(made.port, 32) == 32
    # and lets go when it is back
    made.workers._crew._tasks[0].cancel()
    made.workers._crew._tasks[0] = asyncio.ensure_future(made.workers._crew._keep(0))
    await until(lambda: len(made.processes) == 2 and made.processes[0].listening)
    assert await refusals(made.port, 32) == 32
    assert (await descriptors(made))[1] == before[1]
