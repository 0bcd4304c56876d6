"""Signatures over payloads that outlive a connection: policy snapshots on their way to disk.

ECDSA on P-256 with SHA-256 (FIPS 186-5) over a fixed label and the payload's bytes as they are. The label keeps a
signature made here from being one of anything else. Who may sign is not the payload's to say: it is the policy
signer of the bundle's trust domain.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature as BadSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from certs.bundle import TrustBundle
from certs.certificate import read_certificate
from certs.errors import InvalidSignature
from certs.svid import check_signer_leaf
from certs.verify import verify_chain

_LABEL = b"hedgerow signed payload 1\x00"


def sign_payload(key: ec.EllipticCurvePrivateKey, payload: bytes) -> bytes:
    """Sign ``payload``; returns the signature in DER (RFC 3279 section 2.2.3)."""
    return key.sign(_LABEL + payload, ec.ECDSA(hashes.SHA256()))


def verify_payload(
    payload: bytes, signature: bytes, signer_chain_der: Sequence[bytes], bundle: TrustBundle, now: float
) -> None:
    """Verify that the policy signer of the bundle's trust domain signed ``payload``. Do it before parsing the payload.

    :param signer_chain_der: the signer's certificate in DER, then its intermediates
    :param now: seconds since the epoch; an expired signer is refused
    :raises CertError: when it did not, or its certificate is not to be trusted now
    """
    if not signer_chain_der:
        raise InvalidSignature("signature: it comes without its signer's certificate")
    leaf_der, *intermediates = signer_chain_der
    verify_chain(leaf_der, intermediates, bundle, now)
    check_signer_leaf(leaf_der, bundle.trust_domain, now)
    key = read_certificate(leaf_der, "signer").public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidSignature("signature: its signer's key is not ECDSA P-256")
    try:
        key.verify(signature, _LABEL + payload, ec.ECDSA(hashes.SHA256()))
    except BadSignature:
        raise InvalidSignature("signature: it is not the policy signer's over this payload") from None
