"""The ledger as a state machine: lists, events, bookmarks, a forgotten version; and the reflector against a server that
breaks off."""

from __future__ import annotations

import asyncio
import itertools
import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.kube.client import Page, WatchEvent
from controller.kube.errors import Expired, NoSuchResource, Unreachable
from controller.kube.kinds import PODS
from controller.kube.reflector import Changed, Ledger, Reflector, Unreadable
from controller.kube.supervision import Supervision

A, B, C = ("ns", "a"), ("ns", "b"), ("ns", "c")


def thing(key, value="", version="1"):
    return {"metadata": {"namespace": key[0], "name": key[1], "resourceVersion": version}, "value": value}


def read(document):
    if document["value"] == "broken":
        raise Unreadable("broken")
    return document["value"]


def listed(ledger, version, *things):
    ledger.begin()
    ledger.page(things)
    return ledger.complete(version)


@pytest.fixture
def ledger():
    made = Ledger(read)
    listed(made, "10", thing(A, "one"), thing(B, "two"))
    return made


def test_a_first_list_makes_everything_new():
    ledger = Ledger(read)
    assert listed(ledger, "10", thing(A, "one")) == [Changed(A, None, "one")]
    assert ledger.version == "10"


def test_a_second_list_says_what_came_went_and_changed_meanwhile(ledger):
    assert listed(ledger, "20", thing(B, "other"), thing(C, "three")) == [
        Changed(A, "one", None),
        Changed(B, "two", "other"),
        Changed(C, None, "three"),
    ]


def test_a_list_that_broke_off_changes_nothing(ledger):
    ledger.begin()
    ledger.page([thing(C, "three")])
    assert ledger.items == {A: "one", B: "two"}
    assert listed(ledger, "20", thing(A, "one"), thing(B, "two")) == []


def test_events_change_what_is_held_and_move_the_version_on(ledger):
    assert ledger.event(WatchEvent("ADDED", thing(C, "three", "11"))) == Changed(C, None, "three")
    assert ledger.event(WatchEvent("MODIFIED", thing(C, "four", "12"))) == Changed(C, "three", "four")
    assert ledger.event(WatchEvent("DELETED", thing(C, "four", "13"))) == Changed(C, "four", None)
    assert ledger.version == "13"
    assert ledger.items == {A: "one", B: "two"}


def test_an_event_that_changes_nothing_that_is_kept_changes_nothing(ledger):
    held = ledger.items[A]
    assert ledger.event(WatchEvent("MODIFIED", thing(A, "one", "11"))) is None
    assert ledger.event(WatchEvent("DELETED", thing(C, "", "12"))) is None
    assert ledger.items[A] is held
    assert ledger.version == "12"


def test_a_bookmark_moves_the_version_and_nothing_else(ledger):
    assert ledger.event(WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "99"}})) is None
    assert (ledger.version, ledger.counts.bookmarks, ledger.counts.events) == ("99", 1, 0)


def test_what_can_not_be_read_is_as_good_as_gone(ledger):
    assert ledger.event(WatchEvent("MODIFIED", thing(A, "broken", "11"))) == Changed(A, "one", None)
    assert ledger.counts.unreadable == 1
    assert ledger.version == "11", "and is not asked for again and again"
    assert listed(ledger, "20", thing(A, "broken"), thing(B, "two")) == []


def test_a_forgotten_version_keeps_what_is_held(ledger):
    ledger.expire()
    assert ledger.version == ""
    assert ledger.items == {A: "one", B: "two"}


KEYS = st.sampled_from([A, B, C])
EVENTS = st.lists(
    st.tuples(st.sampled_from(["ADDED", "MODIFIED", "DELETED"]), KEYS, st.sampled_from(["x", "y", "z"])), max_size=30
)


@given(EVENTS, st.sets(st.integers(0, 30)))
def test_the_changes_alone_lead_to_what_is_held_however_often_it_is_listed_between(events, relists):
    """Whoever applies the changes holds what the server holds: after events, and after lists in place of some."""
    ledger, server, told = Ledger(read), {}, {}

    def tell(changes):
        for change in changes:
            assert told.get(change.key) == change.before
            if change.after is None:
                del told[change.key]
            else:
                told[change.key] = change.after

    tell(listed(ledger, "1"))
    for number, (kind, key, value) in enumerate(events):
        if kind == "DELETED":
            server.pop(key, None)
        else:
            server[key] = value
        if number in relists:  # the watch had ended before this event
            tell(listed(ledger, str(number), *(thing(key, value) for key, value in server.items())))
        else:
            change = ledger.event(WatchEvent(kind, thing(key, value, str(number))))
            tell([change] if change is not None else [])
        assert ledger.items == server == told


