"""The authority: what it signs, what it refuses to, and how its own certificates are replaced."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certs.ca import (
    ISSUING_LIFETIME,
    MAX_LEAF_LIFETIME,
    ROOT_LIFETIME,
    ROOT_OVERLAP,
    CertificateAuthority,
    SignedChain,
)
from certs.errors import AuthorityError, CertError, InvalidCsr, InvalidSpiffeId, UntrustedChain
from certs.keys import key_to_pem, make_csr, new_key, public_bytes
from certs.spiffe import CONTROLLER_DNS_NAME, SpiffeId
from certs.svid import check_signer_leaf, instance_of
from certs.verify import verify_chain, verify_peer

NOW = float(int(time.time()))
DAY = 86400.0
TD = "hedgerow.local"
CART = SpiffeId.for_workload(TD, "shop", "default", "cart")
AUTHORITY = CertificateAuthority.create(TD, NOW)


def signed(authority: CertificateAuthority, now: float = NOW, lifetime: float = 3600) -> SignedChain:
    return authority.sign_workload(make_csr(new_key()), CART, now, lifetime)


def verify(chain: SignedChain, authority: CertificateAuthority, now: float) -> SpiffeId:
    return verify_peer(chain.chain_der[0], chain.chain_der[1:], authority.bundle(), now)


def leaf_of(chain: SignedChain) -> x509.Certificate:
    return x509.load_der_x509_certificate(chain.chain_der[0])


# -- leaves


@pytest.mark.parametrize("identity", [CART, SpiffeId.for_account(TD, "shop", "default")])
def test_a_workload_gets_its_identity(identity: SpiffeId) -> None:
    key = new_key()
    chain = AUTHORITY.sign_workload(make_csr(key), identity, NOW, 3600)
    assert verify(chain, AUTHORITY, NOW) == identity == chain.spiffe_id
    certificate = leaf_of(chain)
    assert certificate.public_key() == key.public_key()
    assert (certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()) == (
        chain.not_before,
        chain.not_after,
    )
    assert (chain.not_before, chain.not_after) == (NOW - 60, NOW + 3600)


def test_only_the_key_of_a_request_counts() -> None:
    key = new_key()
    names = [
        x509.UniformResourceIdentifier(f"spiffe://{TD}/ns/admin/sa/root"),
        x509.DNSName(CONTROLLER_DNS_NAME),
    ]
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")]))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA512())
    )
    chain = AUTHORITY.sign_workload(greedy.public_bytes(Encoding.DER), CART, NOW, 60)
    assert verify(chain, AUTHORITY, NOW) == CART
    certificate = leaf_of(chain)
    assert not certificate.subject.rdns
    alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(alternative) == [x509.UniformResourceIdentifier(str(CART))]


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, digest).public_bytes(Encoding.DER)


GOOD_CSR = make_csr(new_key())


@pytest.mark.parametrize(
    ("csr", "reason"),
    [
        (b"", "not a readable"),
        (b"garbage", "not a readable"),
        (GOOD_CSR[:-1], "not a readable"),
        (GOOD_CSR + b"\0", "not a readable"),
        (b"\x30" * 9000, "at most 8192 are read"),
        (GOOD_CSR[:-6] + bytes(6), "its signature is wrong|not a readable"),
        (request(rsa.generate_private_key(65537, 2048)), "not ECDSA on P-256 or P-384"),
        (request(ed25519.Ed25519PrivateKey.generate()), "not ECDSA on P-256 or P-384"),
        (request(ec.generate_private_key(ec.SECP224R1())), "not ECDSA on P-256 or P-384"),
        (request(ec.generate_private_key(ec.SECP256K1())), "not ECDSA on P-256 or P-384"),
    ],
)
def test_a_bad_request_is_refused(csr: bytes, reason: str) -> None:
    with pytest.raises(InvalidCsr, match=reason):
        AUTHORITY.sign_workload(csr, CART, NOW, 60)
    with pytest.raises(InvalidCsr, match=reason):
        AUTHORITY.sign_controller(csr, NOW, 60)
    with pytest.raises(InvalidCsr, match=reason):
        AUTHORITY.sign_policy_signer(csr, NOW)


def test_a_request_with_somebody_elses_key_is_refused() -> None:
    """A signature of one key under the request of another: possession is not proved."""
    mine, theirs = new_key(), new_key()
    honest = make_csr(mine)
    forged = honest.replace(public_bytes(mine.public_key()), public_bytes(theirs.public_key()))
    assert forged != honest
    with pytest.raises(InvalidCsr, match="does not prove possession"):
        AUTHORITY.sign_workload(forged, CART, NOW, 60)


def test_a_key_on_p384_is_signed_too() -> None:
    chain = AUTHORITY.sign_workload(request(ec.generate_private_key(ec.SECP384R1())), CART, NOW, 60)
    assert verify(chain, AUTHORITY, NOW) == CART


@pytest.mark.parametrize(
    "identity",
    [
        SpiffeId.for_workload("other.local", "shop", "default", "cart"),
        SpiffeId.controller(TD),
        SpiffeId.policy_signer(TD),
        SpiffeId.of_trust_domain(TD),
        SpiffeId(TD, "/something/else"),
        SpiffeId(TD, "/ns/-/sa/default/wl/10.0.0.1"),
    ],
)
def test_an_identity_that_is_no_workloads_is_not_signed(identity: SpiffeId) -> None:
    with pytest.raises(InvalidSpiffeId):
        AUTHORITY.sign_workload(GOOD_CSR, identity, NOW, 60)


def test_an_instance_is_read_back_from_its_certificate() -> None:
    chain = AUTHORITY.sign_workload(GOOD_CSR, CART, NOW, 60, instance="cart-7d9f-x2.b")
    assert instance_of(chain.chain_der[0]) == "cart-7d9f-x2.b"
    assert verify(chain, AUTHORITY, NOW) == CART
    assert instance_of(signed(AUTHORITY).chain_der[0]) == ""
    for name in ("shop/cart", "a b", "A", "é", "a" * 254, "a\n"):
        with pytest.raises(InvalidSpiffeId, match="instance"):
            AUTHORITY.sign_workload(GOOD_CSR, CART, NOW, 60, instance=name)


def test_the_controller_gets_its_dns_name() -> None:
    chain = AUTHORITY.sign_controller(make_csr(new_key()), NOW, 3600)
    assert verify(chain, AUTHORITY, NOW) == SpiffeId.controller(TD)
    alternative = leaf_of(chain).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == [CONTROLLER_DNS_NAME]


def test_the_policy_signer_lives_as_long_as_the_issuing_certificate_and_connects_to_nobody() -> None:
    chain = AUTHORITY.sign_policy_signer(make_csr(new_key()), NOW + 5)
    assert chain.not_after == AUTHORITY.issuing.certificate.not_valid_after_utc.timestamp()
    verify_chain(chain.chain_der[0], chain.chain_der[1:], AUTHORITY.bundle(), NOW + 5)
    assert check_signer_leaf(chain.chain_der[0], TD, NOW + 5) == SpiffeId.policy_signer(TD)
    with pytest.raises(CertError, match="extended key usage"):
        verify(chain, AUTHORITY, NOW + 5)


def test_serial_numbers_are_positive_long_and_never_the_same() -> None:
    serials = [leaf_of(signed(AUTHORITY)).serial_number for _ in range(64)]
    assert len(set(serials)) == 64
    assert all(0 < serial < 2**159 for serial in serials)
    assert max(serial.bit_length() for serial in serials) > 150


@pytest.mark.parametrize("lifetime", [0, -1, MAX_LEAF_LIFETIME + 1, float("nan"), float("inf")])
def test_a_lifetime_is_bounded(lifetime: float) -> None:
    with pytest.raises(AuthorityError, match="lifetime"):
        signed(AUTHORITY, lifetime=lifetime)


@pytest.mark.parametrize("lifetime", [0.5, 1, 4, 10, 600])
def test_short_lifetimes_begin_in_time_to_be_renewed(lifetime: float) -> None:
    """Backdating must not put half of the lifetime into the past, or renewal would never end."""
    for now in (NOW, NOW + 0.3, NOW + 0.999):
        chain = signed(AUTHORITY, now, lifetime)
        assert chain.not_before <= now < now + lifetime <= chain.not_after < now + lifetime + 1
        assert verify(chain, AUTHORITY, now) == CART
        if lifetime >= 4:
            assert (chain.not_before + chain.not_after) / 2 > now


def test_a_leaf_never_outlives_its_issuer() -> None:
    end = AUTHORITY.issuing.certificate.not_valid_after_utc.timestamp()
    chain = signed(AUTHORITY, end - 100, 3600)
    assert chain.not_after == end
    for moment in (end, end + 1, NOW - 3600):
        with pytest.raises(AuthorityError, match="issuing certificate"):
            signed(AUTHORITY, moment)


def test_a_leaf_never_begins_before_its_issuer() -> None:
    chain = signed(AUTHORITY, NOW - 30)
    assert chain.not_before == AUTHORITY.issuing.certificate.not_valid_before_utc.timestamp() == NOW - 60


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
