"""Signatures over policy."""

from __future__ import annotations

import time

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from certs.ca import CertificateAuthority, SignedChain
from certs.errors import CertError, InvalidSignature, InvalidSvid, UntrustedChain
from certs.keys import make_csr, new_key
from certs.signing import sign_payload, verify_payload
from certs.spiffe import SpiffeId

NOW = time.time()
TD = "hedgerow.local"
AUTHORITY = CertificateAuthority.create(TD, NOW)
KEY = new_key()
SIGNER = AUTHORITY.sign_policy_signer(make_csr(KEY), NOW)
PAYLOAD = b"snapshot" * 100
SIGNATURE = sign_payload(KEY, PAYLOAD)


def test_what_the_policy_signer_signed_verifies() -> None:
    for payload in (b"", PAYLOAD, bytes(1_000_000)):
        verify_payload(payload, sign_payload(KEY, payload), SIGNER.chain_der, AUTHORITY.bundle(), NOW)


def test_it_verifies_while_the_controller_is_away_until_the_signer_expires() -> None:
    verify_payload(PAYLOAD, SIGNATURE, SIGNER.chain_der, AUTHORITY.bundle(), SIGNER.not_after)
    with pytest.raises(CertError, match="expired"):
        verify_payload(PAYLOAD, SIGNATURE, SIGNER.chain_der, AUTHORITY.bundle(), SIGNER.not_after + 1)
    with pytest.raises(CertError, match="not valid before"):
        verify_payload(PAYLOAD, SIGNATURE, SIGNER.chain_der, AUTHORITY.bundle(), SIGNER.not_before - 1)


@pytest.mark.parametrize(
    ("payload", "signature"),
    [
        (PAYLOAD + b"x", SIGNATURE),
        (PAYLOAD[:-1], SIGNATURE),
        (b"", SIGNATURE),
        (PAYLOAD, b""),
        (PAYLOAD, SIGNATURE[:-1]),
        (PAYLOAD, SIGNATURE + b"\0"),
        (PAYLOAD, bytes(64)),
        (PAYLOAD, sign_payload(new_key(), PAYLOAD)),
        (PAYLOAD, KEY.sign(PAYLOAD, ec.ECDSA(hashes.SHA256()))),  # without the label: made for something else
    ],
)
def test_what_it_did_not_sign_is_refused(payload: bytes, signature: bytes) -> None:
    with pytest.raises(InvalidSignature):
        verify_payload(payload, signature, SIGNER.chain_der, AUTHORITY.bundle(), NOW)


def certified(key: ec.EllipticCurvePrivateKey, who: str) -> SignedChain:
    csr = make_csr(key)
    if who == "controller":
        return AUTHORITY.sign_controller(csr, NOW, 3600)
    return AUTHORITY.sign_workload(
        csr, SpiffeId.for_workload(TD, "hedgerow-system", "hedgerow-controller", who), NOW, 3600
    )


@pytest.mark.parametrize("who", ["controller", "policy-signer", "cart"])
def test_nobody_else_may_sign(who: str) -> None:
    key = new_key()
    with pytest.raises(InvalidSvid, match="may not sign policy"):
        verify_payload(PAYLOAD, sign_payload(key, PAYLOAD), certified(key, who).chain_der, AUTHORITY.bundle(), NOW)


def test_a_signer_with_another_curve_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    chain = AUTHORITY.sign_policy_signer(make_csr(key), NOW).chain_der
    with pytest.raises(InvalidSignature, match="not ECDSA P-256"):
        verify_payload(PAYLOAD, sign_payload(key, PAYLOAD), chain, AUTHORITY.bundle(), NOW)


def test_a_signer_of_another_root_or_trust_domain_is_refused() -> None:
    for authority in (CertificateAuthority.create(TD, NOW), CertificateAuthority.create("other.local", NOW)):
        chain = authority.sign_policy_signer(make_csr(KEY), NOW).chain_der
        with pytest.raises(UntrustedChain):
            verify_payload(PAYLOAD, SIGNATURE, chain, AUTHORITY.bundle(), NOW)


def test_a_missing_or_incomplete_chain_is_refused() -> None:
    with pytest.raises(InvalidSignature, match="without its signer"):
        verify_payload(PAYLOAD, SIGNATURE, (), AUTHORITY.bundle(), NOW)
    with pytest.raises(UntrustedChain):
        verify_payload(PAYLOAD, SIGNATURE, SIGNER.chain_der[:1], AUTHORITY.bundle(), NOW)
    with pytest.raises(CertError):
        verify_payload(PAYLOAD, SIGNATURE, SIGNER.chain_der[1:], AUTHORITY.bundle(), NOW)


def test_a_signature_outlives_a_root_roll_over_while_the_old_root_is_needed() -> None:
    activated = AUTHORITY.prepare_root(NOW).activate_root(NOW)
    verify_payload(PAYLOAD, SIGNATURE, SIGNER.chain_der, activated.bundle(), NOW)
    verify_payload(PAYLOAD, SIGNATURE, SIGNER.chain_der, activated.retire_roots(SIGNER.not_after).bundle(), NOW)
    with pytest.raises(UntrustedChain):
        verify_payload(PAYLOAD, SIGNATURE, SIGNER.chain_der, activated.retire_roots(SIGNER.not_after + 1).bundle(), NOW)
