"""Certificates that our own authority would never sign: a root without scruples, and leaves wrong in one point each.

The root has no name constraints, so that OpenSSL lets through what our own rules then have to refuse.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.bundle import TrustBundle
from certs.keys import new_key

TRUST_DOMAIN = "hedgerow.local"
GOOD_ID = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/default/wl/cart"

type Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

_USAGES = [
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
]


def key_usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in names for name in _USAGES})


def raw(kind: type[x509.ExtensionType], der: bytes) -> x509.UnrecognizedExtension:
    """An extension with a content that the library would not write."""
    return x509.UnrecognizedExtension(kind.oid, der)


def uri_name(content: bytes) -> x509.UnrecognizedExtension:
    """A subject alternative name with one URI of arbitrary bytes (RFC 5280 section 4.2.1.6, tag 6)."""
    return raw(x509.SubjectAlternativeName, tlv(0x30, tlv(0x86, content)))


def tlv(tag: int, content: bytes) -> bytes:
    """A DER value."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + content


def uris(*texts: str) -> tuple[x509.GeneralName, ...]:
    return tuple(x509.UniformResourceIdentifier(text) for text in texts)


@dataclass(frozen=True)
class Leaf:
    """What to write into a leaf; the defaults make a good one. None leaves an extension out."""

    names: Sequence[x509.GeneralName] | x509.ExtensionType | None = (x509.UniformResourceIdentifier(GOOD_ID),)
    names_critical: bool = True
    subject: str = ""
    constraints: x509.ExtensionType | None = field(default_factory=lambda: x509.BasicConstraints(False, None))
    usage: x509.ExtensionType | None = field(default_factory=lambda: key_usage("digital_signature"))
    usage_critical: bool = True
    purposes: Sequence[x509.ObjectIdentifier] | None = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    begins: float = -60.0
    ends: float = 3600.0
    key: Key = field(default_factory=new_key)
    more: Sequence[tuple[x509.ExtensionType, bool]] = ()
    version_1: bool = False
    digest: hashes.HashAlgorithm = field(default_factory=hashes.SHA256)

    def but(self, **changes: Any) -> Self:
        return replace(self, **changes)


@dataclass(frozen=True)
class Chain:
    """A leaf with its key and intermediates, ready to be presented."""

    ders: tuple[bytes, ...]
    key: Key

    @property
    def leaf(self) -> bytes:
        return self.ders[0]

    @property
    def pem(self) -> str:
        certificates = (x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in self.ders)
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return (b"".join(certificates) + key).decode("ascii")


@dataclass(frozen=True)
class Forge:
    """A signing certificate of any shape. A root signs itself."""

    now: float
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    above: tuple[bytes, ...] = ()

    @classmethod
    def root(cls, now: float, **changes: Any) -> Self:
        key = new_key()
        return cls(now, _authority(key, "forged root", None, now, **changes), key)

    def intermediate(
        self, name: str = "forged intermediate", key: ec.EllipticCurvePrivateKey | None = None, **changes: Any
    ) -> Forge:
        """A signing certificate under this one."""
        key = key or new_key()
        certificate = _authority(key, name, self, self.now, **changes)
        above = () if not self.above and self.is_root else (self.der, *self.above)
        return Forge(self.now, certificate, key, above)

    @property
    def is_root(self) -> bool:
        return self.certificate.issuer == self.certificate.subject

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def bundle(self) -> TrustBundle:
        return TrustBundle(TRUST_DOMAIN, (self.der,))

    def sign(self, leaf: Leaf) -> Chain:
        """Sign a leaf as it is."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, leaf.subject)] if leaf.subject else [])
        builder = _builder(
            leaf.key.public_key(), subject, self.certificate.subject, self.now + leaf.begins, self.now + leaf.ends
        )
        if leaf.constraints is not None:
            builder = builder.add_extension(leaf.constraints, critical=True)
        if leaf.usage is not None:
            builder = builder.add_extension(leaf.usage, critical=leaf.usage_critical)
        if leaf.purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(leaf.purposes), critical=False)
        if leaf.names is not None:
            names = (
                leaf.names if isinstance(leaf.names, x509.ExtensionType) else x509.SubjectAlternativeName(leaf.names)
            )
            builder = builder.add_extension(names, critical=leaf.names_critical)
        for value, critical in (*_identifiers(leaf.key.public_key(), self.key), *leaf.more):
            builder = builder.add_extension(value, critical=critical)
        signed = builder.sign(self.key, leaf.digest)
        der = _as_version_1(signed, self.key) if leaf.version_1 else signed.public_bytes(Encoding.DER)
        return Chain((der, *(() if self.is_root else (self.der, *self.above))), leaf.key)


def _authority(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    issuer: Forge | None,
    now: float,
    *,
    constraints: x509.BasicConstraints | None = None,
    usage: x509.KeyUsage | None = None,
    usage_critical: bool = True,
    names: Sequence[x509.GeneralName] = (),
    nameless: bool = False,
    begins: float = -3600.0,
    ends: float = 86400.0,
    more: Sequence[tuple[x509.ExtensionType, bool]] = (),
) -> x509.Certificate:
    subject = x509.Name([] if nameless else [x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_name = subject if issuer is None else issuer.certificate.subject
    signer = key if issuer is None else issuer.key
    builder = (
        _builder(key.public_key(), subject, issuer_name, now + begins, now + ends)
        .add_extension(constraints or x509.BasicConstraints(True, None), critical=True)
        .add_extension(usage or key_usage("key_cert_sign", "crl_sign"), critical=usage_critical)
    )
    for value, critical in (*_identifiers(key.public_key(), signer), *more):
        builder = builder.add_extension(value, critical=critical)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=nameless)
    return builder.sign(signer, hashes.SHA256())


def _identifiers(public: Any, signer: ec.EllipticCurvePrivateKey) -> list[tuple[x509.ExtensionType, bool]]:
    return [
        (x509.SubjectKeyIdentifier.from_public_key(public), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
    ]


def _builder(public: Any, subject: x509.Name, issuer: x509.Name, begins: float, ends: float) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.fromtimestamp(int(begins), dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(int(ends), dt.UTC))
    )


def _as_version_1(certificate: x509.Certificate, signer: ec.EllipticCurvePrivateKey) -> bytes:
    """The same certificate without version and extensions, signed again."""
    fields = list(_values(_content(certificate.tbs_certificate_bytes)))
    body = tlv(0x30, b"".join(fields[1:7]))
    signature = signer.sign(body, ec.ECDSA(hashes.SHA256()))
    return tlv(0x30, body + fields[2] + tlv(0x03, b"\0" + signature))


def _content(value: bytes) -> bytes:
    return value[2:] if value[1] < 0x80 else value[2 + (value[1] & 0x7F) :]


def _values(data: bytes) -> list[bytes]:
    values = []
    while data:
        header = 2 if data[1] < 0x80 else 2 + (data[1] & 0x7F)
        size = header + (data[1] if header == 2 else int.from_bytes(data[2:header]))
        values.append(data[:size])
        data = data[size:]
    return values
