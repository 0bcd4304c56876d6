"""Certificates as Hedgerow writes them: the templates of root, issuing certificate and leaf. No state, no clock.

Signing certificates carry their trust domain's SPIFFE ID, and critical name constraints: SPIFFE IDs of that trust
domain, the controller's one DNS name, no address. Whoever puts our root into another trust store hands out no more
than that.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier

from certs.errors import InvalidCsr
from certs.spiffe import CONTROLLER_DNS_NAME, SpiffeId
from certs.template import authority_identifier, begun, key_usage

#: A request for a P-256 key has about 200 bytes.
MAX_CSR_BYTES = 8 * 1024

_CSR_CURVES = (ec.SECP256R1, ec.SECP384R1)


@dataclass(frozen=True, slots=True)
class Signer:
    """A signing certificate with its key. Never logged: its repr shows no key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Signer({self.certificate.subject.rfc4514_string()!r})"


def read_csr(csr_der: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a signing request asks a certificate for. Its names and extensions are ignored: the signer
    decides on those.

    :param csr_der: a PKCS #10 request (RFC 2986) in DER
    :raises InvalidCsr: when it is malformed, its key is not on P-256 or P-384, or its signature does not prove
        possession
    """
    if len(csr_der) > MAX_CSR_BYTES:
        raise InvalidCsr(f"csr: {len(csr_der)} bytes long, at most {MAX_CSR_BYTES} are read")
    try:
        request = x509.load_der_x509_csr(csr_der)
        key = request.public_key()
    except Exception as error:  # the parser's own, for whatever bytes a stranger sends
        raise InvalidCsr(f"csr: not a readable PKCS #10 request in DER: {str(error)[:200]!a}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CSR_CURVES):
        raise InvalidCsr("csr: its key is not ECDSA on P-256 or P-384; make a new one")
    try:
        proved = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        proved = False
    if not proved:
        raise InvalidCsr("csr: its signature is wrong, so it does not prove possession of the key")
    return key


def signing_certificate(
    key: ec.EllipticCurvePrivateKey,
    trust_domain: str,
    not_before: int,
    not_after: int,
    *,
    issuer: Signer | None = None,
) -> Signer:
    """Make a root (``issuer`` absent: path length 1) or an issuing certificate under one (path length 0).

    :param not_before: the validity, in whole seconds since the epoch
    """
    public = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    kind = "root" if issuer is None else "issuing"
    # a name of its own for every key: paths are found by name, also while two roots are in force
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Hedgerow"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Hedgerow {kind} {identifier.digest.hex()[:16]}"),
        ]
    )
    usage = key_usage(signs=True)
    constraints = x509.NameConstraints(
        permitted_subtrees=[x509.UniformResourceIdentifier(trust_domain), x509.DNSName(CONTROLLER_DNS_NAME)],
        excluded_subtrees=[
            x509.IPAddress(ipaddress.ip_network("0.0.0.0/0")),
            x509.IPAddress(ipaddress.ip_network("::/0")),
        ],
    )
    name = x509.UniformResourceIdentifier(str(SpiffeId.of_trust_domain(trust_domain)))
    builder = (
        begun(public, subject, subject if issuer is None else issuer.certificate.subject, not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1 if issuer is None else 0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(constraints, critical=True)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .add_extension(identifier, critical=False)
    )
    if issuer is None:
        return Signer(builder.sign(key, hashes.SHA256()), key)
    builder = builder.add_extension(authority_identifier(issuer.certificate), critical=False)
    return Signer(builder.sign(issuer.key, hashes.SHA256()), key)


def leaf_certificate(
    public: ec.EllipticCurvePublicKey,
    identity: SpiffeId,
    issuer: Signer,
    not_before: int,
    not_after: int,
    usages: frozenset[ObjectIdentifier],
    dns_name: str = "",
    instance: str = "",
    uid: str = "",
) -> x509.Certificate:
    """Make a leaf for ``identity``. Its subject names nobody, so its names are critical (X509-SVID section 3.1).

    :param instance: written into the subject as a dnQualifier (X.520 section 6.2.8: what tells apart entries that are
        otherwise named alike); readers other than our controller have no use for it
    :param uid: of that one, as a userId (RFC 4519 section 2.39)
    """
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(identity))]
    if dns_name:
        names.append(x509.DNSName(dns_name))
    attributes = ((NameOID.DN_QUALIFIER, instance), (NameOID.USER_ID, uid))
    subject = x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes if value])
    return (
        begun(public, subject, issuer.certificate.subject, not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(sorted(usages, key=lambda usage: usage.dotted_string)),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(authority_identifier(issuer.certificate), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )
