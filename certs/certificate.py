"""One certificate: bytes in, a checked certificate out.

:func:`read_certificate` is the only place where foreign bytes become a certificate. It applies what is true of
every certificate that we take, whatever its place in a chain: the RFC 5280 profile, narrowed to what SPIFFE needs.
The rules of a place are elsewhere: signing certificates and paths in :mod:`certs.verify`, identities in
:mod:`certs.svid`.

Where RFC 5280 lets a reader choose, we refuse: an extension that we do not process and that is critical, policies
that bind, serials that are not positive, keys and digests below 112 bits of strength.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certs.errors import InvalidCertificate

#: An SVID has about 600 bytes, the longest permitted SPIFFE ID adds 2048. More is an attempt to keep us busy.
MAX_CERTIFICATE_BYTES = 16 * 1024

#: RFC 5280 section 4.1.2.2: positive, 20 octets at most, so that the topmost bit of 160 stays clear.
MAX_SERIAL = 2**159 - 1

#: Critical extensions that we process. Any other critical one refuses the certificate (RFC 5280 section 4.2).
_PROCESSED = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
    x509.NameConstraints,
)

#: Extensions that bind the path in ways that we do not evaluate: their presence refuses the certificate, critical
#: or not.
_UNSUPPORTED = (x509.PolicyConstraints, x509.InhibitAnyPolicy)

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_DIGESTS = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_MIN_RSA_BITS = 2048
_MAX_RSA_BITS = 8192


def read_certificate(der: bytes, what: str = "certificate") -> x509.Certificate:
    """Read one certificate and apply the rules that hold for all.

    :param der: exactly one certificate in DER
    :param what: what to call it in messages, such as ``"leaf"``
    :raises InvalidCertificate: when it cannot be read or breaks the profile
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise InvalidCertificate(f"{what}: {len(der)} bytes long, at most {MAX_CERTIFICATE_BYTES} are read")
    try:
        certificate = x509.load_der_x509_certificate(der)
        # parsed on first use: touch everything, so that nothing can fail later outside this translation
        version = certificate.version
        extensions = list(certificate.extensions)
        _ = (certificate.issuer, certificate.subject, certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    except x509.InvalidVersion:
        raise InvalidCertificate(f"{what}: its version is not known; only X.509 version 3 is taken") from None
    except x509.DuplicateExtension as error:
        raise InvalidCertificate(f"{what}: extension {error.oid.dotted_string} is there twice") from None
    except Exception as error:  # the parser's own; it lets KeyError and others escape too
        reason = ascii(str(error)[:200])
        raise InvalidCertificate(f"{what}: not a readable X.509 certificate in DER: {reason}") from None
    if version is not x509.Version.v3:
        raise InvalidCertificate(f"{what}: X.509 version 1; only version 3 is taken")
    if not 0 < certificate.serial_number <= MAX_SERIAL:
        raise InvalidCertificate(f"{what}: its serial number is not a positive number of at most 20 octets")
    if not certificate.issuer.rdns:
        raise InvalidCertificate(f"{what}: it names no issuer")
    _check_algorithms(certificate, what)
    _check_extensions(certificate, extensions, what)
    return certificate


def read_pem_certificates(pem: bytes, what: str) -> tuple[bytes, ...]:
    """The certificates of a PEM text, in DER and in order; nothing is checked yet but that each can be read.

    :raises InvalidCertificate: when there is none, or one cannot be read
    """
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except Exception:  # see read_certificate
        raise InvalidCertificate(f"{what}: not a PEM text with certificates") from None
    # a block that is cut off is passed over by the library: fewer certificates than were meant
    if not pem.count(b"-----BEGIN CERTIFICATE-----") == pem.count(b"-----END CERTIFICATE-----") == len(certificates):
        raise InvalidCertificate(f"{what}: a PEM block is cut off")
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)


def pem_text(ders: Iterable[bytes]) -> str:
    """Certificates in DER as one PEM text.

    :raises InvalidCertificate: when one cannot be read
    """
    return "".join(read_certificate(der).public_bytes(Encoding.PEM).decode("ascii") for der in ders)


