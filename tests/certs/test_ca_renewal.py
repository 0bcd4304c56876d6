"""How an authority's own certificates are confined and replaced, and how it is written down."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509

from certs.ca import ISSUING_LIFETIME, MAX_LEAF_LIFETIME, ROOT_LIFETIME, ROOT_OVERLAP, CertificateAuthority
from certs.errors import AuthorityError, InvalidSpiffeId, UntrustedChain
from certs.keys import key_to_pem, make_csr, new_key, public_bytes
from certs.spiffe import CONTROLLER_DNS_NAME, SpiffeId
from tests.certs.authorities import AUTHORITY, CART, DAY, NOW, TD, signed, verify

# -- the authority's own certificates


def test_signing_certificates_are_confined() -> None:
    for certificate, path_length in ((AUTHORITY.active.certificate, 1), (AUTHORITY.issuing.certificate, 0)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(True, path_length)
        names = certificate.extensions.get_extension_for_class(x509.NameConstraints)
        assert names.critical
        assert names.value.permitted_subtrees == [x509.UniformResourceIdentifier(TD), x509.DNSName(CONTROLLER_DNS_NAME)]
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert list(alternative.value) == [x509.UniformResourceIdentifier(f"spiffe://{TD}")]


@pytest.mark.parametrize("trust_domain", ["a", "a_b", "10.0.0.1", "-", "a" * 255, "cluster.local"])
def test_every_trust_domain_name_works(trust_domain: str) -> None:
    authority = CertificateAuthority.create(trust_domain, NOW)
    identity = SpiffeId.for_workload(trust_domain, "a", "b", "c")
    chain = authority.sign_workload(make_csr(new_key()), identity, NOW, 60)
    assert verify(chain, authority, NOW) == identity


def test_a_bad_trust_domain_is_refused() -> None:
    with pytest.raises(InvalidSpiffeId):
        CertificateAuthority.create("Hedgerow", NOW)


def test_nothing_happens_before_it_is_due() -> None:
    for moment in (NOW, NOW + 1, NOW + ISSUING_LIFETIME / 2 - 3600):
        assert AUTHORITY.maintained(moment) is AUTHORITY


def test_the_issuing_certificate_is_renewed_at_half_its_life() -> None:
    later = NOW + ISSUING_LIFETIME / 2 + 1
    renewed = AUTHORITY.maintained(later)
    assert renewed.issuing.certificate != AUTHORITY.issuing.certificate
    assert public_bytes(renewed.issuing.key.public_key()) != public_bytes(AUTHORITY.issuing.key.public_key())
    assert renewed.bundle() == AUTHORITY.bundle()
    for authority in (AUTHORITY, renewed):
        assert verify(signed(authority, later), renewed, later) == CART


def test_an_authority_that_slept_past_its_issuing_certificate_renews_it() -> None:
    late = NOW + ISSUING_LIFETIME + DAY
    with pytest.raises(AuthorityError):
        signed(AUTHORITY, late)
    assert verify(signed(AUTHORITY.maintained(late), late), AUTHORITY, late) == CART


def test_a_root_is_rolled_over_with_both_in_force() -> None:
    old = AUTHORITY
    before = signed(old, NOW, MAX_LEAF_LIFETIME)

    prepared = old.prepare_root(NOW)
    assert prepared.bundle().sequence == old.bundle().sequence + 1
    assert prepared.bundle().roots_der[:1] == old.bundle().roots_der
    # still signed under the old root: who has only the old bundle is not cut off
    assert verify(signed(prepared), old, NOW) == CART
    assert verify(before, prepared, NOW) == CART
    with pytest.raises(AuthorityError, match="prepared already"):
        prepared.prepare_root(NOW)

    activated = prepared.activate_root(NOW + DAY)
    now = NOW + DAY
    after = signed(activated, now)
    assert verify(before, activated, now) == CART
    assert verify(after, activated, now) == CART
    assert verify(after, prepared, now) == CART
    with pytest.raises(UntrustedChain):
        verify(after, old, now)
    assert set(activated.bundle().roots_der) == set(prepared.bundle().roots_der)
    assert activated.others[-1].key is None  # the old key is gone

    needed = old.issuing.certificate.not_valid_after_utc.timestamp()
    assert activated.retire_roots(needed) is activated
    retired = activated.renew_issuing(needed).retire_roots(needed + 1)
    assert retired.bundle().sequence == activated.bundle().sequence + 1
    assert retired.bundle().roots_der == activated.bundle().roots_der[:1]
    assert verify(signed(retired, needed + 1), retired, needed + 1) == CART
    with pytest.raises(UntrustedChain):  # judged at a moment when only the missing root can be the reason
        verify(before, retired, now)


def test_activation_without_a_prepared_root_is_refused() -> None:
    with pytest.raises(AuthorityError, match="no next one is prepared"):
        AUTHORITY.activate_root(NOW)


def test_an_authority_maintains_itself_for_decades() -> None:
    """Once a week for 25 years: every leaf verifies with the bundle of then, and with last week's."""
    authority = AUTHORITY
    roots = set(authority.bundle().roots_der)
    sequence = authority.bundle().sequence
    now = NOW
    while now < NOW + 25 * 365 * DAY:
        now += 7 * DAY
        last = authority
        authority = authority.maintained(now)
        chain = signed(authority, now)
        assert verify(chain, authority, now) == CART
        assert verify(chain, last, now) == CART
        if now - NOW > 14 * DAY and last is not authority:
            assert verify(signed(last, now - 7 * DAY, MAX_LEAF_LIFETIME), authority, now) == CART
        bundle = authority.bundle()
        assert (bundle.sequence > sequence) == (set(bundle.roots_der) != set(last.bundle().roots_der))
        sequence = bundle.sequence
        roots |= set(bundle.roots_der)
        assert len(bundle.roots_der) <= 2
    assert len(roots) == 3


