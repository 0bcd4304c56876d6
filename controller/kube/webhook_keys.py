"""The injector's certificate through its life: made, overlapped, replaced. Pure; time is an argument.

The authority is a small one of its own, not the mesh's: the mesh's roots are constrained to workloads' identities, and
an API server has no reason to trust them nor the mesh to vouch for a webhook. It signs one certificate and its key is
forgotten at once, so that nothing that could sign another is ever stored. Each replacement is a new authority too.

Rules:

1. API servers know an authority before anybody serves with its certificate: the next pair is stored, its authority goes
   into ``caBundle``, and only when it has been there for a while the pair is served.
2. The authority before stays in ``caBundle`` until every injector has surely read the new certificate.
3. Every state is in the Secret, and every step can be taken again: it may end between any two of them.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.errors import CertError
from certs.keys import certified_bytes, key_from_pem, key_to_pem, new_key, public_bytes
from certs.template import begun, key_usage

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
AUTHORITY: Final = "ca.crt"
NEXT: Final = "next-"
PREVIOUS: Final = "previous-"

#: Seconds that certificates begin before they are made, for clocks that differ.
BACKDATE: Final = 300.0
_MAX_PEM: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds.

    :param lifetime: of a certificate; the next one is made when two thirds of it are over
    :param settle: that API servers have to hear of an authority before it is needed
    :param overlap: that injectors have to read a new certificate; the kubelet brings it within two minutes
    """

    lifetime: float = 90 * 86400.0
    settle: float = 60.0
    overlap: float = 3600.0


@dataclass(frozen=True, slots=True, repr=False)
class Pair:
    """A certificate, its key and its authority, PEM, and when it was made and ends. Never shown: it holds a key."""

    certificate: bytes
    key: bytes
    authority: bytes
    made: float
    ends: float


def make(host: str, now: float, lifetime: float) -> Pair:
    """A certificate for one DNS name under an authority that can sign for no other, and whose key is gone."""
    since, until = now - BACKDATE, now + lifetime
    root_key, key = new_key(), new_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
    subject = _name(f"Hedgerow injector {identifier.digest.hex()[:16]}")
    nowhere = [x509.IPAddress(ipaddress.ip_network(every)) for every in ("0.0.0.0/0", "::/0")]
    root = (
        begun(root_key.public_key(), subject, subject, since, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs=True), critical=True)
        .add_extension(x509.NameConstraints([x509.DNSName(host)], nowhere), critical=True)
        .add_extension(identifier, critical=False)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        begun(key.public_key(), _name(host[:64]), subject, since, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    return Pair(
        leaf.public_bytes(Encoding.PEM),
        key_to_pem(key),
        root.public_bytes(Encoding.PEM),
        float(int(since)) + BACKDATE,
        float(int(until)),
    )


@dataclass(frozen=True, slots=True)
class Held:
    """What the Secret holds, as far as it can be used.

    :param serving: what injectors serve with; None: nothing that can be used
    :param coming: the pair that is next
    :param previous: the authority before, PEM; empty: none
    """

    serving: Pair | None = None
    coming: Pair | None = None
    previous: bytes = b""

    @classmethod
    def read(cls, data: Mapping[str, str], told: str, host: str, now: float) -> Held:
        """From a Secret's ``data``. What is damaged, for another name, or over, is left out and made anew.

        :param told: ``caBundle`` as it stands. Where the Secret is lost, injectors still serve what was in it, so that
            their authority is kept, if it is one of ours
        """
        serving, coming = _pair(data, "", host, now), _pair(data, NEXT, host, now)
        previous = _authority(_decoded(data, PREVIOUS + AUTHORITY), host, now)
        if serving is None and not previous:
            previous = _authority(_decoded({AUTHORITY: told}, AUTHORITY), host, now)
        return cls(serving, coming, previous)

    def data(self) -> dict[str, str]:
        """A Secret's ``data``."""
        parts: dict[str, bytes] = {}
        for prefix, pair in (("", self.serving), (NEXT, self.coming)):
            if pair is not None:
                parts[prefix + CERTIFICATE], parts[prefix + KEY] = pair.certificate, pair.key
                parts[prefix + AUTHORITY] = pair.authority
        if self.previous:
            parts[PREVIOUS + AUTHORITY] = self.previous
        return {name: base64.b64encode(part).decode() for name, part in parts.items()}

    def bundle(self) -> bytes:
        """``caBundle``: every authority that injectors may serve under, now or next, the present one first."""
        pairs = [pair.authority for pair in (self.serving, self.coming) if pair is not None]
        return b"".join(dict.fromkeys([*pairs, *([self.previous] if self.previous else [])]))


def advance(held: Held, host: str, now: float, times: Times, *, known: bool) -> Held:
    """The next step; the same again when there is none to take.

    :param known: whether API servers have been told ``held.bundle()``
    """
    if held.serving is None:  # nobody is served as it is: nothing can be lost by taking the next one at once
        return Held(held.coming or make(host, now, times.lifetime), None, held.previous)
    lifetime = held.serving.ends - held.serving.made
    if held.coming is not None:
        if known and now >= held.coming.made + times.settle:
            return Held(held.coming, None, held.serving.authority)
        return held
    if now >= held.serving.made + lifetime * 2 / 3:
        return replace(held, coming=make(host, now, times.lifetime))
    if held.previous and now >= held.serving.made + times.settle + times.overlap:
        return replace(held, previous=b"")
    return held


def _pair(data: Mapping[str, str], prefix: str, host: str, now: float) -> Pair | None:
    certificate, key, authority = (_decoded(data, prefix + name) for name in (CERTIFICATE, KEY, AUTHORITY))
    leaf, root = _certificate(certificate), _certificate(authority)
    if leaf is None or root is None or not leaf.not_valid_before_utc.timestamp() <= now < _ends(leaf):
        return None
    try:
        if public_bytes(key_from_pem(key).public_key()) != certified_bytes(leaf):
            return None
        leaf.verify_directly_issued_by(root)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if host not in names.get_values_for_type(x509.DNSName):
            return None
    except (CertError, ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
        return None
    return Pair(certificate, key, authority, leaf.not_valid_before_utc.timestamp() + BACKDATE, _ends(leaf))


def _authority(pem: bytes, host: str, now: float) -> bytes:
    """The first of some certificates, when it can vouch for nothing but ``host``, and still does; else nothing."""
    try:
        found = x509.load_pem_x509_certificates(pem)[0]
        limits = found.extensions.get_extension_for_class(x509.NameConstraints).value
    except (ValueError, IndexError, x509.ExtensionNotFound):
        return b""
    if limits.permitted_subtrees != [x509.DNSName(host)] or _ends(found) <= now:
        return b""
    return found.public_bytes(Encoding.PEM)


def _decoded(data: Mapping[str, str], name: str) -> bytes:
    written = data.get(name)
    if not isinstance(written, str) or len(written) > _MAX_PEM:
        return b""
    try:
        return base64.b64decode(written, validate=True)
    except binascii.Error:
        return b""


def _certificate(pem: bytes) -> x509.Certificate | None:
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        return None
    return found[0] if len(found) == 1 else None


def _ends(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
