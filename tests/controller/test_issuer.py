"""The throttle for wrong join tokens, and the keyring that signs."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from random import Random

import pytest

from certs.bundle import TrustBundle
from certs.ca import ISSUING_LIFETIME
from certs.ca_files import load_authority
from certs.certificate import read_pem_certificates
from certs.errors import AuthorityError, CertError
from certs.keys import make_csr, new_key
from certs.signing import verify_payload
from certs.spiffe import SpiffeId
from certs.verify import verify_peer
from controller import keyring as keyrings
from controller.errors import ConfigError
from controller.issuer import Throttle, Throttled
from controller.keyring import Keyring
from tests.controller.mesh import TRUST_DOMAIN, Clock


class TestThrottle:
    def test_attempts_come_back_one_by_one(self) -> None:
        throttle = Throttle(burst=2, interval=10)
        for _ in range(2):
            throttle.check("192.0.2.1", 100)
            throttle.failed("192.0.2.1", 100)
        with pytest.raises(Throttled) as caught:
            throttle.check("192.0.2.1", 101)
        assert "in 9 s" in caught.value.remedy
        throttle.check("192.0.2.1", 110)
        throttle.failed("192.0.2.1", 110)
        with pytest.raises(Throttled):
            throttle.check("192.0.2.1", 119)

    def test_others_are_not_concerned_but_the_rest_of_an_ipv6_network_is(self) -> None:
        throttle = Throttle(burst=1, interval=10)
        throttle.failed("2001:db8::1", 100)
        throttle.failed("::ffff:192.0.2.1", 100)
        throttle.check("2001:db8:0:1::1", 100)
        throttle.check("192.0.2.2", 100)
        for address in ("2001:db8::ffff", "192.0.2.1"):
            with pytest.raises(Throttled):
                throttle.check(address, 100)

    def test_memory_is_bounded_and_a_clock_that_goes_back_forgives_nothing(self) -> None:
        throttle = Throttle(burst=1, interval=10, most=3)
        for last in range(10):
            throttle.failed(f"192.0.2.{last}", 100)
        assert len(throttle._spent) == 3
        with pytest.raises(Throttled):
            throttle.check("192.0.2.9", 50)


def ring(path: Path, clock: Clock, **changes: object) -> Keyring:
    given = {"trust_domain": TRUST_DOMAIN, "lifetime": 3600.0, **changes}
    return Keyring.open(path, clock=clock, random=Random(1), **given)


class TestKeyring:
    def test_the_authority_is_made_once_for_its_owner_alone(self, tmp_path: Path) -> None:
        clock = Clock()
        first = ring(tmp_path, clock)
        assert stat.S_IMODE((tmp_path / "ca" / "authority.pem").stat().st_mode) == 0o600
        assert TrustBundle.from_pem((tmp_path / "trust-bundle.pem").read_text(), TRUST_DOMAIN) == first.bundle
        assert ring(tmp_path, clock).bundle == first.bundle

    def test_another_trust_domain_or_a_damaged_file_is_refused(self, tmp_path: Path) -> None:
        clock = Clock()
        ring(tmp_path, clock)
        with pytest.raises(ConfigError) as caught:
            ring(tmp_path, clock, trust_domain="other.test")
        assert caught.value.field == "trust_domain"
        file = tmp_path / "ca" / "authority.pem"
        file.chmod(0o644)
        with pytest.raises(ConfigError, match="others can read it"):
            ring(tmp_path, clock)
        file.chmod(0o600)
        file.write_text(file.read_text()[:-200])
        with pytest.raises(ConfigError, match=r"authority\.pem"):
            ring(tmp_path, clock)

    def test_the_server_s_certificate_is_renewed_at_half_of_its_life_and_the_old_value_stays_as_it_was(
        self, tmp_path: Path
    ) -> None:
        clock = Clock()
        keyring = ring(tmp_path, clock)
        first = keyring.material
        assert first.not_after == clock.now + 3600
        assert clock.now + 1400 < first.renew_at < clock.now + 2200
        clock.now += 1000
        keyring.maintain()
        assert keyring.material is first
        clock.now = first.renew_at
        keyring.maintain()
        second = keyring.material
        assert (second.version, second.not_after) == (first.version + 1, pytest.approx(clock.now + 3600, abs=1))
        assert second.key_pem != first.key_pem
        leaf, *others = read_pem_certificates(second.chain_pem, "server")
        assert verify_peer(leaf, others, keyring.bundle, clock.now) == SpiffeId.controller(TRUST_DOMAIN)

    def test_no_key_shows(self, tmp_path: Path) -> None:
        keyring = ring(tmp_path, Clock())
        for shown in (repr(keyring.material), repr(keyring.signer)):
            assert "PRIVATE" not in shown
            assert "EllipticCurve" not in shown

    def test_a_renewed_authority_is_on_disk_before_it_signs_and_old_chains_hold(self, tmp_path: Path) -> None:
        clock = Clock()
        keyring = ring(tmp_path, clock)
        identity = SpiffeId.for_workload(TRUST_DOMAIN, "shop", "front", "front")
        clock.now += ISSUING_LIFETIME / 2 - 100
        old = keyring.sign_workload(make_csr(new_key()), identity, "front-0", "", 3600)
        signer = keyring.signer
        payload = b"a snapshot"
        signature = signer.sign(payload)
        clock.now += 200
        keyring.maintain()
        on_disk = load_authority(tmp_path / "ca")
        assert on_disk is not None
        new = keyring.sign_workload(make_csr(new_key()), identity, "front-0", "", 3600)
        assert new.chain_der[1] != old.chain_der[1]
        assert keyring.signer is not signer
        for chain in (old, new):
            assert verify_peer(chain.chain_der[0], chain.chain_der[1:], on_disk.bundle(), clock.now) == identity
        verify_payload(payload, signature, signer.chain.chain_der, keyring.bundle, clock.now)

    @pytest.mark.parametrize("ahead", [86400.0, 2 * 365 * 86400.0], ids=["a day", "two years"])
    def test_a_clock_that_was_ahead_leaves_nothing_that_begins_only_later(self, tmp_path: Path, ahead: float) -> None:
        clock = Clock()
        keyring = ring(tmp_path, clock)
        clock.now += ahead
        keyring.maintain()
        clock.now -= ahead - 100.0
        keyring.maintain()
        keyring.check_ready()
        leaf, *others = read_pem_certificates(keyring.material.chain_pem, "server")
        assert verify_peer(leaf, others, keyring.bundle, clock.now) == SpiffeId.controller(TRUST_DOMAIN)
        signer = keyring.signer
        verify_payload(b"x", signer.sign(b"x"), signer.chain.chain_der, keyring.bundle, clock.now)
        held = keyring.material
        keyring.maintain()
        assert keyring.material is held
        ring(tmp_path, clock).check_ready()

    @pytest.mark.parametrize("taken", ["ca/.authority.pem.new", ".trust-bundle.pem.new"])
    def test_a_disk_that_takes_nothing_keeps_no_certificate_from_being_renewed(
        self, tmp_path: Path, taken: str
    ) -> None:
        clock = Clock()
        keyring = ring(tmp_path, clock)
        clock.now += 3650 * 86400.0 - 380 * 86400.0  # a new root is to be published
        keyring = ring(tmp_path, clock)
        clock.now += 200 * 86400.0
        (tmp_path / taken).mkdir()  # also for root, whom no mode keeps out
        for _ in range(3):
            clock.now += 3600.0
            with pytest.raises((CertError, ConfigError)):
                keyring.maintain()
            leaf, *others = read_pem_certificates(keyring.material.chain_pem, "server")
            assert verify_peer(leaf, others, keyring.bundle, clock.now) == SpiffeId.controller(TRUST_DOMAIN)
        (tmp_path / taken).rmdir()
        keyring.maintain()
        written = TrustBundle.from_pem((tmp_path / "trust-bundle.pem").read_text(), TRUST_DOMAIN)
        assert written == keyring.bundle
        assert ring(tmp_path, clock).bundle == keyring.bundle

    async def test_what_could_not_be_written_is_tried_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keyrings, "MAX_SLEEP", 0.05)
        clock = Clock()
        keyring = ring(tmp_path, clock, lifetime=3600.0)
        (tmp_path / ".trust-bundle.pem.new").mkdir()
        clock.now += 200 * 86400.0
        upkeep = asyncio.create_task(keyring.run())
        first = keyring.material
        try:
            async with asyncio.timeout(60):
                while keyring.material is first:  # noqa: ASYNC110  # what is waited for is its own work
                    await asyncio.sleep(0.01)
                (tmp_path / ".trust-bundle.pem.new").rmdir()
                clock.now += 3600.0
                before = (tmp_path / "trust-bundle.pem").stat().st_mtime_ns
                while (tmp_path / "trust-bundle.pem").stat().st_mtime_ns == before:
                    assert not upkeep.done(), upkeep
                    await asyncio.sleep(0.01)
        finally:
            upkeep.cancel()
            await asyncio.gather(upkeep, return_exceptions=True)

    def test_a_clock_that_is_far_off_is_told_before_a_token_is_spent(self, tmp_path: Path) -> None:
        clock = Clock()
        keyring = ring(tmp_path, clock)
        keyring.check_ready()
        clock.now -= 86400
        with pytest.raises(AuthorityError, match="check the controller's clock"):
            keyring.check_ready()