def test_an_authority_that_slept_past_its_root_says_what_to_do() -> None:
    with pytest.raises(AuthorityError, match="make a new authority"):
        AUTHORITY.maintained(NOW + ROOT_LIFETIME + 1)


def test_a_root_without_its_key_signs_nothing() -> None:
    with pytest.raises(AuthorityError, match="its key is gone"):
        replace(AUTHORITY, active=replace(AUTHORITY.active, key=None)).renew_issuing(NOW)


def test_a_prepared_root_waits_for_the_overlap() -> None:
    now = NOW + ROOT_LIFETIME - ISSUING_LIFETIME
    prepared = replace(AUTHORITY).maintained(now)
    assert len(prepared.bundle().roots_der) == 2
    assert prepared.active == AUTHORITY.active
    still = prepared.maintained(now + ROOT_OVERLAP - 1)
    assert still.active == AUTHORITY.active
    assert still.maintained(now + ROOT_OVERLAP).active != AUTHORITY.active


# -- the text form


def stages() -> list[CertificateAuthority]:
    prepared = AUTHORITY.prepare_root(NOW)
    return [AUTHORITY, prepared, prepared.activate_root(NOW), prepared.activate_root(NOW).prepare_root(NOW)]


@pytest.mark.parametrize("authority", stages())
def test_an_authority_reads_back_as_it_was_written(authority: CertificateAuthority) -> None:
    again = CertificateAuthority.load(authority.dump())
    assert again.dump() == authority.dump()
    assert again.bundle() == authority.bundle()
    assert verify(signed(again), authority, NOW) == CART
    assert [root.activates_at for root in again.others] == [root.activates_at for root in authority.others]
    assert [root.needed_until for root in again.others] == [root.needed_until for root in authority.others]


DUMP = stages()[-1].dump()


def test_keys_do_not_show() -> None:
    shown = repr(stages()[-1])
    assert "PRIVATE" not in shown
    assert "_EllipticCurvePrivateKey" not in shown
    assert "ECPrivateKey" not in shown


def other(dump: bytes, part: bytes) -> bytes:
    """The section of another authority's text."""
    return next(section for section in dump.split(b"\n# part: ") if section.startswith(part))


def with_key_of(dump: bytes, part: bytes, key: bytes) -> bytes:
    """The text with the key of one section replaced."""
    section = other(dump, part)
    return dump.replace(section, section[: section.index(b"-----BEGIN PRIVATE KEY-----")] + key)


FOREIGN = CertificateAuthority.create(TD, NOW).dump()


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\xff",
        DUMP[: len(DUMP) // 2],
        DUMP[:-60],
        DUMP.replace(b"# format: 1", b"# format: 2"),
        DUMP.replace(b"# trust-domain: hedgerow.local", b"# trust-domain: other.local"),
        DUMP.replace(b"# trust-domain: hedgerow.local\n", b""),
        DUMP.replace(b"# sequence: 3", b"# sequence: -1"),
        DUMP.replace(b"# sequence: 3", b"# sequence: x"),
        DUMP.replace(b"# part: issuing", b"# part: something"),
        DUMP.replace(b"# part: active-root", b"# part: next-root"),
        DUMP.replace(b"# part: retiring-root", b"# part: next-root"),
        DUMP.replace(b"# activates-at: ", b"# activates: "),
        DUMP + DUMP[DUMP.index(b"# part: issuing") :],
        DUMP.replace(other(DUMP, b"issuing"), other(FOREIGN, b"issuing")),
        DUMP.replace(other(DUMP, b"active-root"), other(FOREIGN, b"active-root")),
        DUMP.replace(
            other(DUMP, b"issuing").split(b"-----BEGIN PRIVATE KEY-----")[1],
            other(FOREIGN, b"issuing").split(b"-----BEGIN PRIVATE KEY-----")[1],
        ),
        with_key_of(DUMP, b"issuing", b""),
        with_key_of(DUMP, b"active-root", b""),
        with_key_of(DUMP, b"next-root", b""),
        with_key_of(DUMP, b"active-root", key_to_pem(new_key())),
        with_key_of(DUMP, b"next-root", key_to_pem(new_key())),
        with_key_of(DUMP, b"next-root", key_to_pem(new_key())[:-20]),
        DUMP + b"\n# part: " + other(AUTHORITY.prepare_root(NOW).dump(), b"next-root"),
        DUMP + b"\n# part: " + other(DUMP, b"retiring-root"),
    ],
)
def test_a_damaged_authority_is_refused_with_a_remedy(damaged: bytes) -> None:
    assert damaged != DUMP
    with pytest.raises(AuthorityError, match="restore it from a copy") as refused:
        CertificateAuthority.load(damaged)
    for line in damaged.split(b"\n"):
        assert len(line) < 60 or line.decode("latin-1") not in str(refused.value)
