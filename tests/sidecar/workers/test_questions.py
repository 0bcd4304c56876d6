"""A worker's directory and names, with the supervisor's behind them.

The frames are real, the directory is real, and the controller speaks the real protocol."""

from __future__ import annotations

import asyncio
import time

import pytest

from graph.directory import Destination
from sidecar.directory import DirectoryClient
from sidecar.directory_settings import DEFAULTS
from sidecar.dns.names import LearnedNames, NameTable
from sidecar.errors import Unresolved
from sidecar.workers.frames import FROM_WORKER, TO_WORKER, Broken, Frame, Kind, Reader, encode
from sidecar.workers.questions import Questions
from sidecar.workers.remote import MAX_NAMED, RemoteDirectory, RemoteNames
from tests.sidecar.destinations import MOVED, PAYMENT, Clock
from tests.sidecar.fake_controller import ADDRESS, INSTANCE, WORKLOAD, running, until

OUTSIDE = "192.0.2.7"
HOST, OTHER = "api.example.com", "cdn.example.com"


class Worker:
    """The worker's half, and the wire between it and the supervisor."""

    def __init__(self, questions):
        self._questions = questions
        self._here = Reader(TO_WORKER)
        self._there = Reader(FROM_WORKER)
        self.told: list[Frame] = []
        self.names = RemoteNames(self.say)
        self.directory = RemoteDirectory(self.say, self.names, timeout=10)
        questions.began(self)

    def send(self, kind, head=None, blobs=()):
        """The supervisor tells us."""
        for frame in self._here.feed(encode(kind, head, blobs)):
            self.told.append(frame)
            {
                Kind.ANSWER: self.directory.answered,
                Kind.CHANGED: self.directory.changed,
                Kind.FORGET: self.directory.forgotten,
            }[frame.kind](frame)

    def say(self, kind, head, blobs=()):
        """We tell the supervisor."""
        for frame in self._there.feed(encode(kind, head, blobs)):
            match frame.kind:
                case Kind.RESOLVE:
                    self._questions.ask(self, frame)
                case Kind.USED:
                    self._questions.used(frame)
                case Kind.NAME:
                    self._questions.named(self, frame)


class Setting:
    def __init__(self, joined, **changes):
        self.clock = Clock()
        self.table = NameTable(keep=100.0)
        self.names = LearnedNames(self.table, self.clock)
        settings = {"resolve_timeout": 5, "clock": self.clock} | changes
        self.directory = DirectoryClient(WORKLOAD, INSTANCE, (ADDRESS,), joined.state, **settings)
        self.questions = Questions(self.directory, self.names, frozenset({ADDRESS}))
        self.directory.subscribe(self.questions.changed)

    def worker(self):
        return Worker(self.questions)


@pytest.fixture
async def setting(controller, joined):
    controller.answer(PAYMENT)
    made = Setting(joined)
    async with running(joined.link.keep("directory", made.directory.session, made.directory.lost)):
        yield made


async def test_an_answer_is_kept_and_changes_with_the_directory(controller, setting):
    one, other = setting.worker(), setting.worker()
    assert one.directory.cached("10.77.0.9", 443) is None
    assert await one.directory.resolve("10.77.0.9", 443) == PAYMENT
    assert one.directory.cached("10.77.0.9", 443) == PAYMENT
    assert await other.directory.resolve("10.77.0.9", 443) == PAYMENT
    assert controller.asked == [("10.77.0.9", 443)], "the controller is asked once for all"
    controller.answer(MOVED)
    await until(lambda: one.directory.cached("10.77.0.9", 443) == MOVED)
    assert other.directory.cached("10.77.0.9", 443) == MOVED


async def test_many_questions_at_once_are_one(setting):
    worker = setting.worker()
    answers = await asyncio.gather(*(worker.directory.resolve("10.77.0.9", 443) for _ in range(50)))
    assert set(answers) == {PAYMENT}
    assert [frame.kind for frame in worker.told] == [Kind.ANSWER]


async def test_what_nobody_answers_is_unresolved(controller, joined):
    setting = Setting(joined, resolve_timeout=0.05)
    worker = setting.worker()
    with pytest.raises(Unresolved, match="is away within"):
        await worker.directory.resolve("10.77.0.9", 443)
    with pytest.raises(Unresolved, match="not an IP address"):
        await worker.directory.resolve("payment.shop", 443)
    assert worker.directory.cached("10.77.0.9", 443) is None


