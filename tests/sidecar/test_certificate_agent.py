"""The certificate agent against a real issuer: gRPC over TLS, certificates from certs.ca."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from random import Random

import pytest

from certs.ca import CertificateAuthority
from certs.keys import new_key
from certs.spiffe import SpiffeId
from sidecar.certificate_agent import CertificateAgent
from sidecar.errors import ConfigError, EnrolmentError, StateError
from sidecar.settings import Address
from sidecar.state import SVID, StateDirectory
from tests.certs.handshakes import handshake
from tests.sidecar.fake_controller import IDENTITY, INSTANCE, TRUST_DOMAIN, FakeController, running, until


class Sidecar:
    """One run of a sidecar's agent; leaving it is the end of the process."""

    def __init__(self, settings, clock=time.time):
        self.settings = settings
        self.clock = clock

    def __enter__(self):
        self.state = StateDirectory(self.settings.state_dir)
        self.agent = CertificateAgent(self.settings, self.state, Random(7), self.clock)
        return self.agent

    def __exit__(self, *_):
        self.state.close()


async def test_the_join_token_buys_a_certificate_and_is_deleted(controller, tmp_path):
    settings = controller.settings(tmp_path)
    with Sidecar(settings) as agent:
        credentials = await agent.obtain()
    assert credentials.identity == IDENTITY
    assert credentials.not_after > time.time() + 3000
    assert not settings.join_token_file.exists()
    assert (settings.state_dir / SVID).stat().st_mode & 0o777 == 0o600
    assert credentials.instance == settings.instance
    ends = handshake(credentials.client_context, credentials.server_context)
    assert credentials.verify_connection(ends.client) == credentials.verify_connection(ends.server) == IDENTITY


async def test_a_restart_uses_the_stored_certificate_while_the_controller_is_away(controller, tmp_path):
    settings = controller.settings(tmp_path)
    with Sidecar(settings) as agent:
        first = await agent.obtain()
    await controller.stop()
    with Sidecar(settings) as agent:
        second = await agent.obtain()
    assert second.svid.chain_der == first.svid.chain_der
    assert second.svid.bundle == first.svid.bundle


async def test_a_used_token_is_a_clear_error_with_a_remedy(controller, tmp_path):
    settings = controller.settings(tmp_path)
    controller.tokens.clear()  # somebody else was faster
    with Sidecar(settings) as agent, pytest.raises(EnrolmentError) as error:
        await agent.obtain()
    text = str(error.value)
    assert "join_token_file" in text
    assert "used before" in text
    assert "hedgerow join-token create" in text  # the remedy
    assert "token-1" not in text
    assert settings.join_token_file.exists()


async def test_an_expired_certificate_and_a_used_token_are_a_clear_error(controller, tmp_path):
    settings = controller.settings(tmp_path)
    with Sidecar(settings) as agent:
        await agent.obtain()
    later = time.time() + 7200
    with Sidecar(settings, clock=lambda: later) as agent, pytest.raises(EnrolmentError) as error:
        await agent.obtain()
    assert "stored certificate" in str(error.value)
    assert "expired" in str(error.value) or "valid" in str(error.value)
    assert "new join token" in str(error.value)


async def test_no_token_at_all_is_a_clear_error(controller, tmp_path):
    settings = replace(controller.settings(tmp_path), join_token_file=None)
    with Sidecar(settings) as agent, pytest.raises(EnrolmentError, match="join_token_file is not set"):
        await agent.obtain()


@pytest.mark.parametrize("content", [b"", b" \n", b"x" * 5000, b"caf\xc3\xa9", b"two\x00parts", b"two\nlines"])
async def test_a_malformed_token_file_is_refused_without_quoting_it(controller, tmp_path, content):
    settings = controller.settings(tmp_path)
    settings.join_token_file.write_bytes(content)
    with Sidecar(settings) as agent, pytest.raises(EnrolmentError, match="does not hold a join token"):
        await agent.obtain()
    assert controller.signatures == 0


async def test_the_first_certificate_is_waited_for_while_the_issuer_is_away(controller, tmp_path):
    settings = controller.settings(tmp_path)
    await controller.stop()
    with Sidecar(settings) as agent:
        async with running(agent.obtain()) as (obtaining,):
            await until(lambda: "waiting for a first certificate" in agent.problem)
            assert settings.join_token_file.exists()
            await controller.start()
            credentials = await asyncio.wait_for(obtaining, 20)
        assert agent.problem == ""
    assert credentials.identity == IDENTITY


