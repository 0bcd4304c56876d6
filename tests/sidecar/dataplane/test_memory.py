"""What the kernel says of memory, in each of its forms."""

from __future__ import annotations

import os

import pytest

from sidecar.dataplane.memory import Gauge, give_back

PAGE = os.sysconf("SC_PAGE_SIZE")
MAX = str((1 << 63) // PAGE * PAGE)


@pytest.fixture
def machine(tmp_path):
    """A process file system and control groups as a kernel shows them."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "statm").write_text("1000 300 20 1 0 50 0\n")
    (tmp_path / "groups").mkdir()

    def write(cgroup, files):
        (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def gauge(limit=0):
        return Gauge(limit, tmp_path / "proc", tmp_path / "groups")

    return write, gauge


def test_without_a_limit_nothing_is_watched(machine):
    write, gauge = machine
    assert gauge().limit == 0
    write("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "max\n"})
    assert gauge().limit == 0


def test_a_limit_of_the_settings_is_our_own_memory_alone(machine):
    write, gauge = machine
    write("0::/\n", {"memory.max": "1000000\n", "memory.stat": "anon 1\nsock 777\n"})
    made = gauge(5_000_000)
    assert (made.limit, made.used()) == (5_000_000, 300 * PAGE)
    made.close()


def test_in_a_group_of_version_2_its_sockets_count_too(machine):
    write, gauge = machine
    write(
        "0::/pod/sidecar\n", {"pod/sidecar/memory.max": "64000000\n", "pod/sidecar/memory.stat": "anon 5\nsock 777\n"}
    )
    made = gauge()
    assert (made.limit, made.used()) == (64_000_000, 300 * PAGE + 777)
    made.close()
    made.close()


def test_the_tightest_of_all_groups_above_counts(machine):
    write, gauge = machine
    files = {"pod/c/memory.max": "900\n", "pod/memory.max": "800\n", "memory.max": "max", "pod/memory.stat": "sock 3\n"}
    write("0::/pod/c\n", files)
    made = gauge()
    assert (made.limit, made.used()) == (800, 300 * PAGE + 3)
    made.close()


def test_in_a_namespace_where_the_path_leads_nowhere_the_root_is_ours(machine):
    write, gauge = machine
    write("0::/../../elsewhere\n", {"memory.max": "700\n"})
    made = gauge()
    assert (made.limit, made.used()) == (700, 300 * PAGE)
    made.close()


def test_groups_of_version_1(machine):
    write, gauge = machine
    write("5:cpu,cpuacct:/x\n4:memory:/x\n0::/x\n", {"memory/x/memory.limit_in_bytes": "600\n"})
    made = gauge()
    assert (made.limit, made.used()) == (600, 300 * PAGE)
    made.close()
    write("4:memory:/x\n", {"memory/x/memory.limit_in_bytes": MAX})
    assert gauge().limit == 0


def test_it_follows_what_changes():
    made = Gauge(1 << 40)
    before = made.used()
    held = bytearray(os.urandom(1 << 20)) * 128
    assert made.used() > before + (96 << 20)
    del held
    give_back()
    assert made.used() < before + (96 << 20)
    made.close()