async def test_our_own_addresses_are_known_without_a_watch(controller, setting):
    worker = setting.worker()
    answer = await worker.directory.resolve(ADDRESS, 8080)
    assert answer.workload == WORKLOAD
    assert worker.directory.cached(ADDRESS, 8080) == answer
    assert controller.asked == []


async def test_what_a_worker_uses_is_not_let_go(controller, setting):
    worker = setting.worker()
    for address in ("10.77.0.9", "10.77.0.10"):
        controller.answer(Destination(address, 443, workload=PAYMENT.workload, meshed=True))
        await worker.directory.resolve(address, 443)
    worker.directory.tell_uses()
    setting.clock.now = 599
    assert worker.directory.cached("10.77.0.9", 443) is not None
    worker.directory.tell_uses()
    setting.clock.now = 601
    setting.directory.release_idle()
    assert worker.directory.cached("10.77.0.9", 443) is not None
    assert worker.directory.cached("10.77.0.10", 443) is None, "nobody would tell of its changes"
    await until(lambda: controller.released == [("10.77.0.10", 443)])


async def test_a_change_while_the_answer_is_on_its_way_is_not_lost(controller, setting):
    """The first answer is superseded before the question's task has its turn."""
    worker = setting.worker()
    controller.silent_directory = True
    asking = asyncio.ensure_future(worker.directory.resolve("10.77.0.9", 443))
    await until(lambda: controller.asked)
    controller.answer(PAYMENT)
    controller.answer(MOVED)
    assert await asking in (PAYMENT, MOVED)
    await until(lambda: worker.directory.cached("10.77.0.9", 443) == MOVED)


async def test_names_come_with_every_answer_about_an_address_outside(controller, setting):
    worker = setting.worker()
    assert worker.names.bound(OUTSIDE) == ()
    setting.table.bind(HOST, [(OUTSIDE, 30)], 0.0)
    assert (await worker.directory.resolve(OUTSIDE, 443)).workload is None
    assert worker.names.bound(OUTSIDE) == (HOST,)
    assert worker.directory.cached(OUTSIDE, 443) is None, "it is asked for again, because of its names"
    setting.table.bind(OTHER, [(OUTSIDE, 30)], 1.0)
    await worker.directory.resolve(OUTSIDE, 443)
    assert worker.names.bound(OUTSIDE) == (OTHER, HOST)
    setting.clock.now = 1000.0
    await worker.directory.resolve(OUTSIDE, 443)
    assert worker.names.bound(OUTSIDE) == ()
    assert controller.asked == [(OUTSIDE, 443)]


async def test_that_an_address_is_not_outside_any_more_is_told(controller, setting):
    """Also between an answer and the connection for which it was asked."""
    controller.answer(Destination(OUTSIDE, 443))
    worker = setting.worker()
    heard = []
    worker.directory.subscribe(lambda *told: heard.append(told))
    assert (await worker.directory.resolve(OUTSIDE, 443)).outside
    assert worker.directory.cached(OUTSIDE, 443) is None
    known = Destination(OUTSIDE, 443, workload=WORKLOAD)
    controller.answer(known)
    await until(lambda: heard)
    assert worker.directory.cached(OUTSIDE, 443) == known
    assert heard == [(OUTSIDE, 443, known)]


async def test_an_address_that_is_outside_again_is_asked_for_with_its_names(controller, setting):
    setting.table.bind(HOST, [(OUTSIDE, 60)], setting.clock())
    controller.answer(Destination(OUTSIDE, 443))
    worker = setting.worker()
    await worker.directory.resolve(OUTSIDE, 443)
    assert worker.names.bound(OUTSIDE) == (HOST,)
    controller.answer(Destination(OUTSIDE, 443, workload=WORKLOAD))
    await until(lambda: worker.directory.cached(OUTSIDE, 443))
    controller.answer(Destination(OUTSIDE, 443))
    await until(lambda: worker.directory.cached(OUTSIDE, 443) is None)
    setting.clock.now += 100_000
    setting.table.bind(OTHER, [(OUTSIDE, 60)], setting.clock())
    assert (await worker.directory.resolve(OUTSIDE, 443)).outside
    assert worker.names.bound(OUTSIDE) == (OTHER,)


