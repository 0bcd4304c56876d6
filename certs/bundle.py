"""The trust bundle: the root certificates of one trust domain.

A bundle that exists is fit to verify with: every root is self-signed, is a signing certificate by the rules of
:func:`check_signing_certificate` and belongs to no other trust domain. Expiry is judged when a chain is verified,
not here. During a roll-over of the root a bundle holds the old and the new one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature as BadSignature
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.certificate import extension, pem_text, read_certificate, read_pem_certificates
from certs.errors import CertError, InvalidBundle, InvalidCertificate
from certs.names import check_constraint_forms
from certs.spiffe import SpiffeId, check_trust_domain

MAX_ROOTS = 16
_MAX_PEM_BYTES = 1024 * 1024
_HEADER = re.compile(r"^# (trust-domain|sequence): (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """The roots of a trust domain.

    :param roots_der: self-signed certificates in DER, at least one, without repetition
    :param sequence: grows with every change of the roots; 0 where nobody counts
    :raises InvalidBundle: when a root breaks a rule
    """

    trust_domain: str
    roots_der: tuple[bytes, ...]
    sequence: int = 0

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        if not 0 < len(self.roots_der) <= MAX_ROOTS:
            raise InvalidBundle(f"trust bundle: it has {len(self.roots_der)} roots; 1 to {MAX_ROOTS} are taken")
        if len(set(self.roots_der)) != len(self.roots_der):
            raise InvalidBundle("trust bundle: a root is there twice")
        if self.sequence < 0:
            raise InvalidBundle("trust bundle: its sequence is negative")
        for number, der in enumerate(self.roots_der, 1):
            _check_root(der, self.trust_domain, f"root {number} of the trust bundle")

    def to_pem(self) -> str:
        """The bundle as a PEM text that OpenSSL and gRPC read too; the trust domain and sequence stand in comments."""
        header = f"# Hedgerow trust bundle\n# trust-domain: {self.trust_domain}\n# sequence: {self.sequence}\n"
        return header + pem_text(self.roots_der)

    @classmethod
    def from_pem(cls, pem: str | bytes, trust_domain: str = "") -> Self:
        """Read what :meth:`to_pem` wrote, or any PEM text of root certificates.

        :param trust_domain: the one that is expected; may be left out when the text names its own
        :raises InvalidBundle: when the text is malformed, names no trust domain, or another one than expected
        """
        data = pem.encode() if isinstance(pem, str) else pem
        if len(data) > _MAX_PEM_BYTES:
            raise InvalidBundle(f"trust bundle: {len(data)} bytes long, at most {_MAX_PEM_BYTES} are read")
        try:
            headers = dict(_HEADER.findall(data.decode("utf-8")))
            sequence = int(headers.get("sequence", "0"))
            roots = read_pem_certificates(data, "trust bundle")
        except (ValueError, InvalidCertificate):
            raise InvalidBundle(
                "trust bundle: not a PEM text with root certificates; fetch it from the controller again"
            ) from None
        named = headers.get("trust-domain", "")
        if named and trust_domain and named != trust_domain:
            raise InvalidBundle(
                f"trust bundle: it is of trust domain {named!a:.300}, expected was {trust_domain!a:.300}"
            )
        if not named and not trust_domain:
            raise InvalidBundle("trust bundle: it names no trust domain; set trust_domain")
        return cls(trust_domain or named, roots, sequence)


def check_signing_certificate(certificate: x509.Certificate, what: str) -> None:
    """Apply what every certificate must have that may sign others (RFC 5280 section 4.2.1, X509-SVID sections 3.2
    and 4).

    :raises InvalidCertificate: when it may not
    """
    constraints = extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.value.ca:
        raise InvalidCertificate(f"{what}: not a signing certificate, it lacks basic constraint CA")
    if not constraints.critical:
        raise InvalidCertificate(f"{what}: its basic constraints are not critical")
    usage = extension(certificate, x509.KeyUsage)
    if usage is None or not usage.value.key_cert_sign:
        raise InvalidCertificate(f"{what}: its key usage does not permit signing certificates")
    if extension(certificate, x509.SubjectKeyIdentifier) is None:
        raise InvalidCertificate(f"{what}: it signs certificates and has no subject key identifier")
    extended = extension(certificate, x509.ExtendedKeyUsage)
    # TLS libraries apply it to everything below (X509-SVID section 4.4): a chain must not mean different things to
    # two of them
    if extended is not None and not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} <= set(
        extended.value
    ):
        raise InvalidCertificate(f"{what}: its extended key usage does not permit servers and clients both")
    check_constraint_forms(certificate, what)


def check_signing_identity(certificate: x509.Certificate, trust_domain: str, what: str) -> None:
    """Apply what holds for a signing certificate that is an SVID itself, as ours are (X509-SVID sections 3.2 and 4.3).

    :raises InvalidCertificate: when its SPIFFE ID is not that of ``trust_domain``, or its key usage is not critical
    """
    alternative = extension(certificate, x509.SubjectAlternativeName)
    if alternative is None:
        return
    expected = str(SpiffeId.of_trust_domain(trust_domain))
    uris = alternative.value.get_values_for_type(x509.UniformResourceIdentifier)
    for uri in uris:
        if uri != expected:
            raise InvalidCertificate(
                f"{what}: its SPIFFE ID is {uri!a:.300}, in this trust domain it must be {expected}"
            )
    usage = extension(certificate, x509.KeyUsage)
    if uris and (usage is None or not usage.critical):
        raise InvalidCertificate(f"{what}: it has a SPIFFE ID and its key usage is not critical")


def _check_root(der: bytes, trust_domain: str, what: str) -> None:
    try:
        root = read_certificate(der, what)
        check_signing_certificate(root, what)
        check_signing_identity(root, trust_domain, what)
    except CertError as error:
        raise InvalidBundle(str(error)) from None
    authority = extension(root, x509.AuthorityKeyIdentifier)
    subject = extension(root, x509.SubjectKeyIdentifier)
    if authority is not None and subject is not None and authority.value.key_identifier != subject.value.digest:
        raise InvalidBundle(f"{what}: its authority key identifier is not its own subject key identifier")
    try:
        root.verify_directly_issued_by(root)
    except (ValueError, TypeError, BadSignature, UnsupportedAlgorithm):
        raise InvalidBundle(f"{what}: it is not signed with its own key, so it is no root") from None
