"""What is asked for earlier wins, and nothing comes before its time or twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.engine import EngineSettings
from controller.engine.timers import Due, Timers
from controller.errors import ConfigError

ASKED = st.lists(st.tuples(st.integers(0, 50), st.sampled_from("abcd")), max_size=40)


@given(ASKED, st.lists(st.integers(0, 60), max_size=10))
def test_each_comes_once_at_its_earliest_time(asked: list[tuple[int, str]], looks: list[int]) -> None:
    timers, earliest = Timers(), {}
    for due, subject in asked:
        timers.at(due, Due.OVERRIDE, subject)
        earliest[subject] = min(due, earliest.get(subject, due))
    for now in sorted(looks):
        assert timers.next() == min(earliest.values(), default=None)
        came = [subject for _, subject in timers.take(now)]
        assert sorted(came) == sorted(subject for subject, due in earliest.items() if due <= now)
        assert [earliest[str(subject)] for subject in came] == sorted(earliest[str(subject)] for subject in came)
        earliest = {subject: due for subject, due in earliest.items() if due > now}


def test_what_is_asked_for_while_taking_comes_in_its_turn() -> None:
    timers, came = Timers(), []
    timers.at(1.0, Due.EDGE, "a")
    for _, subject in timers.take(10.0):
        came.append(subject)
        if len(came) < 3:
            timers.at(1.0 + len(came), Due.EDGE, f"{subject}+")
        timers.at(11.0, Due.HOUSEKEEPING, "")
    assert came == ["a", "a+", "a++"]
    assert timers.next() == 11.0


def test_kinds_do_not_mix() -> None:
    timers = Timers()
    timers.at(1.0, Due.OVERRIDE, "a")
    timers.at(2.0, Due.REFUSALS, "a")
    assert list(timers.take(1.0)) == [(Due.OVERRIDE, "a")]
    assert list(timers.take(2.0)) == [(Due.REFUSALS, "a")]
    assert timers.next() is None


@pytest.mark.parametrize("name", ["group", "compile_at_once", "mailbox", "housekeeping", "oldest_flow"])
def test_a_setting_with_which_nothing_would_ever_happen_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"engine\.{name}"):
        EngineSettings(**{name: 0})
