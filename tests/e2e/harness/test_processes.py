"""A process that a test is to kill is found by its container, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from e2e.harness.errors import HarnessError
from e2e.harness.processes import alive, first_process


@pytest.mark.parametrize("container", ["", "0", "a" * 63, "A" * 64, "../" + "a" * 61])
def test_what_is_no_id_is_nobodys(container: str) -> None:
    with pytest.raises(HarnessError, match="is not the id"):
        first_process(container)


def test_a_container_that_is_not_here_has_no_process() -> None:
    with pytest.raises(HarnessError, match="no process"):
        first_process("0123456789abcdef" * 4)


def test_one_that_has_ended_and_was_not_waited_for_is_not_alive() -> None:
    assert alive(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "pass"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert not alive(ended.pid)
    assert not alive(ended.pid)