async def test_an_issuer_of_another_authority_never_sees_the_token(controller, tmp_path):
    settings = controller.settings(tmp_path)
    settings.trust_bundle.write_text(CertificateAuthority.create(TRUST_DOMAIN, time.time()).bundle().to_pem())
    with Sidecar(settings) as agent:
        async with running(agent.obtain()):
            await until(lambda: "certificate is not trusted" in agent.problem)
    assert controller.tokens  # not spent
    assert settings.join_token_file.exists()


async def test_a_bundle_of_another_trust_domain_is_refused(controller, tmp_path):
    settings = controller.settings(tmp_path)
    controller.bundle = CertificateAuthority.create("elsewhere.test", time.time()).bundle()
    with Sidecar(settings) as agent, pytest.raises(EnrolmentError, match=r"elsewhere\.test"):
        await agent.obtain()
    assert not (settings.state_dir / SVID).exists()


async def test_a_bundle_without_any_of_our_roots_is_refused(controller, tmp_path):
    settings = controller.settings(tmp_path)
    controller.bundle = CertificateAuthority.create(TRUST_DOMAIN, time.time()).bundle()
    with Sidecar(settings) as agent, pytest.raises(EnrolmentError, match="overlap"):
        await agent.obtain()


async def test_a_configured_bundle_of_another_trust_domain_is_refused(controller, tmp_path):
    settings = controller.settings(tmp_path)
    settings.trust_bundle.write_text(CertificateAuthority.create("elsewhere.test", time.time()).bundle().to_pem())
    with Sidecar(settings) as agent, pytest.raises(ConfigError, match="trust_bundle"):
        await agent.obtain()


async def test_a_certificate_for_another_instance_is_refused(controller, tmp_path):
    settings = controller.settings(tmp_path)
    controller.tokens["token-1"] = (IDENTITY, "cart-2")
    with Sidecar(settings) as agent, pytest.raises(EnrolmentError, match="cart-2"):
        await agent.obtain()


async def test_an_identity_without_a_workload_is_refused(controller, tmp_path):
    settings = controller.settings(tmp_path)
    controller.tokens["token-1"] = (SpiffeId.for_account(TRUST_DOMAIN, "shop", "default"), INSTANCE)
    with Sidecar(settings) as agent, pytest.raises(EnrolmentError, match="names no workload"):
        await agent.obtain()


async def test_a_damaged_stored_certificate_is_not_trusted(controller, tmp_path):
    settings = controller.settings(tmp_path)
    with Sidecar(settings) as agent:
        await agent.obtain()
    svid = settings.state_dir / SVID
    data = bytearray(svid.read_bytes())
    data[-200] ^= 1
    svid.write_bytes(data)
    with Sidecar(settings) as agent, pytest.raises(EnrolmentError, match="stored certificate is not used"):
        await agent.obtain()
    controller.tokens["token-2"] = (IDENTITY, INSTANCE)
    settings.join_token_file.write_text("token-2")
    with Sidecar(settings) as agent:
        assert (await agent.obtain()).identity == IDENTITY


async def test_a_stored_key_of_another_certificate_is_not_trusted(controller, tmp_path):
    from certs.keys import key_to_pem

    settings = controller.settings(tmp_path)
    with Sidecar(settings) as agent:
        await agent.obtain()
    svid = settings.state_dir / SVID
    chain = svid.read_bytes().partition(b"-----END PRIVATE KEY-----\n")[2]
    svid.write_bytes(key_to_pem(new_key()) + chain)
    with Sidecar(settings) as agent, pytest.raises(EnrolmentError, match="another key"):
        await agent.obtain()


async def test_the_state_of_another_instance_is_refused(controller, tmp_path):
    settings = controller.settings(tmp_path)
    with Sidecar(settings) as agent:
        await agent.obtain()
    with Sidecar(replace(settings, instance="cart-2")) as agent, pytest.raises(StateError, match="cart-1"):
        await agent.obtain()


async def test_a_new_authority_with_a_new_token_replaces_the_stored_certificate(controller, tmp_path):
    settings = controller.settings(tmp_path)
    with Sidecar(settings) as agent:
        await agent.obtain()
    async with FakeController() as other:
        settings.trust_bundle.write_text(other.authority.bundle().to_pem())
        settings.join_token_file.write_text("token-1")
        moved = replace(settings, issuer=other.issuer, controller=other.controller)
        with Sidecar(moved) as agent:
            credentials = await agent.obtain()
        assert other.signatures == 1
    assert credentials.svid.bundle == other.authority.bundle()


# Renewal --------------------------------------------------------------------------------------------------------------


