"""The first complaints are logged, the rest counted; nothing is lost without a trace."""

from __future__ import annotations

import logging

import pytest

from sidecar.dataplane.complaints import FIRST, INTERVAL, Complaints

LOG = logging.getLogger("tests.complaints")


class Clock:
    """Calls back when the test says so."""

    def __init__(self):
        self.pending = []

    def later(self, delay, call):
        timer = Timer(self, delay, call)
        self.pending.append(timer)
        return timer

    def pass_interval(self):
        pending, self.pending = self.pending, []
        for timer in pending:
            assert timer.delay == INTERVAL
            timer.call()


class Timer:
    def __init__(self, clock, delay, call):
        self.clock, self.delay, self.call = clock, delay, call

    def cancel(self):
        self.clock.pending.remove(self)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, LOG.name)
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_few_are_logged_as_they_are(lines):
    clock = Clock()
    complaints = Complaints(LOG, clock.later)
    for number in range(FIRST):
        complaints.say(logging.WARNING, "peer %d is hostile", number)
    clock.pass_interval()
    assert lines() == [f"peer {number} is hostile" for number in range(FIRST)]
    assert clock.pending == []


def test_many_become_one_line_with_their_number_and_the_last_of_them(lines, caplog):
    clock = Clock()
    complaints = Complaints(LOG, clock.later)
    for number in range(1000):
        complaints.say(logging.WARNING, "peer %d is hostile", number)
    assert len(lines()) == FIRST
    clock.pass_interval()
    assert lines()[FIRST:] == [f"{1000 - FIRST} more of this kind within 60 s, the last one: peer 999 is hostile"]
    assert caplog.records[-1].levelno == logging.WARNING
    complaints.say(logging.WARNING, "peer %d is hostile", 1000)
    assert lines()[-1] == "peer 1000 is hostile", "a new interval begins"


def test_one_kind_does_not_hide_another(lines):
    complaints = Complaints(LOG, Clock().later)
    for number in range(100):
        complaints.say(logging.WARNING, "peer %d is hostile", number)
    complaints.say(logging.INFO, "something else: %s", "100%")
    assert lines()[-1] == "something else: 100%"


def test_the_end_says_what_was_held_back(lines):
    clock = Clock()
    complaints = Complaints(LOG, clock.later)
    for _ in range(FIRST + 3):
        complaints.say(logging.ERROR, "a message without arguments")
    complaints.stop()
    assert lines()[-1].startswith("3 more of this kind")
    assert clock.pending == []
    complaints.stop()
    assert len(lines()) == FIRST + 1