def extension[T: x509.ExtensionType](certificate: x509.Certificate, kind: type[T]) -> x509.Extension[T] | None:
    """The certificate's extension of one kind, if it has one."""
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def check_validity(certificate: x509.Certificate, now: float, what: str) -> str:
    """Why ``certificate`` is not valid at ``now`` (seconds since the epoch); empty when it is.

    Both ends are inclusive and count whole seconds (RFC 5280 section 4.1.2.5).
    """
    second = int(now // 1)
    if second < certificate.not_valid_before_utc.timestamp():
        begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC"
        return f"{what}: not valid before {begins}; check the clocks of both ends"
    if second > certificate.not_valid_after_utc.timestamp():
        return f"{what}: expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC; it has to be renewed"
    return ""


def check_public_key(key: object, what: str) -> None:
    """Refuse keys of a kind or strength that we do not take.

    :raises InvalidCertificate: for anything but ECDSA on P-256, P-384 or P-521, and RSA of 2048 to 8192 bits
    """
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, _CURVES):
            raise InvalidCertificate(f"{what}: its key is on curve {key.curve.name}; P-256, P-384 and P-521 are taken")
    elif isinstance(key, rsa.RSAPublicKey):
        # whole octets only: odd sizes come from broken generators (CA/Browser Forum requirements, section 6.1.5)
        if not _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS or key.key_size % 8:
            raise InvalidCertificate(
                f"{what}: its RSA key has {key.key_size} bits; "
                f"{_MIN_RSA_BITS} to {_MAX_RSA_BITS} in whole octets are taken"
            )
    else:
        raise InvalidCertificate(f"{what}: its key is neither ECDSA nor RSA")


def _check_algorithms(certificate: x509.Certificate, what: str) -> None:
    try:
        key = certificate.public_key()
        digest: object = certificate.signature_hash_algorithm
    except Exception:  # see read_certificate
        raise InvalidCertificate(f"{what}: its key or signature is of a kind that is not taken") from None
    check_public_key(key, what)
    # a curve given by its parameters, also by those of a named one, is not permitted (RFC 5480 section 2.1.1); the
    # library reads some of them, and writes every key in the one permitted form
    if _key_in(certificate) != key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        raise InvalidCertificate(f"{what}: its key is not written in the usual form, a named curve and the whole point")
    if not isinstance(digest, _DIGESTS):
        raise InvalidCertificate(f"{what}: it is not signed over SHA-256, SHA-384 or SHA-512")


def _key_in(certificate: x509.Certificate) -> bytes:
    """The SubjectPublicKeyInfo as it stands in a certificate (RFC 5280 section 4.1) whose DER has been read before."""
    body = certificate.tbs_certificate_bytes
    start, _ = _value_at(body, 0)
    # version, serial number, signature, issuer, validity, subject
    for _ in range(6):
        _, start = _value_at(body, start)
    return body[start : _value_at(body, start)[1]]


def _value_at(data: bytes, start: int) -> tuple[int, int]:
    """Where the content of the DER value at ``start`` begins and ends (X.690 section 8.1.3, definite lengths)."""
    length = data[start + 1]
    begin = start + 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(data[begin : begin + size])
        begin += size
    return begin, begin + length


def _check_extensions(
    certificate: x509.Certificate, extensions: list[x509.Extension[x509.ExtensionType]], what: str
) -> None:
    for one in extensions:
        if isinstance(one.value, _UNSUPPORTED):
            raise InvalidCertificate(
                f"{what}: extension {one.oid.dotted_string} binds policies, which are not evaluated"
            )
        # key identifiers must not be critical (RFC 5280 sections 4.2.1.1 and 4.2.1.2), and fall under this too
        if one.critical and not isinstance(one.value, _PROCESSED):
            raise InvalidCertificate(f"{what}: extension {one.oid.dotted_string} is critical and not processed here")
    authority = extension(certificate, x509.AuthorityKeyIdentifier)
    if authority is not None and (
        authority.value.key_identifier is None
        or authority.value.authority_cert_issuer is not None
        or authority.value.authority_cert_serial_number is not None
    ):
        raise InvalidCertificate(f"{what}: its authority key identifier is not a key identifier alone")
    key_usage = extension(certificate, x509.KeyUsage)
    constraints = extension(certificate, x509.BasicConstraints)
    is_authority = constraints is not None and constraints.value.ca
    if key_usage is not None and key_usage.value.key_cert_sign and not is_authority:
        raise InvalidCertificate(f"{what}: key usage keyCertSign without basic constraint CA")
    if extension(certificate, x509.NameConstraints) is not None and not is_authority:
        raise InvalidCertificate(f"{what}: name constraints without basic constraint CA")
    alternative = extension(certificate, x509.SubjectAlternativeName)
    if alternative is not None and not list(alternative.value):
        raise InvalidCertificate(f"{what}: its subject alternative name is empty")
    if not certificate.subject.rdns and (alternative is None or not alternative.critical):
        raise InvalidCertificate(f"{what}: it has neither a subject nor a critical subject alternative name")
