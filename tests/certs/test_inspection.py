"""What stands in for inspected hosts: good for those hosts, in front of that application, and for nothing else."""

from __future__ import annotations

import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from certs.bundle import TrustBundle
from certs.certificate import pem_text
from certs.contexts import named_client_context, named_server_context
from certs.errors import AuthorityError, CertError, InvalidCertificate, InvalidCsr, KeyMismatch, UntrustedChain
from certs.inspection import SIGNING_LIFETIME, HostSigner, InspectionAuthority
from certs.issue import Signer
from certs.keys import key_to_pem, make_csr, new_key
from certs.verify import verify_peer

NOW = float(int(time.time()))
API, OTHER = "api.partner.example", "www.partner.example"
AUTHORITY = InspectionAuthority.create("hedgerow.test", NOW)


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> ssl.SSLObject:
    """Let a client that wants ``host`` talk with a server; its own end, or what it has against that."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    mine = client.wrap_bio(to_client, to_server, server_hostname=host)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(8):
        for end in (mine, theirs):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return mine


def signer(*hosts: str, authority: InspectionAuthority = AUTHORITY, now: float = NOW) -> HostSigner:
    key = new_key()
    hosts = hosts or (API,)
    return HostSigner.checked(authority.sign(make_csr(key), "shop/cart", hosts, now), key, hosts, now)


def client(authority: InspectionAuthority = AUTHORITY, *, strict: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=pem_text([authority.root_der]))
    if strict:
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # Python 3.13's default
    return context


@pytest.mark.parametrize("protocol", ["", "h2"])
def test_an_application_that_trusts_the_root_takes_it_for_the_host(protocol: str) -> None:
    held, key = signer(API, OTHER), new_key()
    alpn = (protocol,) if protocol else ()
    ours = client()
    ours.set_alpn_protocols(["h2", "http/1.1"])
    for host in (API, OTHER):
        server = named_server_context(held.leaf(key.public_key(), host), key, alpn)
        assert handshake(ours, server, host).selected_alpn_protocol() == (protocol or None)


def forged(held: HostSigner, host: str, *, authority: bool = False) -> ssl.SSLContext:
    """What somebody who took the signing key makes of it."""
    key = new_key()
    issuer = held.signer.certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "forged")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(held.signer.key.public_key()), critical=False)
    )
    der = builder.sign(held.signer.key, hashes.SHA256()).public_bytes(Encoding.DER)
    if not authority:
        return named_server_context((der, issuer.public_bytes(Encoding.DER)), key)
    below = HostSigner(
        Signer(x509.load_der_x509_certificate(der), key),
        held.root_der,
        frozenset({host}),
        held.not_before,
        held.not_after,
    )
    leaf = new_key()
    return named_server_context((*below.leaf(leaf.public_key(), host), issuer.public_bytes(Encoding.DER)), leaf)


def test_a_stolen_signing_key_is_good_for_its_own_hosts_alone() -> None:
    held = signer()
    handshake(client(), forged(held, API), API)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(client(), forged(held, OTHER), OTHER)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client(strict=False), forged(held, API, authority=True), API)


def test_it_makes_nothing_for_other_hosts() -> None:
    with pytest.raises(InvalidCertificate):
        signer().leaf(new_key().public_key(), OTHER)


def test_none_of_it_proves_anything_in_the_mesh() -> None:
    held, key = signer(), new_key()
    leaf, issuer = held.leaf(key.public_key(), API)
    with pytest.raises(CertError):
        verify_peer(leaf, [issuer], TrustBundle("hedgerow.test", (AUTHORITY.root_der,)), NOW)


def test_it_lives_for_a_day() -> None:
    held = signer()
    assert held.not_after == NOW + SIGNING_LIFETIME
    leaf = x509.load_der_x509_certificate(held.leaf(new_key().public_key(), API)[0])
    assert leaf.not_valid_after_utc.timestamp() == held.not_after


def test_what_is_no_answer_to_us_is_refused() -> None:
    key = new_key()
    chain = AUTHORITY.sign(make_csr(key), "shop/cart", [API, OTHER], NOW)
    with pytest.raises(KeyMismatch):
        HostSigner.checked(chain, new_key(), [API, OTHER], NOW)
    with pytest.raises(UntrustedChain, match="constrained"):
        HostSigner.checked(chain, key, [API], NOW)
    with pytest.raises(UntrustedChain, match="expired"):
        HostSigner.checked(chain, key, [API, OTHER], NOW + SIGNING_LIFETIME + 1)
    other = InspectionAuthority.create("hedgerow.test", NOW)
    with pytest.raises(UntrustedChain, match="root"):
        HostSigner.checked((chain[0], other.root_der), key, [API, OTHER], NOW)
    with pytest.raises(UntrustedChain):
        HostSigner.checked(chain[:1], key, [API, OTHER], NOW)
    root = AUTHORITY.signer
    with pytest.raises(UntrustedChain):
        HostSigner.checked((AUTHORITY.root_der, AUTHORITY.root_der), root.key, [API], NOW)


@pytest.mark.parametrize("hosts", [[], ["*.partner.example"], ["localhost"], ["192.0.2.1"], ["API.partner.example"]])
def test_what_is_no_host_is_not_signed_for(hosts: list[str]) -> None:
    with pytest.raises(InvalidCsr):
        AUTHORITY.sign(make_csr(new_key()), "shop/cart", hosts, NOW)


def test_the_authority_survives_a_restart_and_shows_no_key() -> None:
    again = InspectionAuthority.load(AUTHORITY.dump())
    assert again.root_der == AUTHORITY.root_der
    handshake(client(), forged(signer(authority=again), API), API)
    assert "PRIVATE" not in repr(AUTHORITY) + repr(signer())
    other = InspectionAuthority.create("hedgerow.test", NOW)
    mixed = key_to_pem(other.signer.key) + pem_text([AUTHORITY.root_der]).encode()
    for damaged in (mixed, AUTHORITY.dump()[:-40], key_to_pem(new_key())):
        with pytest.raises(CertError):
            InspectionAuthority.load(damaged)


def test_a_root_that_has_ended_signs_nothing() -> None:
    with pytest.raises(AuthorityError, match="expired"):
        AUTHORITY.sign(make_csr(new_key()), "shop/cart", [API], NOW + 4000 * 86_400)


def test_hosts_are_called_with_names_checked() -> None:
    context = named_client_context(None, ("h2",))
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
