"""A controller begins anew when that is worth it, and stays the process that it was."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.anew import APART, BEGAN, Anew, private_bytes
from tests.controller.running import running
from tests.hedgerow.served import ROOT, configured, until

MB = 1 << 20


class Decided:
    """What is decided of a controller that takes so many MB, ``empty`` of them before it knew its cluster."""

    def __init__(self, empty: float, taken: float, *, worth: int = 16 * MB, began: str = "", now: float = 1e9) -> None:
        self.times = 0
        self.taken = empty
        environment = {BEGAN: began} if began else {}
        self.anew = Anew(worth, self._begin, lambda: now, lambda: int(self.taken * MB), environment)
        self.anew.empty()
        self.taken = taken

    def _begin(self) -> None:
        self.times += 1

    def after(self, left: float) -> bool:
        self.anew.shrunk(left)
        return self.times == 1


@pytest.mark.parametrize(
    ("empty", "taken", "left", "begins"),
    [
        (72, 99, 0.1, True),
        (72, 99, 0.5, False),
        (72, 89, 0.0, True),
        (72, 87, 0.0, False),
        (72, 72, 0.0, False),
        (800, 900, 0.0, False),
        (800, 920, 0.0, True),
    ],
    ids=["most is gone", "half is left", "just worth it", "not worth it", "never grew", "less than an eighth", "more"],
)
def test_it_begins_anew_when_that_returns_enough(empty: float, taken: float, left: float, begins: bool) -> None:
    assert Decided(empty, taken).after(left) is begins


def test_the_least_is_a_setting_and_none_is_never() -> None:
    assert not Decided(72, 99, worth=30 * MB).after(0.1)
    assert Decided(72, 99, worth=MB).after(0.5), "an eighth of it is 12 MB"
    assert not Decided(72, 500, worth=0).after(0.0)


@pytest.mark.parametrize(
    ("began", "begins"),
    [(1e9 - 1, False), (1e9 - APART + 1, False), (1e9 - APART, True), (1e9 + 5, True), ("nonsense", True)],
    ids=["just now", "within the hour", "an hour ago", "the clock was put back", "not ours"],
)
def test_once_an_hour_at_most(began: object, begins: bool) -> None:
    assert Decided(72, 99, began=str(began)).after(0.1) is begins


def test_what_is_not_known_is_no_reason() -> None:
    assert not Decided(0, 99).after(0.1), "what it took at first could not be read"


def test_private_memory_is_what_is_in_no_file(tmp_path: Path) -> None:
    assert MB < private_bytes() < 4096 * MB
    (tmp_path / "status").write_text("Name:\tx\nRssFile:\t 4096 kB\nRssAnon:\t    1024 kB\n")
    assert private_bytes(tmp_path / "status") == MB
    (tmp_path / "status").write_text("Name:\tx\n")
    with pytest.raises(OSError, match="does not say"):
        private_bytes(tmp_path / "status")


async def test_who_stops_it_stops_it(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        run.controller.begin_anew()
        assert run.controller.to_begin_anew
        run.controller.stop()
        assert not run.controller.to_begin_anew
        run.controller.begin_anew()
        assert not run.controller.to_begin_anew, "it ends already"
        await asyncio.sleep(0)


def sockets(pid: int) -> int:
    """Open sockets of a process."""
    found = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += os.readlink(each).startswith("socket:")
        except FileNotFoundError:
            continue
    return found


@contextmanager
def process(module: str, config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop(BEGAN, None)
    with log.open("wb") as out:
        one = subprocess.Popen([sys.executable, "-m", module, "--config", config], env=environment, stderr=out)
    try:
        yield one
    finally:
        one.kill()
        one.wait()


def test_it_is_the_same_process_with_the_same_state_and_nothing_is_left_open(tmp_path: Path) -> None:
    config, log = configured(tmp_path), tmp_path / "controller.log"

    def served() -> list[str]:
        return [line.rpartition(" web on ")[2] for line in log.read_text().splitlines() if " web on " in line]

    with process("tests.controller.beginning_anew", config, log) as one:
        until(lambda: len(served()) == 2 or one.poll() is not None, "serving twice")
        assert one.poll() is None, log.read_text()
        first, second = served()
        assert Path(f"/proc/{one.pid}/environ").read_bytes().count(BEGAN.encode()) == 1
        token = (tmp_path / "state" / "viewer.token").read_text().strip()
        request = urllib.request.Request(f"{second}/api/v1/audit", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            entries = json.load(answer)["entries"]
        assert entries, "the inventory that the first of them took"
        again = sockets(one.pid)
        one.send_signal(signal.SIGHUP)
        one.send_signal(signal.SIGTERM)
        assert one.wait(60) == 0, log.read_text()
    with process("controller", config, tmp_path / "another.log") as another:
        log = tmp_path / "another.log"
        until(served, "serving")
        assert again <= sockets(another.pid) + 1, "what was open before was closed"
        another.send_signal(signal.SIGTERM)
        assert another.wait(60) == 0
    assert first != "", "it served before"
