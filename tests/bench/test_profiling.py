"""The sampler and perf find where processor time goes, and what they write reads as a table."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from bench.dataplane.profiling import library, render, render_symbols, symbols
from bench.dataplane.sampler import Sampler


def busy(seconds: float) -> int:
    """Use that much processor time."""
    end = time.process_time() + seconds
    turns = 0
    while time.process_time() < end:
        turns += 1
    return turns


def test_the_busy_function_is_on_top(tmp_path: Path) -> None:
    sampler = Sampler()
    sampler.start()
    try:
        busy(0.2)
    finally:
        sampler.write(tmp_path / "profile.json")
    found = json.loads((tmp_path / "profile.json").read_text())
    total = sum(each[0] for each in found["lines"])
    assert sum(each[0] for each in found["lines"] if each[3] == "busy") > total / 2
    within = {(file, function): count for count, file, function in found["within"]}
    assert within[__file__, "test_the_busy_function_is_on_top"] > total / 2
    text = render(tmp_path / "profile.json")
    assert text.startswith(f"{total} samples")
    assert "busy: while time.process_time() < end" in text or "busy: turns += 1" in text


def test_a_function_counts_once_a_sample_however_often_it_is_on_the_stack() -> None:
    sampler = Sampler()

    def recurse(depth: int) -> None:
        if depth:
            recurse(depth - 1)
        else:
            sampler._sample(0, sys._getframe())

    recurse(5)
    assert set(sampler.within.values()) == {1}
    assert sampler.lines.total() == 1


SCRIPT = """\
    ffffffff8110c3d0 finish_task_switch.isra.0 ([kernel.kallsyms])
    ffffffff81ab0000 __x64_sys_sendto ([kernel.kallsyms])
    ffffffff81ab0001 do_syscall_64 ([kernel.kallsyms])
        7f1c2a1b3c4d __libc_send (/lib/x86_64-linux-gnu/libc.so.6)

        7f1c2a1b3c4d _PyEval_EvalFrameDefault (/opt/python/lib/libpython3.12.so.1.0)
        7f1c2a1b3c99 PyObject_Vectorcall (/opt/python/lib/libpython3.12.so.1.0)

        7f1c2a1b3c99 _PyEval_EvalFrameDefault (/opt/python/lib/libpython3.12.so.1.0)

        7f1c2a000000 [unknown] (/usr/lib/x86_64-linux-gnu/libcrypto.so.3)

        7f1c2a000001 operator()(int) const (/opt/lib/some.so (deleted))

    ffffffff8110c3d1 irqentry_exit ([kernel.kallsyms])
        7f1c2a1b3c4d _PyEval_EvalFrameDefault (/opt/python/lib/libpython3.12.so.1.0)

a line that is none
"""


def test_perfs_samples_are_counted_by_library_and_function() -> None:
    assert symbols(SCRIPT) == {
        ("kernel (sendto)", "finish_task_switch.isra.0"): 1,
        ("kernel (no system call)", "irqentry_exit"): 1,
        ("interpreter", "_PyEval_EvalFrameDefault"): 2,
        ("TLS", "[unknown]"): 1,
        ("some.so (deleted)", "operator()(int) const"): 1,
    }


def test_shares_are_told_as_processor_time_of_a_request() -> None:
    lines = render_symbols(symbols(SCRIPT), 12.0, top=1).splitlines()
    assert lines[0] == "6 samples, 12 µs of processor time a request"
    assert "33.3%   4.00  interpreter" in lines
    assert "16.7%   2.00  TLS" in lines
    assert [line for line in lines if ": " in line] == ["33.3%   4.00  interpreter: _PyEval_EvalFrameDefault"]


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/opt/lib/python3.12/lib-dynload/_ssl.cpython-312-x86_64-linux-gnu.so", "TLS (Python's module)"),
        ("/opt/lib/python3.12/lib-dynload/select.cpython-312-x86_64-linux-gnu.so", "Python's modules"),
        ("/opt/lib/python3.12/site-packages/uvloop/loop.cpython-312-x86_64-linux-gnu.so", "uvloop"),
        ("/opt/lib/python3.12/site-packages/grpc/_cython/cygrpc.cpython-312-x86_64-linux-gnu.so", "gRPC"),
        ("/opt/lib/python3.12/site-packages/google/_upb/_message.abi3.so", "_message.abi3.so"),
        ("/usr/bin/python3.12", "interpreter"),
        ("/lib/x86_64-linux-gnu/libc.so.6", "libc"),
        ("[vdso]", "kernel"),
    ],
)
def test_libraries_are_told_by_their_names(path: str, known: str) -> None:
    assert library(path) == known
