"""Snapshots pushed by a real gRPC server, with real signatures and real tampering."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest

from certs.ca import CertificateAuthority
from certs.keys import make_csr, new_key
from certs.signing import sign_payload
from graph.model import Mode, Selector, WorkloadRef
from graph.model import Rule as ModelRule
from graph.wire import hedgerow_pb2 as pb
from sidecar.authority import PolicyAuthority
from sidecar.errors import StateError
from sidecar.policy_client import PolicyClient
from sidecar.settings import Unsynced
from sidecar.state import SNAPSHOT
from tests.sidecar.fake_controller import ADDRESS, TRUST_DOMAIN, WORKLOAD, running, snapshot, until

FRONT = ModelRule("learned/1", Selector.of(WorkloadRef("shop", "front")), Selector.of(WORKLOAD))


def client_of(joined, followers=None):
    loop = asyncio.get_running_loop()
    authority = PolicyAuthority(joined.credentials.identity, Unsynced.DENY, (ADDRESS,), time.time, loop.call_later)
    parts = joined.credentials, joined.state, "boot", "hedgerow/test", time.time
    return authority, PolicyClient(authority, *parts, followers)


@pytest.fixture
async def parts(joined):
    authority, client = client_of(joined)
    yield authority, client
    authority.close()


@pytest.fixture
def disk(joined, monkeypatch):
    return HangingDisk(joined.state, monkeypatch)


class HangingDisk:
    """Writes nothing more until :attr:`goes_on` is set."""

    def __init__(self, state, monkeypatch) -> None:
        self.asked = []
        self.goes_on = threading.Event()
        self._real = state.write_checked
        monkeypatch.setattr(state, "write_checked", self._write)

    def _write(self, name, payload):
        self.asked.append(name)
        assert self.goes_on.wait(30)
        self._real(name, payload)


def acked(controller):
    return [ack.version for watcher in controller.watchers for ack in watcher.acks]


async def test_a_pushed_snapshot_is_applied_then_stored_then_acknowledged(controller, joined, parts, disk):
    authority, client = parts
    controller.push(snapshot(7, FRONT))
    async with running(joined.link.keep("policy", client.session)):
        await until(lambda: disk.asked)
        watcher = controller.watchers[0]
        assert (authority.version, authority.snapshot.rules) == (7, (FRONT,)), "in force, whatever the disk does"
        assert watcher.acks == []
        disk.goes_on.set()
        await until(lambda: watcher.acks)
        assert client.connected
        assert joined.state.read_checked(SNAPSHOT) is not None
    assert watcher.hello.held_version == 0
    assert watcher.hello.boot_id == "boot"
    assert [(ack.nonce, ack.version) for ack in watcher.acks] == [("1", 7)]


async def test_a_disk_that_hangs_keeps_no_later_policy_out(controller, joined, parts, disk, monkeypatch, caplog):
    monkeypatch.setattr("sidecar.policy_client.STORE_WAIT", 0.01)
    authority, client = parts
    async with running(joined.link.keep("policy", client.session)):
        for version in (5, 6, 7):
            controller.push(snapshot(version, FRONT))
            await until(lambda version=version: version in acked(controller))
            assert authority.version == version
        assert "hangs" in caplog.text
        assert disk.asked == [SNAPSHOT], "one write at a time"
        disk.goes_on.set()
        await until(lambda: len(disk.asked) == 2)
        monkeypatch.setattr("sidecar.policy_client.STORE_WAIT", 20)
        assert await client.stored()
    assert disk.asked == [SNAPSHOT, SNAPSHOT], "the newest, and none between"
    restarted, again = client_of(joined)
    assert again.restore()
    assert restarted.version == 7


async def test_what_is_in_force_is_stored_though_the_watch_has_ended(controller, joined, parts, disk, monkeypatch):
    monkeypatch.setattr("sidecar.policy_client.STORE_WAIT", 20)
    authority, client = parts
    controller.push(snapshot(5))
    async with running(joined.link.keep("policy", client.session)):
        await until(lambda: disk.asked)
    controller.push(snapshot(6))
    async with running(joined.link.keep("policy", client.session)):
        await until(lambda: authority.version == 6)
    assert acked(controller) == []
    disk.goes_on.set()
    assert await client.stored()
    restarted, again = client_of(joined)
    assert again.restore()
    assert restarted.version == 6


class Slow:
    """Others that judge by the same policy, and take their time."""

    def __init__(self):
        self.goes_on = asyncio.Event()
        self.committing = self.committed = False

    async def prepare(self, signed):
        pass

    async def commit(self):
        self.committing = True
        await self.goes_on.wait()
        self.committed = True


async def test_the_end_of_a_watch_keeps_a_policy_from_no_process_and_from_no_disk(controller, joined, monkeypatch):
    monkeypatch.setattr("sidecar.policy_client.STORE_WAIT", 20)
    slow = Slow()
    authority, client = client_of(joined, slow)
    controller.push(snapshot(7))
    async with running(joined.link.keep("policy", client.session)):
        await until(lambda: slow.committing)
    assert authority.version == 7
    slow.goes_on.set()
    await until(lambda: slow.committed)
    assert await client.stored()
    restarted, again = client_of(joined)
    assert again.restore()
    assert restarted.version == 7
    authority.close()


async def test_what_a_successor_stores_is_looked_at_until_it_can_be_used(controller, joined, monkeypatch, caplog):
    """Its signer's root may be in a trust bundle that comes a little later."""
    monkeypatch.setattr("sidecar.policy_client.FOLLOW_INTERVAL", 0.01)
    authority, client = client_of(joined)
    key, new = new_key(), CertificateAuthority.create(TRUST_DOMAIN, time.time())
    controller.signer_chain = new.sign_policy_signer(make_csr(key), time.time()).chain_der
    controller.signer_key = key
    joined.state.write_checked(SNAPSHOT, controller.sign(snapshot(9)).SerializeToString())
    async with running(client.follow()):
        await until(lambda: "is not used" in caplog.text)
        svid = joined.credentials.svid
        roots = (*svid.bundle.roots_der, *new.bundle().roots_der)
        joined.credentials.replace(replace(svid, bundle=replace(svid.bundle, roots_der=roots)))
        await until(lambda: authority.version == 9)
    assert caplog.text.count("is not used") == 1, "said once"
    authority.close()


