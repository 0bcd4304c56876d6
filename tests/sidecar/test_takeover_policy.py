"""What the controller is told between two processes: nothing that holds is forgotten when one takes over."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest

from graph.model import Mode
from sidecar.app import Sidecar
from sidecar.authority import PolicyAuthority
from sidecar.certificate_agent import CertificateAgent
from sidecar.policy_client import PolicyClient
from sidecar.settings import Unsynced
from sidecar.state import SNAPSHOT, StateDirectory
from sidecar.takeover import Offer, take_over
from tests.sidecar.fake_controller import ADDRESS, INSTANCE, running, snapshot, until


async def nothing():
    pass


def client_of(joined, state):
    loop = asyncio.get_running_loop()
    authority = PolicyAuthority(joined.credentials.identity, Unsynced.DENY, (ADDRESS,), time.time, loop.call_later)
    return authority, PolicyClient(authority, joined.credentials, state, "boot", "hedgerow/test", time.time)


def acknowledged(controller):
    return [ack.version for watcher in controller.watchers for ack in watcher.acks]


async def test_a_policy_that_comes_while_another_process_starts_is_the_other_one_s_too(controller, joined):
    old, old_client = client_of(joined, joined.state)
    replaced = []
    offer = Offer(joined.state, INSTANCE, list, nothing, lambda: replaced.append(True))
    offer.start()
    controller.push(snapshot(5, mode=Mode.LEARN))
    async with running(joined.link.keep("policy", old_client.session)):
        await until(lambda: 5 in acknowledged(controller))
        taken = await take_over(joined.settings.state_dir, INSTANCE)
        state = StateDirectory(joined.settings.state_dir, taken.lock)
        new, new_client = client_of(joined, state)
        new_client.restore()  # and then its workers take seconds to start
        controller.push(snapshot(6, mode=Mode.QUARANTINE))
        joined.state.write_checked("svid", b"the old one's")
        await until(lambda: 6 in acknowledged(controller))
        await taken.confirm()
        new_client.restore_newer()
        assert new.version == 6
        assert state.read("svid") is None, "what the other one has newer itself is not written over"
        # whoever has handed over acknowledges no more
        await until(lambda: replaced)
        controller.push(snapshot(7))
        controller.push(snapshot(8))
        await until(lambda: old.version == 8)
    assert 7 not in acknowledged(controller)
    later, later_client = client_of(joined, state)
    later_client.restore()
    assert later.version == 6
    for each in (old, new, later):
        each.close()
    await offer.stop()
    state.close()


@pytest.mark.parametrize("stored", [b"", None], ids=["damaged", "none"])
async def test_unsynced_speaks_of_the_time_before_the_first_policy_alone(controller, tmp_path, stored):
    sidecar = Sidecar(controller.settings(tmp_path, unsynced=Unsynced.LEARN))
    state = StateDirectory(sidecar._settings.state_dir)
    if stored is not None:
        state.write(SNAPSHOT, stored)

    agent = CertificateAgent(sidecar._settings, state, Random(3), time.time)
    mesh = sidecar._join(state, agent, await agent.obtain())
    authority = mesh._parts.authority
    mesh._parts.policy.restore()
    assert authority.snapshot.inbound_mode is (Mode.LEARN if stored is None else Mode.ENFORCE)
    authority.close()
    state.close()
