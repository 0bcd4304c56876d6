"""Pods and sidecars for the data path's tests."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from sidecar.dataplane.reactor import Reactor
from tests.sidecar.dataplane.mesh import Sidecar
from tests.sidecar.dataplane.outside import Outside
from tests.sidecar.dataplane.world import SEND_BUFFERS, SMALL, World


@pytest.fixture
async def reactor():
    reactor = Reactor()
    reactor.start(asyncio.get_running_loop())
    yield reactor
    reactor.stop()


@pytest.fixture
def pods(network):
    return network.pod(), network.pod()


@pytest.fixture
def sidecars(network, authority, tmp_path):
    """Starts sidecars; ends them after the test and looks for faults in their logs."""
    started: list[Sidecar] = []

    def start(pod, workload, **options) -> Sidecar:
        options.setdefault("policy", {"inbound": "enforce", "outbound": "enforce"})
        signer = options.pop("signer", authority)
        sidecar = Sidecar(pod, workload, signer, log=tmp_path / f"{len(started)}.log", **options)
        started.append(sidecar)
        return sidecar

    yield start
    faults = []
    for sidecar in started:
        try:
            sidecar.end()
        except Exception as error:
            faults.append(error)
    if faults:
        raise faults[0]


@pytest.fixture
async def world(authority):
    async with contextlib.AsyncExitStack() as stack:
        yield World(authority, stack)


@pytest.fixture
async def outside(authority, tmp_path):
    async with contextlib.AsyncExitStack() as stack:
        yield Outside(authority, stack, tmp_path)


@pytest.fixture
def small_buffers():
    """What is not read soon waits in the data plane and not in the kernel."""
    before = SEND_BUFFERS.read_text()
    SEND_BUFFERS.write_text(f"4096 {SMALL} {SMALL}")
    yield
    SEND_BUFFERS.write_text(before)
