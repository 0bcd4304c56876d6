"""Whether the application still runs, as the kernel's tables of sockets show it."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from sidecar import application
from tests.sidecar.dataplane.netns import Network

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line(uid, inode, state="0A"):
    return (
        f"   0: 0100007F:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 1 0 100\n"
    )


@pytest.mark.parametrize(
    ("lines", "held"),
    [
        ([], False),
        ([line(1337, 77)], False),
        ([line(0, 0, "06")], False),  # TIME_WAIT is nobody's
        ([line(1000, 0, "04")], False),  # an orphan
        ([line(1337, 77), line(1000, 78)], True),
        ([line(0, 79)], True),
        (["nonsense\n", "\n"], False),
    ],
)
def test_whose_sockets_count(tmp_path, lines, held):
    table = tmp_path / "tcp"
    table.write_text(HEADER + "".join(lines))
    assert application.holds_sockets(1337, [table, tmp_path / "missing"]) is held


def test_the_kernel_s_tables_show_sockets_of_both_versions():
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    network = Network()
    try:
        namespace = network.pod().namespace
        # /proc/self is the process; the thread that lives in the namespace has its own tables
        tables = [application.Path(f"/proc/thread-self/net/{name}") for name in ("tcp", "tcp6")]
        assert not namespace.call(lambda: application.holds_sockets(1337, tables))
        for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
            with namespace.call(lambda host=host, family=family: socket.create_server((host, 0), family=family)):
                assert namespace.call(lambda: application.holds_sockets(1337, tables))
                assert not namespace.call(lambda: application.holds_sockets(os.geteuid(), tables)), "our own"
        assert not namespace.call(lambda: application.holds_sockets(1337, tables))
    finally:
        network.remove()


async def test_it_has_gone_when_it_held_nothing_for_a_while(monkeypatch):
    monkeypatch.setattr(application, "LOOK", 0.001)
    now, looks = 0.0, []

    def holds():
        looks.append(now)
        return now < 1.0 or 1.4 < now < 1.6  # between two calls there was nothing

    def clock():
        nonlocal now
        now += 0.05
        return now

    await asyncio.wait_for(application.gone(holds, clock), 20)
    assert looks[-1] > 1.6 + application.QUIET - 0.2
    assert sum(look < 1.6 for look in looks) > 2
