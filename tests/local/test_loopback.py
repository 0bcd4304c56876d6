"""Explicit mode: addresses that do not collide, settings that the sidecar takes, and no process or file left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from graph.model import Port, WorkloadRef
from hedgerow.local.description import PlacedPod, PlacedService, WorkloadSpec
from hedgerow.local.leftovers import remove_leftovers
from hedgerow.local.loopback import LoopbackSite
from hedgerow.local.site import Role
from sidecar.settings import Settings

SPEC = WorkloadSpec(WorkloadRef("shop", "web"), ports=(Port(8080), Port(50051)))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def test_the_sidecar_takes_the_settings_and_no_two_listeners_collide() -> None:
    site = LoopbackSite()
    services = [
        PlacedService("shop", name, index, site.service_address(index), SPEC.ref, ((80, 8080), (81, 50051)))
        for index, name in enumerate(("web", "api"), 1)
    ]
    pods = [PlacedPod(f"web-{index}", SPEC, index, site.pod_address(index)) for index in range(1, 6)]
    taken: list[str] = []
    for pod in pods:
        settings = Settings.parse(
            {
                "instance": pod.name,
                "controller": "127.77.0.2:15012",
                "issuer": "127.77.0.2:15013",
                "trust_domain": "hedgerow.local",
                "trust_bundle": "/nowhere/bundle.pem",
                "state_dir": "/nowhere",
                "addresses": [pod.address],
                **site.sidecar_settings(pod, services),
            }
        )
        taken += [str(one.listen) for one in (*settings.explicit.outbound, *settings.explicit.inbound)]
        taken += [str(one.application) for one in settings.explicit.inbound] + [str(settings.ready_listen)]
        destinations = {str(one.destination) for one in settings.explicit.outbound}
        assert destinations == {f"{service.address}:{port}" for service in services for port in (80, 81)}
    assert len(taken) == len(set(taken)) == len(pods) * (4 + 2 + 2 + 1)
    assert all(address.startswith("127.") for address in taken)
    await site.close()
    assert not site.root.exists()


#: Prints the state directory and a child's pid, then waits to be killed.
HOLDER = """
import asyncio, json, sys, tempfile
from pathlib import Path
tempfile.tempdir = sys.argv[1]
from hedgerow.local.loopback import LoopbackSite
from hedgerow.local.processes import Process
from hedgerow.local.site import Role

async def main():
    site = LoopbackSite()
    child = Process("child", site.root / "child.log")
    await site.start(child, None, Role.APPLICATION, ["sleep", "1000"])
    print(json.dumps([str(site.root), child.pid]), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


NAMESPACE = os.stat("/proc/self/ns/pid").st_ino


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_after_kill_9_the_children_are_gone_and_the_next_run_removes_the_files(temporary: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(temporary)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        state, child = json.loads(holder.stdout.readline())
        assert alive(child)
        assert remove_leftovers() == []  # its owner lives
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        end = time.monotonic() + 10
        while alive(child):
            assert time.monotonic() < end, "the child outlived its parent"
            time.sleep(0.02)
        assert Path(state).is_dir()
        assert remove_leftovers() == [Path(state)]
        assert not Path(state).exists()
    finally:
        holder.kill()
        holder.communicate()


def test_a_process_with_a_recycled_id_does_not_keep_the_files(temporary: Path) -> None:
    stale = temporary / f"hedgerow-mesh-{NAMESPACE}-{os.getpid()}-1-abc"
    stale.mkdir()
    assert remove_leftovers() == [stale]


@pytest.mark.parametrize(
    "name",
    [
        f"hedgerow-mesh-{NAMESPACE}-x-1-abc",
        f"hedgerow-mesh-{NAMESPACE}-1-y-abc",
        f"hedgerow-mesh-{NAMESPACE + 1}-1-1-abc",  # made by a process that we cannot see
        f"hedgerow-other-{NAMESPACE}-1-1-abc",
    ],
    ids=["no process", "no start", "another namespace", "another program"],
)
def test_what_is_not_ours_is_left_alone(temporary: Path, name: str) -> None:
    other = temporary / name
    other.mkdir()
    assert remove_leftovers() == []
    assert other.exists()


def test_a_link_in_our_name_is_not_followed(temporary: Path) -> None:
    precious = temporary / "precious"
    precious.mkdir()
    (temporary / f"hedgerow-mesh-{NAMESPACE}-{os.getpid()}-1-abc").symlink_to(precious)
    assert remove_leftovers() == []
    assert precious.exists()


async def test_programs_do_not_inherit_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEDGEROW_TOKEN", "secret")
    site = LoopbackSite()
    try:
        assert "secret" not in (await site.run(None, Role.APPLICATION, ["env"])).stdout
    finally:
        await site.close()
