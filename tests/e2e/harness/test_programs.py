"""Programs beside the tests: started, waited for, ended by their own id, and quoted when they fail."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from e2e.harness.errors import CommandFailed, HarnessError
from e2e.harness.programs import Program, free_ports, run, until

IDLE = "import signal, sys; print('up', flush=True); signal.sigwait({signal.SIGTERM})"
DEAF = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); signal.pause()"


def program(tmp_path: Path, code: str) -> Program:
    return Program("it", [sys.executable, "-c", code], tmp_path / "log")


@pytest.mark.parametrize("code", [IDLE, DEAF], ids=["willing", "deaf"])
def test_a_program_ends_when_it_is_told_to(tmp_path: Path, code: str) -> None:
    it = program(tmp_path, code)
    it.start()
    it.until(lambda: "up" in it.last_words(), "up")
    assert Path(f"/proc/{it.pid}").exists()

    it.stop(grace=0.5)

    assert not it.running
    assert not Path(f"/proc/{it.pid}").exists()
    it.stop()
    it.start()
    it.until(lambda: it.last_words().split() == ["up", "up"], "up again")
    it.kill()


def test_a_program_that_ends_too_early_is_quoted(tmp_path: Path) -> None:
    it = program(tmp_path, "raise SystemExit('no such flag')")
    it.start()

    with pytest.raises(HarnessError, match="it ended with 1 before ready:\nno such flag"):
        it.until(lambda: False, "ready")


def test_a_program_that_does_not_get_ready_is_quoted(tmp_path: Path) -> None:
    it = program(tmp_path, IDLE)
    it.start()
    it.until(lambda: "up" in it.last_words(), "up")

    with pytest.raises(HarnessError, match="it: not ready after 0 s:\nup"):
        it.until(lambda: False, "ready", seconds=0.1)
    it.kill()


def test_only_an_end_that_nobody_asked_for_is_told(tmp_path: Path) -> None:
    it = program(tmp_path, IDLE)
    assert it.ending == ""
    it.start()
    it.until(lambda: "up" in it.last_words(), "up")
    assert it.ending == ""
    it.stop()
    assert it.ending == ""
    it.start()
    os.kill(it.pid, signal.SIGKILL)
    until(lambda: not it.running, "gone")
    assert it.ending.startswith("it was killed by SIGKILL:\nup")
    it.start()
    assert it.ending == ""
    it.kill()
    assert it.ending == ""


def test_a_command_says_what_it_said() -> None:
    failing = [sys.executable, "-c", "import sys; print('out'); sys.exit('why')"]

    with pytest.raises(CommandFailed, match="ended with 1:\nwhy") as failed:
        run(failing)
    assert (failed.value.code, failed.value.stdout) == (1, "out\n")
    assert run(failing, check=False) == "out\nwhy\n"
    assert run([sys.executable, "-c", "print(input())"], stdin="in\n") == "in\n"
    with pytest.raises(HarnessError, match="not found: no-such-program"):
        run(["no-such-program"])
    with pytest.raises(CommandFailed, match="no end after 0 s"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.3)


def test_ports_are_different_and_lie_below_those_of_clients() -> None:
    ports = free_ports(20)

    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len(set(ports)) == 20
    assert max(ports) < lowest
