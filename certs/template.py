"""What every certificate that we write begins with, whatever it is for. No state, no clock."""

from __future__ import annotations

import datetime as dt
import secrets

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.certificate import MAX_SERIAL


def begun(
    public: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, not_before: float, not_after: float
) -> x509.CertificateBuilder:
    """A certificate without extensions, to be signed.

    :param not_before: the validity, in seconds since the epoch; certificates have whole ones
    """
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        # 159 random bits (CA/Browser Forum requirements, section 7.1 ask for 64)
        .serial_number(secrets.randbelow(MAX_SERIAL) + 1)
        .not_valid_before(dt.datetime.fromtimestamp(int(not_before), dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(int(not_after), dt.UTC))
    )


def key_usage(*, signs: bool) -> x509.KeyUsage:
    """What the key may be used for: to sign certificates and nothing else, or to prove who speaks and nothing else."""
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def authority_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Whose key signs it, as ``issuer`` names its own."""
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)