async def test_without_a_dns_proxy_an_address_outside_is_kept(joined, controller):
    directory = DirectoryClient(WORKLOAD, INSTANCE, (ADDRESS,), joined.state, time.monotonic)
    questions = Questions(directory, None, frozenset())
    directory.subscribe(questions.changed)
    worker = Worker(questions)
    async with running(joined.link.keep("directory", directory.session, directory.lost)):
        answer = await worker.directory.resolve(OUTSIDE, 443)
        assert worker.directory.cached(OUTSIDE, 443) == answer
    with pytest.raises(Broken, match="there are none"):
        worker.names.began(OUTSIDE, HOST)


async def test_a_name_stays_bound_while_any_worker_uses_it(setting):
    setting.table.bind(HOST, [(OUTSIDE, 30)], 0.0)
    one, other = setting.worker(), setting.worker()
    for worker in (one, one, other):
        worker.names.began(OUTSIDE, HOST)
    setting.clock.now = 1000.0
    assert setting.names.bound(OUTSIDE) == (HOST,)
    one.names.ended(OUTSIDE, HOST)
    other.names.ended(OUTSIDE, HOST)
    setting.clock.now = 2000.0
    assert setting.names.bound(OUTSIDE) == (HOST,)
    setting.questions.ended(one)  # it was killed
    setting.questions.ended(one)
    assert setting.names.bound(OUTSIDE) == (HOST,)
    setting.clock.now = 2100.0
    assert setting.names.bound(OUTSIDE) == ()


async def test_a_worker_ends_no_use_that_it_did_not_begin(setting):
    setting.table.bind(HOST, [(OUTSIDE, 30)], 0.0)
    one, other = setting.worker(), setting.worker()
    one.names.began(OUTSIDE, HOST)
    with pytest.raises(Broken, match="did not begin"):
        other.names.ended(OUTSIDE, HOST)


async def test_a_dead_worker_is_told_nothing_more(controller, setting):
    one, other = setting.worker(), setting.worker()
    for worker in (one, other):
        await worker.directory.resolve("10.77.0.9", 443)
    setting.questions.ended(one)
    told = len(one.told)
    controller.answer(MOVED)
    await until(lambda: other.directory.cached("10.77.0.9", 443) == MOVED)
    assert len(one.told) == told


async def test_a_worker_waits_for_no_more_than_it_may(controller, setting):
    controller.silent_directory = True
    worker = setting.worker()
    ports = range(1, 1 + DEFAULTS.waiting)
    asking = [asyncio.ensure_future(worker.directory.resolve("10.77.1.1", port)) for port in ports]
    await asyncio.sleep(0)
    with pytest.raises(Unresolved, match="wait for an answer already"):
        await worker.directory.resolve("10.77.1.2", 1)
    for task in asking:
        task.cancel()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert {type(one) for one in results} == {asyncio.CancelledError}


async def test_a_worker_that_asks_beyond_that_is_broken(setting):
    worker = setting.worker()
    question = Frame(Kind.RESOLVE, {"address": "10.77.1.1", "port": 1})
    for _ in range(DEFAULTS.waiting + 1):
        setting.questions.ask(worker, question)
    with pytest.raises(Broken, match="too much is asked at once"):
        setting.questions.ask(worker, question)


async def test_what_is_remembered_is_bounded(joined):
    worker = Setting(joined).worker()
    known = worker.directory
    for number in range(MAX_NAMED + 10):
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        known._keep((address, 80), Destination(address, 80))
        worker.names.told(address, (HOST,))
    assert known.entries == MAX_NAMED == DEFAULTS.addresses
    assert known.cached("10.0.0.9", 80) is None
    assert known.cached("10.0.0.10", 80) is not None
    assert worker.names.bound("10.0.0.9") == ()
    assert worker.names.bound("10.0.0.10") == (HOST,)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.ANSWER, {"address": "10.0.0.1", "port": 1, "error": ""}),
        Frame(Kind.ANSWER, {"address": "10.0.0.1", "port": 1, "error": ""}, (b"\xff\xff",)),
        Frame(Kind.ANSWER, {"address": "10.0.0.1", "port": 1, "error": "x", "names": [1]}),
        Frame(Kind.ANSWER, {"address": "10.0.0.1", "port": -1, "error": "x"}),
    ],
)
async def test_an_answer_that_is_none_is_broken(joined, frame):
    with pytest.raises(Broken):
        Setting(joined).worker().directory.answered(frame)


@pytest.mark.parametrize("keys", [None, [["10.0.0.1"]], [["10.0.0.1", "1"]], [1]])
async def test_uses_that_are_none_are_broken(joined, keys):
    with pytest.raises(Broken):
        Setting(joined).questions.used(Frame(Kind.USED, {"keys": keys}))