def tampered_payload(controller):
    good = controller.sign(snapshot(9, FRONT))
    payload = good.payload.replace(b"shop", b"shoq", 1)
    assert payload != good.payload
    return pb.SignedSnapshot(payload=payload, signature=good.signature, signer_chain_der=good.signer_chain_der)


def tampered_signature(controller):
    good = controller.sign(snapshot(9, FRONT))
    good.signature = good.signature[:-1] + bytes([good.signature[-1] ^ 1])
    return good


def unsigned(controller):
    return pb.SignedSnapshot(payload=controller.sign(snapshot(9)).payload)


def signed_by_a_workload(controller):
    """A compromised workload has a certificate of the same authority, and is no signer."""
    from tests.sidecar.fake_controller import IDENTITY

    key = new_key()
    chain = controller.authority.sign_workload(make_csr(key), IDENTITY, time.time(), 3600).chain_der
    payload = controller.sign(snapshot(9)).payload
    return pb.SignedSnapshot(payload=payload, signature=sign_payload(key, payload), signer_chain_der=chain)


def signed_by_another_authority(controller):
    other = CertificateAuthority.create(TRUST_DOMAIN, time.time())
    key = new_key()
    chain = other.sign_policy_signer(make_csr(key), time.time()).chain_der
    payload = controller.sign(snapshot(9)).payload
    return pb.SignedSnapshot(payload=payload, signature=sign_payload(key, payload), signer_chain_der=chain)


def signed_rubbish(controller):
    payload = b"\xff\xff rubbish"
    return pb.SignedSnapshot(
        payload=payload,
        signature=sign_payload(controller.signer_key, payload),
        signer_chain_der=controller.signer_chain,
    )


def signed_unknown_mode(controller):
    message = pb.Snapshot.FromString(controller.sign(snapshot(9)).payload)
    message.inbound_mode = "open"
    payload = message.SerializeToString()
    return pb.SignedSnapshot(
        payload=payload,
        signature=sign_payload(controller.signer_key, payload),
        signer_chain_der=controller.signer_chain,
    )


def for_another_workload(controller):
    return controller.sign(snapshot(9, workload=WorkloadRef("shop", "front")))


def for_another_trust_domain(controller):
    return controller.sign(snapshot(9, trust_domain="elsewhere.test"))


def older(controller):
    return controller.sign(snapshot(4))


def same_version_other_content(controller):
    return controller.sign(snapshot(5, mode=Mode.LEARN))


def too_many_certificates(controller):
    good = controller.sign(snapshot(9))
    good.signer_chain_der.extend([good.signer_chain_der[-1]] * 10)
    return good


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (tampered_payload, "signature"),
        (tampered_signature, "signature"),
        (unsigned, "signature"),
        (signed_by_a_workload, "may not sign policy"),
        (signed_by_another_authority, "signature"),
        (signed_rubbish, "not a snapshot"),
        (signed_unknown_mode, "inbound_mode"),
        (for_another_workload, "workload: it is for shop/front"),
        (for_another_trust_domain, "trust_domain"),
        (older, "version: 4 is older than 5"),
        (same_version_other_content, "says something else"),
        (too_many_certificates, "signer"),
    ],
)
async def test_a_bad_snapshot_is_refused_with_the_reason_and_the_last_good_one_stays(
    controller, joined, parts, make, reason
):
    authority, client = parts
    controller.push(snapshot(5, FRONT))
    async with running(joined.link.keep("policy", client.session)):
        await until(lambda: controller.watchers and controller.watchers[0].acks)
        held, stored = authority.snapshot, joined.state.read(SNAPSHOT)
        controller.push(make(controller))
        watcher = controller.watchers[0]
        await until(lambda: watcher.nacks)
        assert reason in watcher.nacks[0].error
        assert watcher.nacks[0].nonce == "2"
        assert client.last_rejection == watcher.nacks[0].error
        assert authority.snapshot is held
        assert joined.state.read(SNAPSHOT) == stored
        # the stream is still good for the next one
        controller.push(snapshot(10))
        await until(lambda: authority.version == 10)
        assert client.last_rejection == ""


