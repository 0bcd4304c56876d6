"""The SVID rules: certificates wrong in one point each, read directly and after a real handshake, in both roles."""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from hypothesis import given, settings
from hypothesis import strategies as st

from certs.ca import CertificateAuthority, SignedChain
from certs.contexts import client_context, server_context, verify_connection
from certs.errors import CertError, InvalidSvid
from certs.keys import make_csr, new_key
from certs.spiffe import CONTROLLER_DNS_NAME, SpiffeId
from certs.svid import check_leaf, check_signer_leaf
from certs.verify import verify_peer
from tests.certs.forge import GOOD_ID, TRUST_DOMAIN, Chain, Forge, Leaf, key_usage, raw, uri_name, uris
from tests.certs.handshakes import handshake, load_chain

NOW = time.time()
FORGE = Forge.root(NOW)
GOOD = Leaf()
TD = TRUST_DOMAIN
CONTROLLER = str(SpiffeId.controller(TD))
SIGNER = str(SpiffeId.policy_signer(TD))
BOTH = (Usage.SERVER_AUTH, Usage.CLIENT_AUTH)
AUTHORITY = CertificateAuthority.create(TD, NOW)


def named(*texts: str) -> Leaf:
    return GOOD.but(names=uris(*texts))


def besides(*names: x509.GeneralName, identity: str = GOOD_ID) -> Leaf:
    return GOOD.but(names=(*uris(identity), *names))


SHAPE = "only lower-case letters, digits"
SEGMENT = "only letters, digits, '.', '-' and '_' are permitted in a segment"

