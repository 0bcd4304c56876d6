"""Chains: paths, bounds and name constraints, beyond what the x509-limbo corpus asks."""

from __future__ import annotations

import time
from typing import Any

import pytest
from cryptography import x509

from certs.bundle import TrustBundle
from certs.ca import CertificateAuthority
from certs.errors import CertError, InvalidCertificate, InvalidSvid, UntrustedChain
from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from certs.verify import MAX_INTERMEDIATES, MAX_PATH_INTERMEDIATES, verify_chain, verify_peer
from tests.certs.forge import GOOD_ID, TRUST_DOMAIN, Forge, Leaf, key_usage, uris

NOW = time.time()
ROOT = Forge.root(NOW)
GOOD = Leaf()


def constrained(*permitted: str, excluded: tuple[str, ...] = ()) -> dict[str, Any]:
    constraints = x509.NameConstraints(uris(*permitted) or None, uris(*excluded) or None)
    return {"more": ((constraints, True),)}


def test_a_leaf_of_the_root_and_of_an_intermediate_verify() -> None:
    for signer in (ROOT, ROOT.intermediate()):
        chain = signer.sign(GOOD)
        assert str(verify_peer(chain.leaf, chain.ders[1:], ROOT.bundle(), NOW)) == GOOD_ID
        assert verify_chain(chain.leaf, chain.ders[1:], ROOT.bundle(), NOW) == (*chain.ders, ROOT.der)


def test_order_repetition_and_surplus_of_intermediates_do_not_matter() -> None:
    middle = ROOT.intermediate("middle")
    chain = middle.intermediate("lower").sign(GOOD)
    other = ROOT.intermediate("other").der
    leaf, lower, upper = chain.ders
    sent = (other, upper, ROOT.der, lower, upper)
    assert verify_chain(leaf, sent, ROOT.bundle(), NOW) == (leaf, lower, upper, ROOT.der)


def test_a_missing_intermediate_is_said() -> None:
    chain = ROOT.intermediate().sign(GOOD)
    with pytest.raises(UntrustedChain, match="no root and no intermediate is its issuer"):
        verify_peer(chain.leaf, (), ROOT.bundle(), NOW)


def test_the_same_names_with_other_keys_are_refused() -> None:
    stranger = Forge.root(NOW)
    for signer in (stranger, stranger.intermediate()):
        chain = signer.sign(GOOD)
        with pytest.raises(UntrustedChain, match="another key identifier"):
            verify_peer(chain.leaf, chain.ders[1:], ROOT.bundle(), NOW)
        with pytest.raises(UntrustedChain):
            verify_peer(chain.leaf, (*chain.ders[1:], stranger.der), ROOT.bundle(), NOW)


def test_the_right_names_with_a_wrong_signature_are_refused() -> None:
    leaf = ROOT.sign(GOOD).leaf
    forged = leaf[:-8] + bytes(byte ^ 1 for byte in leaf[-8:])
    with pytest.raises(UntrustedChain, match="its key did not sign"):
        verify_peer(forged, (), ROOT.bundle(), NOW)


def test_a_root_is_no_peer() -> None:
    with pytest.raises(InvalidSvid, match="signing certificate"):
        verify_peer(ROOT.der, (), ROOT.bundle(), NOW)


@pytest.mark.parametrize("depth", [MAX_PATH_INTERMEDIATES, MAX_PATH_INTERMEDIATES + 1])
def test_paths_are_bounded(depth: int) -> None:
    signer = ROOT
    for number in range(depth):
        signer = signer.intermediate(f"level {number}")
    chain = signer.sign(GOOD)
    if depth <= MAX_PATH_INTERMEDIATES:
        assert verify_peer(chain.leaf, chain.ders[1:], ROOT.bundle(), NOW)
    else:
        with pytest.raises(UntrustedChain, match="more than 4 intermediates"):
            verify_peer(chain.leaf, chain.ders[1:], ROOT.bundle(), NOW)


def test_the_number_of_intermediates_is_bounded() -> None:
    chain = ROOT.sign(GOOD)
    with pytest.raises(UntrustedChain, match="at most 8 are read"):
        verify_peer(chain.leaf, (b"",) * (MAX_INTERMEDIATES + 1), ROOT.bundle(), NOW)


def test_one_malformed_intermediate_refuses_the_whole() -> None:
    chain = ROOT.sign(GOOD)
    with pytest.raises(InvalidCertificate, match="intermediate 1"):
        verify_peer(chain.leaf, (b"garbage",), ROOT.bundle(), NOW)


def test_certificates_that_all_sign_each_other_end_the_search() -> None:
    """Eight of one name and key: each is a good issuer of every other, and there are thousands of paths to nowhere."""
    first = ROOT.intermediate("loop")
    looped = [first.intermediate("loop", first.key) for _ in range(MAX_INTERMEDIATES)]
    leaf = first.sign(GOOD).leaf
    with pytest.raises(UntrustedChain, match="more than 32 signatures would have to be checked"):
        verify_peer(leaf, [one.der for one in looped], ROOT.bundle(), NOW)


