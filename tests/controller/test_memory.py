"""When memory is given back, and that it is."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from controller import memory
from controller.memory import HighWater, forgotten_on_demand, give_back, pack, remembered


@pytest.mark.parametrize(
    ("counts", "fell"),
    [
        ([0, 500, 999, 0], [False] * 4),
        ([1000, 501, 500, 400, 250], [False, False, True, False, False]),
        ([4000, 2000, 1001, 1000, 900, 0], [False, True, False, True, False, True]),
        ([4000, 100, 4000, 100], [False, True, False, True]),
    ],
    ids=["never high", "half", "half and half again", "up and down"],
)
def test_only_a_great_fall_is_one_and_it_is_one_once(counts, fell):
    water = HighWater(1000)
    assert [water.fell(count) for count in counts] == fell


class Ring:
    """Refers to itself."""

    alive = 0

    def __init__(self) -> None:
        self.me = self
        Ring.alive += 1

    def __del__(self) -> None:
        Ring.alive -= 1


def test_what_refers_to_itself_is_gone_afterwards():
    for _ in range(10):
        Ring()
    give_back()
    assert Ring.alive == 0


def test_what_is_remembered_is_asked_once_until_memory_is_given_back():
    asked = []

    @remembered(2)
    def length(text: str) -> int:
        """What it is for."""
        asked.append(text)
        return len(text)

    assert [length("a"), length("ab"), length("a")] == [1, 2, 1]
    assert asked == ["a", "ab"]
    length("abc")  # more than two are not kept
    length("ab")
    assert asked == ["a", "ab", "abc", "ab"]
    give_back()
    assert length("abc") == 3
    assert asked[4:] == ["abc"]
    assert (length.__name__, length.__doc__) == ("length", "What it is for.")


def test_whoever_wants_to_is_told_that_memory_is_given_back():
    told = []
    forgotten_on_demand(lambda: told.append("now"))
    give_back()
    give_back()
    assert told == ["now", "now"]


class Tables:
    def __init__(self) -> None:
        self.entries = dict.fromkeys(range(10_000))
        self.members = set(range(10_000))
        self.name = "mine"


def test_tables_that_are_packed_are_as_large_as_what_is_in_them():
    held = Tables()
    for each in range(9_990):
        del held.entries[each]
        held.members.remove(each)
    large = [sys.getsizeof(held.entries), sys.getsizeof(held.members)]
    pack(held)
    assert (list(held.entries), held.members, held.name) == (
        list(range(9_990, 10_000)),
        {*range(9_990, 10_000)},
        "mine",
    )
    assert all(
        sys.getsizeof(now) < before / 50 for now, before in zip((held.entries, held.members), large, strict=True)
    )


def test_a_controller_lets_go_of_the_code_that_only_its_start_needed():
    program = (
        "import controller.app\nfrom controller import memory\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[2])\n"
        "before = resident()\nmemory.let_go()\nprint(before, resident())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    before, after = map(int, done.stdout.split())
    assert after < before / 2  # pages of files; the interpreter's own are back at once


async def test_a_start_is_over_a_while_after_it(monkeypatch):
    done = asyncio.Event()
    monkeypatch.setattr(memory, "_BEGUN", (0.0,))
    monkeypatch.setattr(memory, "let_go", done.set)
    memory.settle()
    await asyncio.wait_for(done.wait(), 60)