#: What is wrong, the leaf, and what the refusal has to say.
NEGATIVES: dict[str, tuple[Leaf, str]] = {
    "no alternative name": (GOOD.but(names=None, subject="cart"), "it has no subject alternative name"),
    "an empty alternative name": (GOOD.but(names=raw(x509.SubjectAlternativeName, b"\x30\0")), "is empty"),
    "a DNS name alone": (GOOD.but(names=(x509.DNSName("cart.shop"),)), "it has 0 URI names"),
    "two SPIFFE IDs": (named(GOOD_ID, GOOD_ID + "2"), "it has 2 URI names"),
    "the same SPIFFE ID twice": (named(GOOD_ID, GOOD_ID), "it has 2 URI names"),
    "a SPIFFE ID and another URI": (named(GOOD_ID, "https://hedgerow.local/"), "it has 2 URI names"),
    "another scheme": (named(f"https://{TD}/ns/shop/sa/default"), "the scheme is not"),
    "scheme in upper case": (named(GOOD_ID.replace("spiffe", "SPIFFE")), "the scheme is not"),
    "no authority": (named("spiffe:/ns/shop/sa/default"), "the scheme is not"),
    "empty URI": (named(""), "the scheme is not"),
    "empty trust domain": (named("spiffe:///ns/shop/sa/default"), "the trust domain is empty"),
    "trust domain in upper case": (named("spiffe://Hedgerow.local/ns/shop/sa/default"), SHAPE),
    "a port": (named(f"spiffe://{TD}:443/ns/shop/sa/default"), SHAPE),
    "an empty port": (named(f"spiffe://{TD}:/ns/shop/sa/default"), SHAPE),
    "a user": (named(f"spiffe://root@{TD}/ns/shop/sa/default"), SHAPE),
    "an IPv6 address": (named("spiffe://[::1]/ns/shop/sa/default"), SHAPE),
    "percent-encoding in the trust domain": (named("spiffe://hedgerow%2elocal/ns/shop/sa/default"), SHAPE),
    "a letter that looks like another": (GOOD.but(names=uri_name("spiffe://hedgerоw.local/ns/a".encode())), SHAPE),
    "a query": (named(GOOD_ID + "?a=b"), SEGMENT),
    "a fragment": (named(GOOD_ID + "#a"), SEGMENT),
    "a query after the trust domain": (named(f"spiffe://{TD}?/ns/shop/sa/default"), SHAPE),
    "no path": (named(f"spiffe://{TD}"), "names a trust domain, not a workload"),
    "the root path": (named(f"spiffe://{TD}/"), "an empty segment"),
    "a slash at the end": (named(GOOD_ID + "/"), "an empty segment"),
    "an empty segment": (named(f"spiffe://{TD}/ns//sa/default"), "an empty segment"),
    "segment '.'": (named(f"spiffe://{TD}/ns/./sa/default"), "'.' and '..' are not permitted"),
    "segment '..'": (named(f"spiffe://{TD}/ns/shop/../admin/sa/default"), "'.' and '..' are not permitted"),
    "percent-encoding in the path": (named(f"spiffe://{TD}/ns/shop/sa/def%61ult"), SEGMENT),
    "a space": (named(f"spiffe://{TD}/ns/shop/sa/my default"), SEGMENT),
    "a newline at the end": (GOOD.but(names=uri_name(GOOD_ID.encode() + b"\n")), SEGMENT),
    "a NUL, then more": (GOOD.but(names=uri_name(GOOD_ID.encode() + b"\0.evil")), SEGMENT),
    "bytes that are not ASCII": (GOOD.but(names=uri_name(GOOD_ID.encode() + b"\xff")), "readable"),
    "an ID of 2049 bytes": (named(GOOD_ID + "a" * (2049 - len(GOOD_ID))), "2049 characters long"),
    "a trust domain of 256 bytes": (named(f"spiffe://{'a' * 256}/ns/shop/sa/default"), "256 characters long"),
    "a foreign trust domain": (named("spiffe://other.local/ns/shop/sa/default/wl/cart"), "of another trust domain"),
    "a trust domain below ours": (named("spiffe://a.hedgerow.local/ns/shop/sa/default"), "of another trust domain"),
    "a trust domain that begins as ours": (named("spiffe://hedgerow.local.evil/ns/a/sa/b"), "of another trust domain"),
    "a signing certificate": (
        GOOD.but(constraints=x509.BasicConstraints(True, None), usage=key_usage("digital_signature", "key_cert_sign")),
        "it has basic constraint CA",
    ),
    "a path length without CA": (
        GOOD.but(constraints=raw(x509.BasicConstraints, bytes.fromhex("3003020100"))),
        "readable",
    ),
    "no key usage": (GOOD.but(usage=None), "it has no key usage"),
    "key usage not critical": (GOOD.but(usage_critical=False), "its key usage is not critical"),
    "no digitalSignature": (GOOD.but(usage=key_usage("key_agreement")), "lacks digitalSignature"),
    "keyCertSign": (GOOD.but(usage=key_usage("digital_signature", "key_cert_sign")), "keyCertSign without basic"),
    "cRLSign": (GOOD.but(usage=key_usage("digital_signature", "crl_sign")), "keyCertSign or cRLSign"),
    "no extended key usage": (GOOD.but(purposes=None), "it has no extended key usage"),
    "good for servers only": (GOOD.but(purposes=BOTH[:1]), "lacks serverAuth or clientAuth"),
    "good for clients only": (GOOD.but(purposes=BOTH[1:]), "lacks serverAuth or clientAuth"),
    "good for anything": (GOOD.but(purposes=(Usage.ANY_EXTENDED_KEY_USAGE,)), "lacks serverAuth or clientAuth"),
    "good for both and anything": (GOOD.but(purposes=(*BOTH, Usage.ANY_EXTENDED_KEY_USAGE)), "permits everything"),
    "expired": (GOOD.but(begins=-7200, ends=-3600), "expired at"),
    "not valid yet": (GOOD.but(begins=3600, ends=7200), "not valid before"),
    "a critical extension that nobody knows": (
        GOOD.but(more=((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True),)),
        "is critical and not processed",
    ),
    "a workload with a DNS name": (besides(x509.DNSName("cart.shop.svc")), "names besides its SPIFFE ID"),
    "a workload with the controller's DNS name": (besides(x509.DNSName(CONTROLLER_DNS_NAME)), "names besides"),
    "a workload with an address": (besides(x509.IPAddress(ipaddress.ip_address("127.0.0.1"))), "names besides"),
    "a workload with a mail address": (besides(x509.RFC822Name("a@example.com")), "names besides"),
    "the controller with another DNS name": (
        besides(x509.DNSName("kubernetes.default.svc"), identity=CONTROLLER),
        "the controller's only other name is",
    ),
    "the controller with a second DNS name": (
        besides(x509.DNSName(CONTROLLER_DNS_NAME), x509.DNSName("a.example"), identity=CONTROLLER),
        "the controller's only other name is",
    ),
    "the policy signer on a connection": (named(SIGNER), "is not one for connections"),
    "neither subject nor critical name": (GOOD.but(names_critical=False), "neither a subject nor a critical"),
    "a short curve": (GOOD.but(key=ec.generate_private_key(ec.SECP224R1())), "its key is on curve secp224r1"),
    "a short RSA key": (GOOD.but(key=rsa.generate_private_key(65537, 1024)), "its RSA key has 1024 bits"),
    "another kind of key": (GOOD.but(key=ed25519.Ed25519PrivateKey.generate()), "neither ECDSA nor RSA"),
    "a short digest": (GOOD.but(digest=hashes.SHA224()), "not signed over SHA-256"),
    "X.509 version 1": (GOOD.but(version_1=True), "only version 3 is taken"),
    "name constraints": (
        GOOD.but(more=((x509.NameConstraints(uris(TD), None), True),)),
        "name constraints without basic constraint CA",
    ),
    "a binding policy": (GOOD.but(more=((x509.InhibitAnyPolicy(0), True),)), "binds policies"),
}