@pytest.mark.parametrize(
    ("signer", "reason"),
    [
        (ROOT.intermediate(begins=-7200, ends=-3600), "expired at"),
        (ROOT.intermediate(begins=3600, ends=7200), "not valid before"),
        (ROOT.intermediate(usage=key_usage("crl_sign", "digital_signature")), "does not permit signing"),
        (ROOT.intermediate(constraints=x509.BasicConstraints(True, 0)).intermediate("x"), "its path length is 0"),
        (ROOT.intermediate(nameless=True, names=uris(f"spiffe://{TRUST_DOMAIN}")), "names no (subject|issuer)"),
        (ROOT.intermediate(names=uris("spiffe://other.local")), "in this trust domain it must be"),
        (ROOT.intermediate(names=uris(GOOD_ID)), "in this trust domain it must be"),
        (ROOT.intermediate(**constrained("other.local")), "not within what is permitted"),
        (ROOT.intermediate(**constrained(".hedgerow.local")), "not within what is permitted"),
        (ROOT.intermediate(**constrained("local")), "not within what is permitted"),
        (ROOT.intermediate(**constrained(excluded=("hedgerow.local",))), "is excluded"),
        (ROOT.intermediate(**constrained(excluded=(".local",))), "is excluded"),
        (ROOT.intermediate(**constrained("hedgerow.local")).intermediate("y", **constrained("b.local")), "not within"),
        (
            ROOT.intermediate(more=((x509.NameConstraints([x509.DNSName("a.b")], None), False),)),
            "name constraints are not critical",
        ),
    ],
)
def test_an_intermediate_that_may_not_sign_this_is_refused(signer: Forge, reason: str) -> None:
    chain = signer.sign(GOOD)
    with pytest.raises(CertError, match=reason):
        verify_peer(chain.leaf, chain.ders[1:], ROOT.bundle(), NOW)


@pytest.mark.parametrize("permitted", [("hedgerow.local",), (".local",), ("a.local", "hedgerow.local")])
def test_names_within_the_constraints_verify(permitted: tuple[str, ...]) -> None:
    chain = ROOT.intermediate(**constrained(*permitted)).sign(GOOD)
    assert verify_peer(chain.leaf, chain.ders[1:], ROOT.bundle(), NOW)


def test_too_many_constraints_are_not_evaluated() -> None:
    chain = ROOT.intermediate(**constrained(*(f"a{number}.local" for number in range(65)))).sign(GOOD)
    with pytest.raises(UntrustedChain, match="more than 64"):
        verify_peer(chain.leaf, chain.ders[1:], ROOT.bundle(), NOW)


def test_too_many_names_are_not_evaluated() -> None:
    names = (*uris(GOOD_ID), *(x509.DNSName(f"a{number}.local") for number in range(64)))
    chain = ROOT.sign(GOOD.but(names=names))
    with pytest.raises(UntrustedChain, match="more than 64 names"):
        verify_chain(chain.leaf, (), ROOT.bundle(), NOW)


def test_an_expired_root_verifies_nothing_and_hides_no_other() -> None:
    old = Forge.root(NOW, begins=-7200, ends=-10)
    chain = old.sign(GOOD)
    with pytest.raises(UntrustedChain, match="root: expired"):
        verify_peer(chain.leaf, (), TrustBundle(TRUST_DOMAIN, (old.der, ROOT.der)), NOW)
    fresh = ROOT.sign(GOOD)
    assert verify_peer(fresh.leaf, (), TrustBundle(TRUST_DOMAIN, (old.der, ROOT.der)), NOW)


def test_another_path_is_tried_when_the_first_fails() -> None:
    """Two certificates of one intermediate, the first expired: the second one counts."""
    good = ROOT.intermediate("twice")
    expired = ROOT.intermediate("twice", good.key, begins=-7200, ends=-60)
    chain = good.sign(GOOD)
    for sent in ([expired.der, good.der], [good.der, expired.der]):
        assert verify_peer(chain.leaf, sent, ROOT.bundle(), NOW)


def test_a_leaf_of_our_own_authority_for_a_foreign_trust_domain_does_not_chain() -> None:
    """What a stolen issuing key could sign: the name constraints hold it to its trust domain."""
    authority = CertificateAuthority.create(TRUST_DOMAIN, NOW)
    thief = Forge(NOW, authority.issuing.certificate, authority.issuing.key)
    bundle = authority.bundle()
    honest = thief.sign(GOOD)
    assert verify_peer(honest.leaf, honest.ders[1:], bundle, NOW)
    foreign = thief.sign(GOOD.but(names=uris("spiffe://other.local/ns/a/sa/b")))
    with pytest.raises(UntrustedChain, match="not within what is permitted"):
        verify_peer(foreign.leaf, foreign.ders[1:], bundle, NOW)
    website = thief.sign(GOOD.but(names=(*uris(GOOD_ID), x509.DNSName("bank.example"))))
    with pytest.raises(UntrustedChain, match="not within what is permitted"):
        verify_chain(website.leaf, website.ders[1:], bundle, NOW)
    lower = thief.intermediate("a deputy").sign(GOOD)
    with pytest.raises(UntrustedChain, match="its path length is 0"):
        verify_peer(lower.leaf, lower.ders[1:], bundle, NOW)


def test_both_stages_are_asked() -> None:
    authority = CertificateAuthority.create(TRUST_DOMAIN, NOW)
    signed = authority.sign_workload(make_csr(new_key()), SpiffeId.parse(GOOD_ID), NOW, 60)
    other = CertificateAuthority.create(TRUST_DOMAIN, NOW)
    with pytest.raises(CertError):
        verify_peer(signed.chain_der[0], signed.chain_der[1:], other.bundle(), NOW)
    with pytest.raises(CertError):
        verify_peer(signed.chain_der[0], signed.chain_der[1:], authority.bundle(), NOW + 3600)
