"""What a sidecar shows its own application in place of a host outside the mesh that its workload inspects.

Three certificates, none of which the mesh itself believes: the root of a trust domain's inspection, which applications
are told to trust and whose key stays with the controller; under it a signing certificate of one workload, good for a
day and for the hosts that it inspects; under that a leaf for each host, made by the sidecar. The two lower keys live
in the sidecar's memory alone.

Rules:

1. A workload's signing certificate is constrained (critical, RFC 5280 section 4.2.1.10) to its hosts and signs no other
   authority. So what is taken out of a sidecar's memory deceives that workload's own application, about those hosts
   (and names below them: X.509 has no narrower constraint), for a day at most.
2. No certificate here carries a SPIFFE ID, and the root is in no trust bundle: none of it proves anything in the mesh.
3. A leaf ends with the certificate that signed it.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.certificate import check_validity, extension, pem_text, read_certificate, read_pem_certificates
from certs.errors import AuthorityError, InvalidCertificate, InvalidCsr, KeyMismatch, UntrustedChain
from certs.issue import Signer, read_csr
from certs.keys import certified_bytes, key_from_pem, key_to_pem, new_key, public_bytes
from certs.names import is_host_name
from certs.template import authority_identifier, begun, key_usage

_DAY = 86_400.0
#: Lifetimes in seconds: of the root, and of a workload's signing certificate.
ROOT_LIFETIME = 3650 * _DAY
SIGNING_LIFETIME = _DAY
#: Certificates begin this much in the past, seconds, for applications whose clocks are behind.
BACKDATE = 300.0
#: Hosts in one signing certificate.
MAX_HOSTS = 64

_KEY_END = b"-----END PRIVATE KEY-----\n"


@dataclass(frozen=True, slots=True)
class InspectionAuthority:
    """The root of one trust domain's inspection. Never logged: its repr shows no key."""

    signer: Signer

    @classmethod
    def create(cls, trust_domain: str, now: float) -> Self:
        """Make a new one, valid from ``now`` (seconds since the epoch)."""
        key = new_key()
        name = _name(f"Hedgerow inspection {trust_domain}"[:64])
        nobody = x509.NameConstraints(permitted_subtrees=None, excluded_subtrees=_ADDRESSES)
        certificate = (
            begun(key.public_key(), name, name, now - BACKDATE, now + ROOT_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(key_usage(signs=True), critical=True)
            .add_extension(nobody, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(Signer(certificate, key))

    @classmethod
    def load(cls, pem: bytes) -> Self:
        """Read what :meth:`dump` wrote.

        :raises AuthorityError: when it is damaged
        """
        key_pem, end, rest = pem.partition(_KEY_END)
        try:
            key = key_from_pem(key_pem + end)
            (der,) = read_pem_certificates(rest, "inspection root")
            certificate = read_certificate(der, "inspection root")
        except ValueError:
            raise AuthorityError("inspection root: not exactly one certificate; restore it from a backup") from None
        if public_bytes(key.public_key()) != certified_bytes(certificate):
            raise AuthorityError("inspection root: the key is not its own; restore it from a backup")
        return cls(Signer(certificate, key))

    def dump(self) -> bytes:
        """Key and certificate as PEM. Keep it secret."""
        return key_to_pem(self.signer.key) + pem_text([self.root_der]).encode("ascii")

    @property
    def root_der(self) -> bytes:
        """What applications have to trust."""
        return self.signer.certificate.public_bytes(Encoding.DER)

    def sign(self, csr_der: bytes, workload: str, hosts: Sequence[str], now: float) -> tuple[bytes, bytes]:
        """A workload's signing certificate, and the root.

        :param workload: ``namespace/name``, for people
        :param hosts: that it may make certificates for
        :raises InvalidCsr: see :func:`certs.issue.read_csr`; also when a host is none
        :raises AuthorityError: when the root is not valid now
        """
        public = read_csr(csr_der)
        if not 1 <= len(hosts) <= MAX_HOSTS or not all(is_host_name(host) and "." in host for host in hosts):
            raise InvalidCsr(f"hosts: not 1 to {MAX_HOSTS} names of hosts")
        root = self.signer.certificate
        if reason := check_validity(root, now, "inspection root"):
            raise AuthorityError(reason)
        ends = min(now + SIGNING_LIFETIME, root.not_valid_after_utc.timestamp())
        # a name of its own for every key: paths are found by name, also while two are in use
        name = _name(f"{workload[:40]} {secrets.token_hex(8)}")
        constraints = x509.NameConstraints([x509.DNSName(host) for host in hosts], _ADDRESSES)
        begins = max(now - BACKDATE, root.not_valid_before_utc.timestamp())
        certificate = (
            begun(public, name, root.subject, begins, ends)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(signs=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(constraints, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(authority_identifier(root), critical=False)
            .sign(self.signer.key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.DER), self.root_der

    def __repr__(self) -> str:
        return f"InspectionAuthority({self.signer.certificate.subject.rfc4514_string()!r})"


_ADDRESSES = [x509.IPAddress(ipaddress.ip_network(block)) for block in ("0.0.0.0/0", "::/0")]


@dataclass(frozen=True, slots=True)
class HostSigner:
    """One workload's signing certificate with its key, checked. Never logged: its repr shows no key.

    :param hosts: that it is constrained to
    :param root_der: what the application has to trust
    :param not_before: seconds since the epoch; also ``not_after``
    """

    signer: Signer
    root_der: bytes
    hosts: frozenset[str]
    not_before: float
    not_after: float

    @classmethod
    def checked(
        cls, chain_der: Sequence[bytes], key: ec.EllipticCurvePrivateKey, hosts: Sequence[str], now: float
    ) -> Self:
        """Check what the controller answered.

        :param hosts: that it may be for, at most
        :raises KeyMismatch: when it was made for another key
        :raises UntrustedChain: when it is no such certificate, is for other hosts, or is not valid now
        """
        if len(chain_der) != 2:
            raise UntrustedChain(f"inspection: {len(chain_der)} certificates, not one and its root")
        certificate, root = (read_certificate(der, "inspection") for der in chain_der)
        if public_bytes(key.public_key()) != certified_bytes(certificate):
            raise KeyMismatch("inspection: the certificate was made for another key than ours")
        constraints, basic = extension(certificate, x509.NameConstraints), extension(certificate, x509.BasicConstraints)
        permitted = constraints.value.permitted_subtrees if constraints is not None and constraints.critical else None
        given = {str(name.value) for name in permitted or () if isinstance(name, x509.DNSName)}
        if not given or len(given) != len(permitted or ()) or not given <= set(hosts):
            raise UntrustedChain("inspection: the certificate is not constrained to the hosts that we inspect")
        if basic is None or not basic.value.ca or basic.value.path_length != 0:
            raise UntrustedChain("inspection: the certificate signs nothing, or authorities")
        try:
            certificate.verify_directly_issued_by(root)
        except Exception as error:  # the library has several for a wrong name, key or signature
            raise UntrustedChain("inspection: the root that came with the certificate did not sign it") from error
        if reason := check_validity(certificate, now, "inspection"):
            raise UntrustedChain(reason)
        begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        return cls(Signer(certificate, key), chain_der[1], frozenset(given), begins, ends)

    def leaf(self, public: ec.EllipticCurvePublicKey, host: str) -> tuple[bytes, bytes]:
        """A certificate for ``host``, and the one that signed it.

        :raises InvalidCertificate: when we may not speak for that host
        """
        if host not in self.hosts:
            raise InvalidCertificate(f"inspection: {host!a:.100} is none of the hosts that we inspect")
        issuer = self.signer.certificate
        certificate = (
            begun(public, _name("inspected"), issuer.subject, self.not_before, self.not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(authority_identifier(issuer), critical=False)
            .sign(self.signer.key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.DER), issuer.public_bytes(Encoding.DER)

    def __repr__(self) -> str:
        return f"HostSigner({sorted(self.hosts)}, not_after={self.not_after:.0f})"


def _name(text: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Hedgerow"), x509.NameAttribute(NameOID.COMMON_NAME, text)]
    )
