"""A pod's certificate: for the token that Kubernetes keeps in a file, under roots that the controller keeps in another.

Volumes are written as the kubelet does it: a link to a directory that is replaced as a whole.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from dataclasses import replace
from random import Random

import grpc
import pytest

from certs.keys import public_bytes
from sidecar import certificate_agent
from sidecar.certificate_agent import CertificateAgent
from sidecar.settings import Address
from sidecar.state import SVID, StateDirectory
from tests.sidecar.fake_controller import IDENTITY, INSTANCE, FakeController, running, until
from tests.sidecar.processes import free_port


class Volume:
    """A directory as the kubelet writes projected volumes and ConfigMaps (its ``AtomicWriter``)."""

    def __init__(self, path, name):
        self.path = path
        self.file = path / name
        self._name = name
        self._version = 0
        path.mkdir()
        self.file.symlink_to(f"..data/{name}")

    def write(self, text):
        self._version += 1
        version = self.path / f"..{self._version}"
        version.mkdir()
        (version / self._name).write_text(text)
        beside = self.path / "..data_tmp"
        beside.symlink_to(version.name)
        os.rename(beside, self.path / "..data")


class Pod:
    def __init__(self, controller, directory):
        self.token = Volume(directory / "token", "token")
        self.trust = Volume(directory / "trust", "trust-bundle.pem")
        self.settings = replace(
            controller.settings(directory),
            join_token_file=None,
            service_account_token_file=self.token.file,
            trust_bundle=self.trust.file,
        )
        self.state = StateDirectory(self.settings.state_dir)

    def agent(self, clock=time.time, **changes):
        return CertificateAgent(replace(self.settings, **changes), self.state, Random(7), clock)


@pytest.fixture
def pod(controller, tmp_path):
    made = Pod(controller, tmp_path)
    controller.pod_tokens["first.of.three"] = (IDENTITY, INSTANCE)
    made.trust.write(controller.authority.bundle().to_pem())
    made.token.write("first.of.three")
    yield made
    made.state.close()


async def test_a_pod_s_token_buys_a_certificate_and_stays(controller, pod, caplog):
    caplog.set_level("DEBUG")
    credentials = await pod.agent().obtain()
    assert credentials.identity == IDENTITY
    assert pod.token.file.exists()
    assert [(each.instance, each.join_token) for each in controller.shown] == [(INSTANCE, "")]
    assert "first.of.three" not in caplog.text
    # the stored one is used, and the token is not shown again
    assert (await pod.agent().obtain()).svid.chain_der == credentials.svid.chain_der
    assert len(controller.shown) == 1


async def test_what_is_missing_is_waited_for(controller, tmp_path, monkeypatch):
    monkeypatch.setattr(certificate_agent, "REFUSED_WAIT", 0.05)
    pod = Pod(controller, tmp_path)
    agent = pod.agent()
    async with running(agent.obtain()) as (obtaining,):
        await until(lambda: "trust-bundle.pem: No such file" in agent.problem)
        assert "ConfigMap hedgerow-trust" in agent.problem
        pod.trust.write("")
        await until(lambda: "trust_bundle" in agent.problem and "No such file" not in agent.problem)
        pod.trust.write(controller.authority.bundle().to_pem())
        await until(lambda: "token is not there; mount a projected volume" in agent.problem)
        for nothing in ("", "two\nlines", "x" * 20_000):
            pod.token.write(nothing)
            await until(lambda: "does not hold a token" in agent.problem)
        pod.token.write("unknown")
        await until(lambda: "refuses this pod's token: " in agent.problem)
        assert "[attestation-invalid]" in agent.problem
        controller.pod_refusal = (grpc.StatusCode.UNAVAILABLE, "not heard of yet [attestation-not-yet]")
        await until(lambda: "not heard of yet" in agent.problem)
        controller.pod_tokens["second"] = (IDENTITY, INSTANCE)
        pod.token.write("second")
        await asyncio.wait_for(obtaining, 20)
        assert agent.problem == ""
    keys = {each.csr_der for each in controller.shown}
    assert len(controller.shown) >= 3
    assert len({public_key(each) for each in keys}) == 1, "one key until there is a certificate"
    pod.state.close()


def public_key(csr_der):
    from certs.issue import read_csr

    return public_bytes(read_csr(csr_der))


async def test_an_expired_certificate_is_replaced_with_the_token_of_that_moment(controller, pod):
    controller.lifetime = 1.0
    agent = pod.agent()
    credentials = await agent.obtain()
    controller.refuse_renewals = True
    await until(lambda: time.time() > credentials.not_after)
    del controller.pod_tokens["first.of.three"]
    async with running(agent.run(credentials)):
        await until(lambda: "has expired" in agent.problem and "refuses this pod's token" in agent.problem)
        controller.lifetime = 3600.0
        controller.pod_tokens["second"] = (IDENTITY, INSTANCE)
        pod.token.write("second")
        await until(lambda: credentials.renewals == 1)
        assert agent.problem == ""
    assert controller.shown[-1].service_account_token == "second"
    assert credentials.not_after > time.time() + 3000


def taken_away(pod):
    """Settings that lead to nobody, as after ``helm uninstall``: the Services are gone, and the ConfigMap with them."""
    shutil.rmtree(pod.trust.path)
    nobody = Address("127.0.0.1", free_port())
    return {"controller": nobody, "issuer": nobody}


async def test_a_restart_after_hedgerow_was_taken_away_goes_on_with_the_stored_certificate(controller, pod):
    before = await pod.agent().obtain()
    gone = taken_away(pod)
    pod.token.file.unlink()
    after = await asyncio.wait_for(pod.agent(**gone).obtain(), 60)
    assert after.svid.chain_der == before.svid.chain_der
    assert len(controller.shown) == 1


async def test_when_that_has_expired_a_restart_says_so_and_waits_for_somebody_to_ask(controller, pod, monkeypatch):
    monkeypatch.setattr(certificate_agent, "REFUSED_WAIT", 0.05)
    before = await pod.agent().obtain()
    roots = pod.trust.file.read_text()
    gone = taken_away(pod)
    agent = pod.agent(lambda: before.not_after + 120, **gone)
    async with running(agent.obtain()) as (obtaining,):
        await until(lambda: agent.problem)
        assert agent.problem.startswith("the stored certificate is not used (")
        assert "expired at " in agent.problem
        assert "waiting for a new one: trust_bundle: " in agent.problem
        pod.trust.path.mkdir()
        pod.trust.file.write_text(roots)
        await until(lambda: str(gone["issuer"]) in agent.problem)
        assert not obtaining.done(), "the old one is not used again"


async def test_new_roots_in_the_file_are_taken_over_while_it_runs(controller, pod, monkeypatch):
    monkeypatch.setattr(certificate_agent, "MAX_SLEEP", 0.02)
    agent = pod.agent()
    credentials = await agent.obtain()
    before = credentials.svid
    async with running(agent.run(credentials)):
        pod.trust.write("damaged")
        controller.authority = controller.authority.prepare_root(time.time())
        pod.trust.write(controller.authority.bundle().to_pem())
        await until(lambda: credentials.svid.bundle == controller.authority.bundle())
        assert credentials.svid.chain_der == before.chain_der
        assert len(credentials.client_context.get_ca_certs()) == 2
        # what is older, such as of a volume that lags, takes nothing away
        seen = agent._bundle_seen
        pod.trust.write(before.bundle.to_pem())
        await until(lambda: agent._bundle_seen != seen)
        assert credentials.svid.bundle == controller.authority.bundle()
    assert len(controller.shown) == 1
    stored, reason = pod.agent()._stored()
    assert stored is not None, reason
    assert stored.bundle == controller.authority.bundle()


async def test_a_controller_with_another_authority_gives_another_certificate(controller, pod, monkeypatch, caplog):
    monkeypatch.setattr(certificate_agent, "MAX_SLEEP", 0.02)
    agent = pod.agent()
    credentials = await agent.obtain()
    address = controller.issuer
    await controller.stop()
    async with running(agent.run(credentials)):
        other = FakeController()
        other.issuer, other.controller = address, controller.controller
        pod.trust.write(other.authority.bundle().to_pem())
        await until(lambda: "could not be renewed" in caplog.text)
        assert credentials.renewals == 0
        other.pod_tokens["first.of.three"] = (IDENTITY, INSTANCE)
        async with other:
            await until(lambda: credentials.renewals == 1)
            assert credentials.svid.bundle == other.authority.bundle()
            assert credentials.identity == IDENTITY


async def test_a_sidecar_that_was_away_meets_another_authority(controller, pod):
    await pod.agent().obtain()
    async with FakeController() as other:
        other.pod_tokens["first.of.three"] = (IDENTITY, INSTANCE)
        pod.trust.write(other.authority.bundle().to_pem())
        moved = pod.agent(issuer=other.issuer, controller=other.controller)
        assert (await moved.obtain()).svid.bundle == other.authority.bundle()


async def test_a_damaged_store_is_mended_with_the_token(controller, pod):
    first = await pod.agent().obtain()
    (pod.settings.state_dir / SVID).write_bytes(b"damaged")
    second = await pod.agent().obtain()
    assert second.svid.chain_der != first.svid.chain_der
    assert len(controller.shown) == 2