class Server:
    """Answers as it is told, one answer a question."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.idle = asyncio.Event()

    def _next(self, question):
        self.asked.append(question)
        if not self.answers:
            self.idle.set()
            return None
        return self.answers.pop(0)

    async def pages(self, resource, namespace="", *, labels="", fields="", limit=0):
        answer = self._next("list")
        for part in answer or ():
            if isinstance(part, Exception):
                raise part
            yield part
        if answer is None:
            await asyncio.Event().wait()

    async def watch(self, resource, resource_version, namespace="", *, labels="", fields=""):
        answer = self._next(f"watch {resource_version}")
        for part in answer or ():
            if isinstance(part, Exception):
                raise part
            yield part
        if answer is None:
            await asyncio.Event().wait()


def page(version, *things, more=""):
    return Page(tuple(things), version, more)


async def ran(reflector):
    task = asyncio.ensure_future(reflector.run())
    idle = asyncio.ensure_future(reflector.client.idle.wait())
    await asyncio.wait({task, idle}, return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return None
    return task.exception()


def reflecting(*answers, **more):
    seen = []
    return Reflector(Server(*answers), PODS, Ledger(read), seen.extend, **more), seen


async def test_it_lists_every_page_and_then_watches_from_there():
    pages = [page("10", thing(A, "one"), more="next"), page("10", thing(B, "two"))]
    reflector, seen = reflecting(pages, [[], [WatchEvent("ADDED", thing(C, "three", "11"))]])
    assert await ran(reflector) is None
    assert reflector.client.asked == ["list", "watch 10", "watch 11"]
    assert seen == [Changed(A, None, "one"), Changed(B, None, "two"), Changed(C, None, "three")]
    assert reflector.synced


async def test_a_watch_that_breaks_off_goes_on_from_the_last_event():
    gone = Unreachable("away")
    reflector, seen = reflecting(
        [page("10")],
        [[WatchEvent("ADDED", thing(A, "one", "11"))], gone],
        [[WatchEvent("ADDED", thing(B, "two", "12"))]],
    )
    assert await ran(reflector) is gone
    assert await ran(reflector) is None
    assert reflector.client.asked == ["list", "watch 10", "watch 11", "watch 12"]
    assert [change.key for change in seen] == [A, B]


async def test_it_knows_when_it_last_heard_of_the_server():
    ticks = itertools.count(100.0)
    heard = []
    server = Server([page("10")], [[], [WatchEvent("ADDED", thing(A, "one", "11"))]])
    reflector = Reflector(
        server,
        PODS,
        Ledger(read),
        lambda _: heard.append((reflector.heard, reflector.watching)),
        clock=lambda: next(ticks),
    )
    assert (reflector.heard, reflector.watching) == (None, None)
    assert await ran(reflector) is None
    assert heard == [(100.0, None), (102.0, 101.0)], "after the list, and in a watch that had begun before"
    assert (reflector.heard, reflector.watching) == (102.0, None), "the next watch was not taken yet"


async def test_a_version_that_is_too_old_is_followed_by_a_list_that_loses_nothing():
    reflector, seen = reflecting(
        [page("10", thing(A, "one"))],
        [[WatchEvent("ADDED", thing(B, "two", "11"))]],
        [Expired("too old", status=410)],
        [page("50", thing(B, "two"), thing(C, "three"))],
    )
    assert await ran(reflector) is None
    assert reflector.client.asked == ["list", "watch 10", "watch 11", "list", "watch 50"]
    assert seen[2:] == [Changed(A, "one", None), Changed(C, None, "three")]


async def test_a_list_whose_later_page_came_too_late_is_begun_again_but_not_for_ever():
    late = [page("10", thing(A, "one"), more="next"), Expired("too old", status=410)]
    reflector, seen = reflecting(list(late), [page("20", thing(B, "two"))])
    assert await ran(reflector) is None
    assert seen == [Changed(B, None, "two")]
    reflector, _ = reflecting(list(late), list(late))
    assert isinstance(await ran(reflector), Expired)


async def test_a_resource_that_is_not_there_is_an_error_unless_it_is_optional():
    missing = NoSuchResource("none")
    reflector, _ = reflecting([missing])
    assert await ran(reflector) is missing
    assert not reflector.synced
    settled = asyncio.Event()
    reflector = Reflector(Server([missing]), PODS, Ledger(read), lambda _: settled.set(), optional=True)
    task = asyncio.ensure_future(reflector.run())
    async with asyncio.timeout(10):
        await settled.wait()
    assert reflector.synced
    assert not task.done(), "it asks again much later"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_api_server_of_another_version_takes_nothing_of_an_optional_resource_away(caplog):
    """Two behind one address, while the cluster is updated: the older does not know what the newer has."""
    missing = NoSuchResource("list things: the API server has no such resource", status=404)
    reflector, seen = reflecting(
        [page("10", thing(A, "one"))], [missing], [missing], [Expired("too old", status=410)], [missing], optional=True
    )
    task = asyncio.create_task(Supervision([reflector], time.monotonic, Random(1)).run())
    async with asyncio.timeout(15):
        await reflector.client.idle.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert reflector.client.asked == ["list", "watch 10", "watch 10", "watch 10", "list", "list"], "and soon"
    assert reflector.ledger.items == {A: "one"}
    assert seen == [Changed(A, None, "one")]
    assert reflector.synced
    (said,) = [each.getMessage() for each in caplog.records]
    assert "what was read of them stays; let all API servers behind this address be of one version" in said


async def test_an_optional_resource_that_is_empty_is_asked_for_as_rarely_as_one_that_is_not_there():
    told = []
    settled = asyncio.Event()

    def changed(changes):
        told.append(changes)
        if len(told) == 2:
            settled.set()

    server = Server([page("10")], [NoSuchResource("none")])
    reflector = Reflector(server, PODS, Ledger(read), changed, optional=True)
    task = asyncio.create_task(reflector.run())
    async with asyncio.timeout(10):
        await settled.wait()
    assert told == [[], []]
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