async def test_the_same_snapshot_again_is_acknowledged(controller, joined, parts):
    authority, client = parts
    controller.push(snapshot(5, FRONT))
    async with running(joined.link.keep("policy", client.session)):
        await until(lambda: authority.version == 5)
        controller.push(snapshot(5, FRONT, issued_at=time.time() + 1))  # signed again after a restart
        await until(lambda: len(controller.watchers[0].acks) == 2)
    assert not controller.watchers[0].nacks


async def test_a_restart_without_the_controller_uses_the_stored_snapshot(controller, joined, parts):
    authority, client = parts
    controller.push(snapshot(5, FRONT))
    async with running(joined.link.keep("policy", client.session)):
        await until(lambda: 5 in acked(controller))
    await controller.stop()
    restarted, again = client_of(joined)
    assert restarted.version == 0
    assert again.restore()
    assert restarted.snapshot == authority.snapshot


async def test_the_stored_snapshot_outlives_every_certificate_of_a_workload(controller, joined, parts):
    _, client = parts
    controller.push(snapshot(5, FRONT))
    async with running(joined.link.keep("policy", client.session)):
        await until(lambda: 5 in acked(controller))
    restarted, again = client_of(joined)
    again._clock = lambda: joined.credentials.not_after + 3600
    assert again.restore()
    assert restarted.version == 5


@pytest.mark.parametrize("position", [0, 20, 60, 200, -1])
async def test_a_damaged_stored_snapshot_is_not_used(controller, joined, parts, position, caplog):
    _, client = parts
    controller.push(snapshot(5, FRONT))
    async with running(joined.link.keep("policy", client.session)):
        await until(lambda: 5 in acked(controller))
    path = joined.settings.state_dir / SNAPSHOT
    data = bytearray(path.read_bytes())
    data[position] ^= 0x20
    path.write_bytes(data)
    restarted, again = client_of(joined)
    assert not again.restore()
    assert restarted.version == 0
    assert "snapshot.bin" in caplog.text
    assert "Remove it" in caplog.text


async def test_a_forged_stored_snapshot_with_a_right_checksum_is_not_used(controller, joined, parts, caplog):
    joined.state.write_checked(SNAPSHOT, signed_by_another_authority(controller).SerializeToString())
    authority, client = parts
    assert not client.restore()
    assert authority.version == 0
    assert "signature" in caplog.text


async def test_a_full_disk_does_not_keep_a_new_policy_out(controller, joined, parts, caplog, monkeypatch):
    authority, client = parts

    class FullDisk:
        abandoned = False

        def write_checked(self, name, payload):
            raise StateError(f"{name} can not be written: No space left on device")

    client._state = FullDisk()
    controller.push(snapshot(5, FRONT))
    async with running(joined.link.keep("policy", client.session)):
        await until(lambda: controller.watchers and controller.watchers[0].acks)
    assert authority.version == 5
    assert "will not survive a restart" in caplog.text


async def test_the_watch_is_taken_up_again_after_the_controller_was_away(controller, joined, parts):
    authority, client = parts
    controller.push(snapshot(5, FRONT))
    async with running(joined.link.keep("policy", client.session)):
        await until(lambda: authority.version == 5)
        await controller.stop()
        await until(lambda: not client.connected)
        assert authority.version == 5
        controller.push(snapshot(6))
        await controller.start()
        await until(lambda: authority.version == 6)
        assert controller.watchers[-1].hello.held_version == 5


async def test_the_watch_moves_to_a_new_channel_on_renewal(controller, joined, parts):
    authority, client = parts
    controller.push(snapshot(5, FRONT))
    lost = []
    async with running(joined.link.keep("policy", client.session, lambda: lost.append(1))):
        await until(lambda: authority.version == 5)
        key = new_key()
        svid = joined.credentials.svid
        chain = controller.authority.sign_workload(make_csr(key), svid.identity, time.time(), 3600).chain_der
        joined.credentials.replace(replace(svid, chain_der=chain, key=key))
        await until(lambda: len(controller.watchers) == 2)
        controller.push(snapshot(6))
        await until(lambda: authority.version == 6)
    assert not lost
