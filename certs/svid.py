"""The rules for X.509-SVIDs, applied to a leaf certificate alone.

:func:`check_leaf` is what makes a certificate an identity. It proves nothing about who signed it: that is
:mod:`certs.verify`, or the TLS handshake with a context of :mod:`certs.contexts`, and has to come first.

Beyond the X509-SVID document we require what our own authority always writes: both extended key usages, no
alternative name besides the SPIFFE ID (the controller has its one DNS name), no authority of signing certificates.
A name that some TLS library would match against hosts must not be had by a workload.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.certificate import check_validity, extension, read_certificate
from certs.errors import InvalidSpiffeId, InvalidSvid
from certs.spiffe import CONTROLLER_DNS_NAME, SpiffeId

#: What a certificate for TLS must be good for; it may be good for more.
TLS_USAGES = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH})

#: What the policy signer's certificate is good for, and nothing else, so that no TLS library takes it.
SIGNER_USAGES = frozenset({ExtendedKeyUsageOID.CODE_SIGNING})


def check_leaf(leaf_der: bytes, trust_domain: str, now: float) -> SpiffeId:
    """Apply every rule for the certificate of a TLS peer of ours.

    :param leaf_der: the peer's certificate in DER
    :param trust_domain: ours; identities of any other are refused
    :param now: seconds since the epoch
    :returns: the identity it states
    :raises InvalidSvid: when a rule is broken
    :raises InvalidCertificate: when it cannot be read, or is outside the profile
    """
    leaf = read_certificate(leaf_der, "leaf")
    identity = _check_common(leaf, trust_domain, now)
    check_usages(leaf)
    if identity == SpiffeId.policy_signer(trust_domain):
        raise InvalidSvid("leaf: the policy signer's identity is not one for connections")
    _check_other_names(leaf, identity)
    return identity


def check_signer_leaf(leaf_der: bytes, trust_domain: str, now: float) -> SpiffeId:
    """Apply every rule for the certificate that signs policy snapshots. It is no good for TLS.

    :raises InvalidSvid: when a rule is broken, or it is not the policy signer's
    :raises InvalidCertificate: when it cannot be read, or is outside the profile
    """
    leaf = read_certificate(leaf_der, "signer")
    identity = _check_common(leaf, trust_domain, now)
    expected = SpiffeId.policy_signer(trust_domain)
    if identity != expected:
        raise InvalidSvid(f"signer: {identity} may not sign policy, only {expected} may")
    usages = extension(leaf, x509.ExtendedKeyUsage)
    if usages is None or set(usages.value) != SIGNER_USAGES:
        raise InvalidSvid("signer: its extended key usage is not that of a signer of policy alone")
    _check_other_names(leaf, identity)
    return identity


def _check_common(leaf: x509.Certificate, trust_domain: str, now: float) -> SpiffeId:
    check_not_authority(leaf)
    check_key_usage(leaf)
    if reason := check_validity(leaf, now, "leaf"):
        raise InvalidSvid(reason)
    return spiffe_id_of(leaf, trust_domain)


def check_not_authority(leaf: x509.Certificate) -> None:
    """X509-SVID section 4.1: a leaf is not a signing certificate.

    :raises InvalidSvid: when it is
    """
    constraints = extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.value.ca:  # CA is false when it is absent (RFC 5280 section 4.2.1.9)
        raise InvalidSvid("leaf: it has basic constraint CA; a signing certificate identifies nobody")


def check_key_usage(leaf: x509.Certificate) -> None:
    """X509-SVID section 4.3.

    :raises InvalidSvid: when the extension is missing, not critical, or permits the wrong things
    """
    usage = extension(leaf, x509.KeyUsage)
    if usage is None:
        raise InvalidSvid("leaf: it has no key usage")
    if not usage.critical:
        raise InvalidSvid("leaf: its key usage is not critical")
    if not usage.value.digital_signature:
        raise InvalidSvid("leaf: its key usage lacks digitalSignature")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise InvalidSvid("leaf: its key usage has keyCertSign or cRLSign")


def check_usages(leaf: x509.Certificate) -> None:
    """X509-SVID section 4.4, where we do not let the extension be absent.

    :raises InvalidSvid: unless servers and clients are both permitted
    """
    usages = extension(leaf, x509.ExtendedKeyUsage)
    if usages is None:
        raise InvalidSvid("leaf: it has no extended key usage; serverAuth and clientAuth are required")
    if not set(usages.value) >= TLS_USAGES:
        raise InvalidSvid("leaf: its extended key usage lacks serverAuth or clientAuth")
    if ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages.value:
        raise InvalidSvid("leaf: its extended key usage permits everything")


def spiffe_id_of(leaf: x509.Certificate, trust_domain: str) -> SpiffeId:
    """The one SPIFFE ID of a leaf (X509-SVID sections 2, 3.1 and 5.2).

    :raises InvalidSvid: when there is not exactly one URI, or it is no ID, or of another trust domain, or has no path
    """
    alternative = extension(leaf, x509.SubjectAlternativeName)
    if alternative is None:
        raise InvalidSvid("leaf: it has no subject alternative name, so it states no identity")
    uris = alternative.value.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise InvalidSvid(f"leaf: it has {len(uris)} URI names; a SPIFFE ID is exactly one")
    try:
        identity = SpiffeId.parse(uris[0])
    except InvalidSpiffeId as error:
        raise InvalidSvid(f"leaf: {error}") from None
    if not identity.path:
        raise InvalidSvid(f"leaf: {identity} names a trust domain, not a workload")
    if identity.trust_domain != trust_domain:
        raise InvalidSvid(f"leaf: {identity} is of another trust domain than {trust_domain}")
    return identity


def instance_of(leaf_der: bytes) -> str:
    """The replica that a certificate of ours was signed for, empty when it names none. Verify the certificate first.

    :raises InvalidCertificate: when it cannot be read
    """
    return _named(leaf_der, NameOID.DN_QUALIFIER)


def uid_of(leaf_der: bytes) -> str:
    """What tells that replica from a later one of its name, empty when nothing does. Verify the certificate first.

    :raises InvalidCertificate: when it cannot be read
    """
    return _named(leaf_der, NameOID.USER_ID)


def _named(leaf_der: bytes, kind: x509.ObjectIdentifier) -> str:
    found = read_certificate(leaf_der, "leaf").subject.get_attributes_for_oid(kind)
    return str(found[0].value) if len(found) == 1 else ""


def _check_other_names(leaf: x509.Certificate, identity: SpiffeId) -> None:
    alternative = extension(leaf, x509.SubjectAlternativeName)
    others = (
        [name for name in alternative.value if not isinstance(name, x509.UniformResourceIdentifier)]
        if alternative
        else []
    )
    if not others:
        return
    if identity != SpiffeId.controller(identity.trust_domain):
        raise InvalidSvid(f"leaf: {identity} has names besides its SPIFFE ID; only the controller may have one")
    if others != [x509.DNSName(CONTROLLER_DNS_NAME)]:
        raise InvalidSvid(f"leaf: the controller's only other name is {CONTROLLER_DNS_NAME}")
