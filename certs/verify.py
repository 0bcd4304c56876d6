"""From the certificates that a peer sends to the identity that it proves.

Two stages, in this order and never one without the other: the chain (RFC 5280 section 6: who signed it) and the
leaf (:mod:`certs.svid`: whom it names). The chain stage is our own because the ``cryptography`` package, whose
parser and signature checks it rests on, refuses every URI name constraint, and ours have one. It searches for a
path from the leaf to a root of the bundle, tries every candidate and spends a fixed budget of signature checks, so
that no set of certificates can keep it busy. Anything malformed among what the peer sent refuses the whole, needed
for the path or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature as BadSignature
from cryptography.exceptions import UnsupportedAlgorithm

from certs.bundle import TrustBundle, check_signing_certificate, check_signing_identity
from certs.certificate import check_validity, extension, read_certificate
from certs.errors import CertError, UntrustedChain
from certs.names import check_name_constraints, names_of
from certs.spiffe import SpiffeId
from certs.svid import check_leaf, check_not_authority

#: How many certificates a peer may send besides its own, and how many of them a path may use.
MAX_INTERMEDIATES = 8
MAX_PATH_INTERMEDIATES = 4
MAX_SIGNATURE_CHECKS = 32


def verify_peer(leaf_der: bytes, intermediates_der: Sequence[bytes], bundle: TrustBundle, now: float) -> SpiffeId:
    """Verify a peer's certificates and return the identity they prove.

    :param leaf_der: the peer's own certificate in DER
    :param intermediates_der: the others that it sent, in any order
    :param now: seconds since the epoch
    :raises CertError: when it proves none; the class and the message say at which stage and why
    """
    verify_chain(leaf_der, intermediates_der, bundle, now)
    return check_leaf(leaf_der, bundle.trust_domain, now)


def verify_chain(
    leaf_der: bytes,
    intermediates_der: Sequence[bytes],
    bundle: TrustBundle,
    now: float,
    max_path_intermediates: int = MAX_PATH_INTERMEDIATES,
) -> tuple[bytes, ...]:
    """The first stage alone: find a path from a leaf to a root. It says nothing about whom the leaf names.

    :param max_path_intermediates: how many intermediates, self-issued ones included, may lie between leaf and root
    :returns: the path in DER, leaf first, root last
    :raises InvalidCertificate: when a certificate cannot be read, or breaks the profile of its place
    :raises UntrustedChain: when there is no valid path
    """
    if len(intermediates_der) > MAX_INTERMEDIATES:
        raise UntrustedChain(
            f"chain: {len(intermediates_der)} intermediates were sent, at most {MAX_INTERMEDIATES} are read"
        )
    leaf = read_certificate(leaf_der, "leaf")
    check_not_authority(leaf)
    names_of(leaf)
    if reason := check_validity(leaf, now, "leaf"):
        raise UntrustedChain(reason)
    intermediates = [
        read_certificate(der, f"intermediate {number}")
        for number, der in enumerate(dict.fromkeys(intermediates_der), 1)
    ]
    roots = [read_certificate(der, "root") for der in bundle.roots_der]
    search = _Search(roots, intermediates, bundle.trust_domain, now, max_path_intermediates)
    path = search.extend([leaf])
    if path is None:
        reasons = "; ".join(dict.fromkeys(search.reasons)) or "no root and no intermediate is its issuer"
        raise UntrustedChain(f"chain: it does not lead to a root of trust domain {bundle.trust_domain}: {reasons}")
    ders = dict(zip(intermediates, dict.fromkeys(intermediates_der), strict=True))
    return (leaf_der, *(ders[one] for one in path[1:-1]), bundle.roots_der[roots.index(path[-1])])


@dataclass(slots=True)
class _Search:
    """A depth-first search for a path; remembers why each candidate was left."""

    roots: list[x509.Certificate]
    intermediates: list[x509.Certificate]
    trust_domain: str
    now: float
    max_path_intermediates: int
    checks_left: int = MAX_SIGNATURE_CHECKS
    reasons: list[str] = field(default_factory=list)

    def extend(self, path: list[x509.Certificate]) -> list[x509.Certificate] | None:
        """A complete path that begins with ``path``, or none."""
        for root in self.roots:
            if self._issued(path, root, "root") and self._within_constraints([*path, root]):
                return [*path, root]
        for intermediate in self.intermediates:
            if intermediate in path or not self._issued(path, intermediate, "intermediate"):
                continue
            if len(path) > self.max_path_intermediates:
                self.reasons.append(f"the path would have more than {self.max_path_intermediates} intermediates")
                return None
            if (found := self.extend([*path, intermediate])) is not None:
                return found
        return None

    def _issued(self, path: list[x509.Certificate], issuer: x509.Certificate, what: str) -> bool:
        """Whether ``issuer`` may have signed, and did sign, the last certificate of ``path``."""
        subject = path[-1]
        if subject.issuer.public_bytes() != issuer.subject.public_bytes():
            return False
        try:
            check_signing_certificate(issuer, what)
            check_signing_identity(issuer, self.trust_domain, what)
        except CertError as error:
            self.reasons.append(str(error))
            return False
        reason = (
            check_validity(issuer, self.now, what)
            or _key_identifier_mismatch(subject, issuer, what)
            or _path_length_exceeded(path, issuer, what)
            or self._signature_wrong(subject, issuer, what)
        )
        if reason:
            self.reasons.append(reason)
        return not reason

    def _signature_wrong(self, subject: x509.Certificate, issuer: x509.Certificate, what: str) -> str:
        if self.checks_left == 0:
            return f"more than {MAX_SIGNATURE_CHECKS} signatures would have to be checked"
        self.checks_left -= 1
        try:
            subject.verify_directly_issued_by(issuer)
        except BadSignature:
            return f"{what}: its key did not sign the certificate below it"
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            # among others: the signed and the unsigned statement of the algorithm differ (RFC 5280 section 4.1.1.2)
            return f"{what}: the signature on the certificate below it cannot be checked: {str(error)!a:.200}"
        return ""

    def _within_constraints(self, path: list[x509.Certificate]) -> bool:
        try:
            check_name_constraints(path)
        except UntrustedChain as error:
            self.reasons.append(str(error))
            return False
        return True


def _key_identifier_mismatch(subject: x509.Certificate, issuer: x509.Certificate, what: str) -> str:
    """RFC 5280 section 4.2.1.1: every certificate that is not self-signed says which key signed it."""
    authority = extension(subject, x509.AuthorityKeyIdentifier)
    own = extension(issuer, x509.SubjectKeyIdentifier)
    if authority is None:
        return f"the certificate below the {what} has no authority key identifier"
    if own is None or authority.value.key_identifier != own.value.digest:
        return f"{what}: it has the issuer's name but another key identifier"
    return ""


def _path_length_exceeded(path: list[x509.Certificate], issuer: x509.Certificate, what: str) -> str:
    """RFC 5280 section 4.2.1.9: how many intermediates that are not self-issued may follow ``issuer``."""
    constraints = extension(issuer, x509.BasicConstraints)
    limit = None if constraints is None else constraints.value.path_length
    below = sum(1 for one in path[1:] if one.subject.public_bytes() != one.issuer.public_bytes())
    if limit is not None and below > limit:
        return f"{what}: its path length is {limit} and {below} intermediates follow it"
    return ""
