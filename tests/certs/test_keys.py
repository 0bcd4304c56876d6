"""Keys and signing requests."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from certs.errors import InvalidKey
from certs.issue import read_csr
from certs.keys import key_from_pem, key_to_pem, make_csr, new_key, public_bytes


def test_a_key_reads_back_as_it_was_written() -> None:
    key = new_key()
    assert public_bytes(key_from_pem(key_to_pem(key)).public_key()) == public_bytes(key.public_key())
    assert public_bytes(key.public_key()) != public_bytes(new_key().public_key())


def test_a_request_proves_its_key_and_asks_for_nothing() -> None:
    key = new_key()
    request = x509.load_der_x509_csr(make_csr(key))
    assert request.is_signature_valid
    assert not request.subject.rdns
    assert not list(request.extensions)
    assert public_bytes(read_csr(make_csr(key))) == public_bytes(key.public_key())


PKCS8 = (Encoding.PEM, PrivateFormat.PKCS8)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"secret",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        key_to_pem(new_key())[:-40],
        new_key().private_bytes(*PKCS8, BestAvailableEncryption(b"secret")),
        ec.generate_private_key(ec.SECP384R1()).private_bytes(*PKCS8, NoEncryption()),
        ed25519.Ed25519PrivateKey.generate().private_bytes(*PKCS8, NoEncryption()),
    ],
)
def test_other_keys_are_refused_and_never_quoted(pem: bytes) -> None:
    with pytest.raises(InvalidKey) as refused:
        key_from_pem(pem)
    for line in pem.decode().splitlines():
        assert not line or line.startswith("-----") or line not in str(refused.value)