#: Where OpenSSL itself cannot make or refuses the certificate, the handshake fails before our rules are asked.
OPENSSL_REFUSES = {
    "an empty alternative name",
    "no digitalSignature",
    "keyCertSign",
    "cRLSign",
    "a path length without CA",
    "X.509 version 1",
    "good for anything",  # OpenSSL 3 asks for the purpose by name
    "expired",
    "not valid yet",
    "a critical extension that nobody knows",
    "neither subject nor critical name",
    "a short curve",  # TLS 1.3 has no signature scheme for it
    "a short RSA key",
    "a signing certificate",
    "a binding policy",
}


def present(chain: Chain, *, server: bool) -> ssl.SSLContext:
    """A peer that presents any certificate and minds nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_verify_locations(cadata=b"".join(AUTHORITY.bundle().roots_der))
    load_chain(context, chain.pem)
    return context


def met(chain: Chain, *, as_server: bool) -> ssl.SSLObject | None:
    """Our end of a connection with a peer that presents ``chain``, or nothing when the handshake failed."""
    key = new_key()
    own: SignedChain = AUTHORITY.sign_workload(make_csr(key), SpiffeId.parse(GOOD_ID), NOW, 3600)
    peer = present(chain, server=as_server)
    if as_server:
        result = handshake(client_context(own.chain_der, key, FORGE.bundle()), peer)
        return result.client if result.succeeded else None
    result = handshake(peer, server_context(own.chain_der, key, FORGE.bundle()))
    return result.server if result.succeeded else None


@pytest.mark.parametrize("as_server", [True, False])
@pytest.mark.parametrize(
    "identity",
    [GOOD_ID, f"spiffe://{TD}/ns/shop/sa/default", f"spiffe://{TD}/{'a' * (2048 - len(TD) - 10)}", CONTROLLER],
)
def test_a_good_certificate_passes_everything(identity: str, as_server: bool) -> None:
    chain = FORGE.sign(named(identity))
    assert str(check_leaf(chain.leaf, TD, NOW)) == identity
    connection = met(chain, as_server=as_server)
    assert connection is not None
    assert str(verify_connection(connection, FORGE.bundle(), NOW)) == identity


def test_a_leaf_may_be_no_authority_by_saying_nothing() -> None:
    chain = FORGE.sign(GOOD.but(constraints=None))
    assert str(verify_peer(chain.leaf, (), FORGE.bundle(), NOW)) == GOOD_ID


def test_the_controller_may_have_its_dns_name() -> None:
    chain = FORGE.sign(besides(x509.DNSName(CONTROLLER_DNS_NAME), identity=CONTROLLER))
    assert check_leaf(chain.leaf, TD, NOW) == SpiffeId.controller(TD)


@pytest.mark.parametrize("name", NEGATIVES)
def test_a_wrong_leaf_is_refused(name: str) -> None:
    leaf, reason = NEGATIVES[name]
    chain = FORGE.sign(leaf)
    with pytest.raises(CertError) as refused:
        check_leaf(chain.leaf, TD, NOW)
    assert reason in str(refused.value)
    with pytest.raises(CertError):
        verify_peer(chain.leaf, chain.ders[1:], FORGE.bundle(), NOW)


@pytest.mark.parametrize("as_server", [True, False])
@pytest.mark.parametrize("name", NEGATIVES)
def test_a_wrong_leaf_is_refused_on_a_connection(name: str, as_server: bool) -> None:
    leaf, reason = NEGATIVES[name]
    chain = FORGE.sign(leaf)
    try:
        connection = met(chain, as_server=as_server)
    except ssl.SSLError:
        connection = None  # not even a peer that minds nothing can present it
    if connection is None:
        return
    assert connection.getpeercert(binary_form=True) == chain.leaf
    with pytest.raises(CertError) as refused:
        check_leaf(chain.leaf, TD, NOW)
    assert reason in str(refused.value)
    with pytest.raises(CertError):
        verify_connection(connection, FORGE.bundle(), NOW)


def test_handshakes_alone_let_most_of_them_through() -> None:
    """Else the test above would prove nothing about our rules."""
    passed = set()
    for name, (leaf, _) in NEGATIVES.items():
        for as_server in (True, False):
            with contextlib.suppress(ssl.SSLError):
                if met(FORGE.sign(leaf), as_server=as_server) is not None:
                    passed.add(name)
    assert passed >= set(NEGATIVES) - OPENSSL_REFUSES
    assert len(passed) >= 28


def test_the_signers_certificate_is_for_signing_alone() -> None:
    good = FORGE.sign(named(SIGNER).but(purposes=(Usage.CODE_SIGNING,)))
    assert check_signer_leaf(good.leaf, TD, NOW) == SpiffeId.policy_signer(TD)
    for wrong, reason in [
        (named(SIGNER), "its extended key usage"),
        (named(SIGNER).but(purposes=(*BOTH, Usage.CODE_SIGNING)), "its extended key usage"),
        (named(SIGNER).but(purposes=None), "its extended key usage"),
        (named(GOOD_ID).but(purposes=(Usage.CODE_SIGNING,)), "may not sign policy"),
        (named(CONTROLLER).but(purposes=(Usage.CODE_SIGNING,)), "may not sign policy"),
        (named(SIGNER.replace(TD, "other.local")).but(purposes=(Usage.CODE_SIGNING,)), "of another trust domain"),
        (named(SIGNER).but(purposes=(Usage.CODE_SIGNING,), ends=-30), "expired at"),
    ]:
        with pytest.raises(InvalidSvid, match=reason):
            check_signer_leaf(FORGE.sign(wrong).leaf, TD, NOW)
    assert met(good, as_server=True) is None
    assert met(good, as_server=False) is None


def test_validity_counts_whole_seconds_at_both_ends() -> None:
    forge = Forge.root(1_700_000_000.0)
    leaf = forge.sign(GOOD.but(begins=0, ends=10)).leaf
    for moment in (0, 0.999, 5, 10, 10.999):
        assert str(check_leaf(leaf, TD, forge.now + moment)) == GOOD_ID
    for moment in (-0.001, -1, 11, 1e9):
        with pytest.raises(InvalidSvid, match=r"expired at|not valid before"):
            check_leaf(leaf, TD, forge.now + moment)


@pytest.mark.parametrize(
    "garbage", [b"", b"\0", b"0", b"\x30\x80\0\0", b"-----BEGIN CERTIFICATE-----", b"\x30" * 10_000]
)
def test_what_is_no_certificate_is_refused(garbage: bytes) -> None:
    with pytest.raises(CertError):
        check_leaf(garbage, TD, NOW)


LEAF = FORGE.sign(GOOD).leaf


def test_bytes_after_the_certificate_are_refused() -> None:
    with pytest.raises(CertError):
        check_leaf(LEAF + b"\0", TD, NOW)


@pytest.mark.parametrize("length", range(0, len(LEAF), 7))
def test_half_a_certificate_is_refused(length: int) -> None:
    with pytest.raises(CertError):
        check_leaf(LEAF[:length], TD, NOW)


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, len(LEAF) - 1), value=st.integers(0, 255), size=st.integers(0, 3))
def test_a_damaged_certificate_never_fails_otherwise_and_never_verifies(position: int, value: int, size: int) -> None:
    damaged = LEAF[:position] + bytes([value] * size) + LEAF[position + 1 :]
    if damaged == LEAF:
        return
    with pytest.raises(CertError):
        verify_peer(damaged, (), FORGE.bundle(), NOW)
