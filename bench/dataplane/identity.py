"""Certificates for the peers, signed by the authority that our own sidecars are under; and those of a stranger.

All pairs prove themselves with certificates of the same kind: a P-256 SVID of the same trust domain, under the same
issuing certificate and root.
"""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from certs.bundle import TrustBundle
from certs.ca import CertificateAuthority
from certs.certificate import pem_text
from certs.contexts import client_context, server_context
from certs.keys import key_from_pem, key_to_pem, make_csr, new_key
from certs.spiffe import SpiffeId

TRUST_DOMAIN = "hedgerow.local"
NAMESPACE = "bench"
#: One suite for all pairs. BoringSSL, which Envoy is built with, prefers it and has no setting for TLS 1.3 suites.
SUITE = "TLS_AES_128_GCM_SHA256"
SUITE_NUMBER = 0x1301
#: As ours and OpenSSL prefer it; RFC 8446 section 4.2.7.
GROUP = "X25519"
GROUP_NUMBER = 0x001D
_LIFETIME = 86400.0


def spiffe_id(workload: str) -> str:
    return str(SpiffeId.for_workload(TRUST_DOMAIN, NAMESPACE, "default", workload))


@dataclass(frozen=True, slots=True)
class Svid:
    """A certificate with its key, as files and as values.

    :param chain: PEM, the leaf first; ``key`` PEM; ``both`` in one file, as HAProxy and pyOpenSSL want it
    """

    identity: str
    chain_der: tuple[bytes, ...]
    chain: Path
    key: Path
    both: Path

    def client(self, trusted: TrustBundle, alpn: list[str]) -> ssl.SSLContext:
        """A context that shows it."""
        return client_context(self.chain_der, key_from_pem(self.key.read_bytes()), trusted, alpn)

    def server(self, trusted: TrustBundle, alpn: list[str]) -> ssl.SSLContext:
        return server_context(self.chain_der, key_from_pem(self.key.read_bytes()), trusted, alpn)


def issue(authority: CertificateAuthority, workload: str, folder: Path) -> Svid:
    """Sign and write a certificate for ``bench/WORKLOAD``; its key can be read by root alone."""
    identity = SpiffeId.for_workload(TRUST_DOMAIN, NAMESPACE, "default", workload)
    key = new_key()
    signed = authority.sign_workload(make_csr(key), identity, time.time(), _LIFETIME, f"{workload}-peer")
    folder.mkdir(parents=True, exist_ok=True)
    svid = Svid(str(identity), signed.chain_der, *(folder / f"{workload}.{kind}" for kind in ("crt", "key", "pem")))
    chain = pem_text(signed.chain_der).encode()
    svid.chain.write_bytes(chain)
    for path, content in ((svid.key, key_to_pem(key)), (svid.both, chain + key_to_pem(key))):
        path.touch(mode=0o600)
        path.write_bytes(content)
    return svid


@dataclass(frozen=True, slots=True)
class Identities:
    """Who is who in a run.

    :param roots: the trust bundle as a file
    :param stranger: a certificate of the client's name under an authority that nobody trusts
    """

    bundle: TrustBundle
    roots: Path
    client: Svid
    server: Svid
    probe: Svid
    stranger: Svid

    @classmethod
    def make(cls, authority: CertificateAuthority, folder: Path) -> Identities:
        foreign = CertificateAuthority.create(TRUST_DOMAIN, time.time())
        folder.mkdir(mode=0o700)
        roots = folder / "roots.pem"
        roots.write_text(authority.bundle().to_pem())
        return cls(
            authority.bundle(),
            roots,
            *(issue(authority, workload, folder) for workload in ("client", "server", "probe")),
            issue(foreign, "client", folder / "foreign"),
        )


def openssl_config(folder: Path) -> Path:
    """Pins the suite for programs on OpenSSL that have no setting for it, which is what Python's ``ssl`` lacks."""
    path = folder / "openssl.cnf"
    path.write_text(
        "openssl_conf = bench\n[bench]\nssl_conf = ssl\n[ssl]\nsystem_default = pinned\n"
        f"[pinned]\nCiphersuites = {SUITE}\nGroups = {GROUP}\n"
    )
    path.chmod(0o644)
    return path
