"""Private keys and signing requests. Keys are ECDSA P-256, are made where they are used and never leave there."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from certs.errors import InvalidKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key from the operating system's random source."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Write a key as unencrypted PKCS #8 PEM. The caller sees to it that nobody else can read the result."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_from_pem(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted P-256 key.

    :raises InvalidKey: when ``pem`` holds no key, or one of another kind; the message never quotes it
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # from None: the library's message could quote the input
        raise InvalidKey("private key: not an unencrypted PEM key; delete it to have a new one made") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidKey("private key: not an ECDSA P-256 key; delete it to have a new one made")
    return key


def make_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A DER signing request (RFC 2986) that proves possession of ``key`` and asks for no name.

    The signer decides on that.
    """
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.DER)


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """The key's SubjectPublicKeyInfo in DER: equal for equal keys."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def certified_bytes(certificate: x509.Certificate) -> bytes:
    """The same of the key that a certificate is for; empty, which no key of ours is equal to, when it is no EC key."""
    key = certificate.public_key()
    return public_bytes(key) if isinstance(key, ec.EllipticCurvePublicKey) else b""
