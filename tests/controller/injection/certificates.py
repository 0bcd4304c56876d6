"""Serving certificates for tests, with any validity."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certs.keys import key_to_pem, new_key

HOST = "hedgerow-injector.hedgerow-system.svc"


def self_signed(host: str = HOST, *, since: float = -60, until: float = 3600) -> tuple[bytes, bytes]:
    """A certificate and its key, PEM.

    :param since: seconds from now; ``until`` likewise
    """
    key, name, now = new_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])]), time.time()
    alternatives: list[x509.GeneralName] = [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(dt.datetime.fromtimestamp(now + since, dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(now + until, dt.UTC))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM), key_to_pem(key)


def write(folder: Path, certificate: bytes, key: bytes) -> None:
    """As the kubelet writes a Secret: both change places at once, by a link."""
    fresh = folder / f"data-{time.monotonic_ns()}"
    fresh.mkdir()
    (fresh / "tls.crt").write_bytes(certificate)
    (fresh / "tls.key").write_bytes(key)
    link = folder / "new"
    link.symlink_to(fresh)
    os.replace(link, folder / "current")
