"""Certificates for a throw-away cluster: authorities, servers, clients, the key that signs ServiceAccount tokens.

Keys are P-256 (the token key RSA, which every client library verifies) and live as long as the session's directory.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.template import begun, key_usage

#: Seconds that a certificate is good for, and before now, for clocks that differ.
_LIFETIME, _EARLIER = 2 * 86_400.0, 300.0


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as files and as PEM."""

    certificate: Path
    key: Path


class Authority:
    """Signs the certificates of one cluster.

    :param directory: where everything is written; made when it is missing
    """

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _name(name)
        built = (
            _begun(self._subject, self._subject, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(signs=True), critical=True)
        )
        self._certificate = built.sign(self._key, hashes.SHA256())
        self.pair = _write(directory, name, self._certificate, self._key)

    @property
    def certificate(self) -> Path:
        return self.pair.certificate

    def serving(self, name: str, hosts: Sequence[str], *, common_name: str = "", organization: str = "") -> Pair:
        """A certificate for a server, which may also use it as a client.

        :param hosts: names and addresses that clients call it by
        """
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._sign(name, _name(common_name or name, organization), usages, names)

    def client(self, name: str, *, common_name: str, organization: str = "") -> Pair:
        """A client's certificate: Kubernetes reads the user from the common name, the group from the organization."""
        return self._sign(name, _name(common_name, organization), [ExtendedKeyUsageOID.CLIENT_AUTH], [])

    def _sign(
        self, file: str, subject: x509.Name, usages: list[x509.ObjectIdentifier], names: list[x509.GeneralName]
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        built = (
            _begun(subject, self._subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names:
            built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return _write(self._directory, file, built.sign(self._key, hashes.SHA256()), key)


def token_key(directory: Path) -> tuple[Path, Path]:
    """The key that signs ServiceAccount tokens: (private, public)."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = directory / "service-accounts.pub"
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return _write_key(directory / "service-accounts.key", key), public


def kubeconfig(path: Path, *, url: str, authority: Path, pair: Pair | None = None, token: str = "") -> Path:
    """Write a kubeconfig that stands alone: certificates and keys are inside."""
    user: dict[str, str] = {"token": token} if token else {}
    if pair is not None:
        user = {"client-certificate-data": _base64(pair.certificate), "client-key-data": _base64(pair.key)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "e2e", "cluster": {"server": url, "certificate-authority-data": _base64(authority)}}],
        "users": [{"name": "e2e", "user": user}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
        "current-context": "e2e",
    }
    _private(path, json.dumps(config, indent=1).encode())  # JSON is YAML
    return path


def _name(common_name: str, organization: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = time.time()
    made = begun(key, subject, issuer, now - _EARLIER, now + _LIFETIME)
    return made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _write(directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    path = directory / f"{name}.crt"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Pair(path, _write_key(directory / f"{name}.key", key))


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> Path:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _private(path, pem)
    return path


def _private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
