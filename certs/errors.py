"""What can be wrong with an identity, a certificate or a key.

Everything that ``certs`` refuses is a :class:`CertError`, whatever library noticed it first. A message names the
field, what is wrong with it and, where somebody can act on it, the remedy. No message ever holds key material.
"""

from __future__ import annotations


class CertError(Exception):
    """The base.

    This identity, certificate, chain, request or key is refused. Retrying with the same input cannot help.
    """


class InvalidSpiffeId(CertError):
    """A text is not a SPIFFE ID, or not one that may stand in this place."""


class InvalidCertificate(CertError):
    """Bytes that are no certificate, or a certificate outside the profile that we read (RFC 5280 and our limits)."""


class InvalidSvid(CertError):
    """A certificate that breaks a rule for X.509-SVIDs."""


class UntrustedChain(CertError):
    """A certificate that does not chain to the trust bundle now."""


class InvalidCsr(CertError):
    """A signing request that is malformed, or does not prove possession of an acceptable key."""


class KeyMismatch(CertError):
    """A private key that does not belong to the certificate it came with."""


class InvalidKey(CertError):
    """Bytes that are no key, or a key of a kind that we do not use."""


class InvalidSignature(CertError):
    """A payload that its signer did not sign, or signed by somebody who may not sign it."""


class InvalidBundle(CertError):
    """A trust bundle that is empty, malformed or of another trust domain."""


class AuthorityError(CertError):
    """The certificate authority cannot do what was asked.

    Its own state is missing, damaged, readable by others or expired.
    """
