"""The authority: what it signs, for how long, and what it refuses to."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certs.ca import MAX_LEAF_LIFETIME, SignedChain
from certs.errors import AuthorityError, CertError, InvalidCsr, InvalidSpiffeId
from certs.keys import make_csr, new_key, public_bytes
from certs.spiffe import CONTROLLER_DNS_NAME, SpiffeId
from certs.svid import check_signer_leaf, instance_of, uid_of
from certs.verify import verify_chain
from tests.certs.authorities import AUTHORITY, CART, NOW, TD, signed, verify


def leaf_of(chain: SignedChain) -> x509.Certificate:
    return x509.load_der_x509_certificate(chain.chain_der[0])


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


def test_what_tells_an_instance_from_a_later_one_is_read_back() -> None:
    uid = "9f3c2b1e-6a0d-4c57-8a51-0c8d6f1b2a34"
    chain = AUTHORITY.sign_workload(GOOD_CSR, CART, NOW, 60, instance="cart-0", uid=uid)
    assert (instance_of(chain.chain_der[0]), uid_of(chain.chain_der[0])) == ("cart-0", uid)
    assert verify(chain, AUTHORITY, NOW) == CART
    assert uid_of(AUTHORITY.sign_workload(GOOD_CSR, CART, NOW, 60, instance="cart-0").chain_der[0]) == ""
    for wrong in ("a b", "A", "a" * 254, "a\n"):
        with pytest.raises(InvalidSpiffeId, match="uid"):
            AUTHORITY.sign_workload(GOOD_CSR, CART, NOW, 60, instance="cart-0", uid=wrong)


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