async def test_certificates_are_renewed_within_seconds_with_fresh_keys(controller, tmp_path):
    controller.lifetime = 2.0
    settings = controller.settings(tmp_path)
    with Sidecar(settings) as agent:
        credentials = await agent.obtain()
        contexts = {id(credentials.server_context): credentials.server_context}
        told = []
        credentials.subscribe(lambda: told.append(credentials.svid))
        credentials.subscribe(lambda: contexts.setdefault(id(credentials.server_context), credentials.server_context))
        async with running(agent.run(credentials)):
            await until(lambda: credentials.renewals >= 3)
        assert [svid.identity for svid in told] == [IDENTITY] * len(told)
        assert len({svid.key.private_numbers().private_value for svid in told}) == len(told)
        assert len(contexts) == len(told) + 1
        stored = credentials.svid
    controller.lifetime = 3600.0
    with Sidecar(settings) as agent:
        restarted, reason = agent._stored()
        assert restarted is not None, reason
        assert restarted.chain_der == stored.chain_der


async def test_a_renewal_is_tried_again_until_the_controller_is_back(controller, tmp_path, caplog):
    settings = controller.settings(tmp_path)
    with Sidecar(settings) as agent:
        credentials = await agent.obtain()
        await controller.stop()
        first = credentials.svid
        half_life = time.time() + 0.7 * (first.not_after - first.not_before)
        late = CertificateAgent(settings, agent._state, Random(1), lambda: half_life)
        async with running(late.run(credentials)):
            await until(lambda: caplog.text.count("could not be renewed") >= 2)
            assert credentials.svid is first
            await controller.start()
            await until(lambda: credentials.renewals >= 1)
        assert late.problem == ""


async def test_new_roots_extend_the_contexts(controller, tmp_path):
    settings = controller.settings(tmp_path)
    with Sidecar(settings) as agent:
        credentials = await agent.obtain()
        before = credentials.svid.bundle
        controller.authority = controller.authority.prepare_root(time.time())
        renewed = await agent._renew(credentials)
        credentials.replace(renewed)
        assert set(before.roots_der) < set(credentials.svid.bundle.roots_der)
        assert len(credentials.client_context.get_ca_certs()) == 2
        assert len(credentials.server_context.get_ca_certs()) == 2
        # an older bundle does not take them away again
        controller.bundle = before
        assert (await agent._renew(credentials)).bundle == credentials.svid.bundle


async def test_an_expired_running_sidecar_says_so_and_takes_a_new_token(controller, tmp_path):
    controller.lifetime = 1.0
    settings = controller.settings(tmp_path)
    with Sidecar(settings) as agent:
        credentials = await agent.obtain()
        await until(lambda: time.time() > credentials.not_after)
        async with running(agent.run(credentials)):
            await until(lambda: "has expired" in agent.problem)
            controller.lifetime = 3600.0
            controller.tokens["token-9"] = (IDENTITY, INSTANCE)
            settings.join_token_file.write_text("token-9")
            await until(lambda: credentials.renewals == 1)
            assert agent.problem == ""
    assert credentials.not_after > time.time()


async def test_a_renewal_for_another_identity_is_refused(controller, tmp_path):
    settings = controller.settings(tmp_path)
    other = SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "front")
    with Sidecar(settings) as agent:
        credentials = await agent.obtain()
        held = credentials.svid
        controller._caller = lambda context: other
        with pytest.raises(Exception, match="answered for") as error:
            await agent._renew(credentials)
        assert "front" in str(error.value)
        assert credentials.svid is held


async def test_secrets_are_never_logged(controller, tmp_path, caplog):
    caplog.set_level("DEBUG")
    settings = controller.settings(tmp_path)
    with Sidecar(settings) as agent:
        credentials = await agent.obtain()
        assert "PRIVATE" not in repr(credentials.svid)
        assert "key=" not in repr(credentials.svid)
    controller.tokens.clear()
    os.unlink(settings.state_dir / SVID)
    settings.join_token_file.write_text("token-1")
    with Sidecar(settings) as agent, pytest.raises(EnrolmentError):
        await agent.obtain()
    assert "token-1" not in caplog.text
    assert "PRIVATE KEY" not in caplog.text


async def test_an_unreachable_address_is_named(controller, tmp_path, caplog):
    await controller.stop()
    settings = replace(controller.settings(tmp_path), issuer=Address("127.0.0.1", controller.issuer.port))
    with Sidecar(settings) as agent:
        async with running(agent.obtain()):
            await until(lambda: "nothing listens there" in agent.problem)
