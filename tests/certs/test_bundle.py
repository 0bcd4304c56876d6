"""The trust bundle."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from cryptography import x509

from certs.bundle import MAX_ROOTS, TrustBundle, check_signing_certificate
from certs.ca import CertificateAuthority
from certs.certificate import read_certificate
from certs.errors import InvalidBundle, InvalidCertificate, InvalidSpiffeId
from tests.certs.forge import Forge, Leaf, key_usage, uris

NOW = time.time()
TD = "hedgerow.local"
AUTHORITY = CertificateAuthority.create(TD, NOW).prepare_root(NOW)
ROOT = Forge.root(NOW)


def test_a_bundle_reads_back_as_it_was_written() -> None:
    bundle = AUTHORITY.bundle()
    assert (len(bundle.roots_der), bundle.sequence) == (2, 2)
    for text in (bundle.to_pem(), bundle.to_pem().encode()):
        assert TrustBundle.from_pem(text) == bundle
        assert TrustBundle.from_pem(text, TD) == bundle


def test_a_bundle_of_bare_certificates_needs_its_trust_domain_said() -> None:
    bare = "".join(line for line in AUTHORITY.bundle().to_pem().splitlines(keepends=True) if not line.startswith("#"))
    assert TrustBundle.from_pem(bare, TD) == replace(AUTHORITY.bundle(), sequence=0)
    with pytest.raises(InvalidBundle, match="names no trust domain"):
        TrustBundle.from_pem(bare)


def test_a_bundle_of_another_trust_domain_is_refused() -> None:
    with pytest.raises(InvalidBundle, match=r"expected was 'other\.local'"):
        TrustBundle.from_pem(ROOT.bundle().to_pem(), "other.local")
    with pytest.raises(InvalidBundle, match="its SPIFFE ID is"):
        replace(AUTHORITY.bundle(), trust_domain="other.local")
    with pytest.raises(InvalidSpiffeId):
        replace(AUTHORITY.bundle(), trust_domain="Hedgerow.local")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "# trust-domain: hedgerow.local\n",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        AUTHORITY.bundle().to_pem()[:-100],
        AUTHORITY.bundle().to_pem().replace("sequence: 2", "sequence: two"),
        AUTHORITY.bundle().to_pem().replace("sequence: 2", "sequence: -2"),
        AUTHORITY.bundle().to_pem() + "\n" * 2_000_000,
        b"\xff\xfe",
    ],
)
def test_a_damaged_bundle_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidBundle):
        TrustBundle.from_pem(text, TD)


def test_a_leaf_is_no_signing_certificate() -> None:
    leaf = ROOT.sign(Leaf()).leaf
    with pytest.raises(InvalidCertificate, match="lacks basic constraint CA"):
        check_signing_certificate(read_certificate(leaf), "leaf")


def test_roots_are_few_and_no_two_are_one() -> None:
    with pytest.raises(InvalidBundle, match="0 roots"):
        TrustBundle(TD, ())
    with pytest.raises(InvalidBundle, match="twice"):
        TrustBundle(TD, (ROOT.der, ROOT.der))
    with pytest.raises(InvalidBundle, match="17 roots"):
        TrustBundle(TD, tuple(bytes([number]) for number in range(MAX_ROOTS + 1)))


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        (ROOT.intermediate(), "not signed with its own key|not its own subject key"),
        (Forge.root(NOW, constraints=x509.BasicConstraints(False, None)), "without basic constraint CA"),
        (Forge.root(NOW, nameless=True, names=uris(f"spiffe://{TD}")), "names no (subject|issuer)"),
        (Forge.root(NOW, usage=key_usage("crl_sign")), "does not permit signing"),
        (Forge.root(NOW, names=uris("spiffe://hedgerow.local/ns/a/sa/b")), "its SPIFFE ID is"),
        (Forge.root(NOW, names=uris("spiffe://hedgerow.local"), usage_critical=False), "key usage is not critical"),
        (Forge.root(NOW, more=((x509.NameConstraints(uris(TD), None), False),)), "name constraints are not critical"),
        (Forge.root(NOW, more=((x509.NameConstraints(uris("https://a"), None), True),)), "no trust domain"),
        (
            Forge.root(NOW, more=((x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.2.3")]), False),)),
            "extended key usage",
        ),
        (Forge.root(NOW, more=((x509.PolicyConstraints(0, 0), True),)), "binds policies"),
    ],
)
def test_what_may_not_be_a_root_is_refused(root: Forge, reason: str) -> None:
    with pytest.raises(InvalidBundle, match=reason):
        TrustBundle(TD, (root.der,))
