"""TLS contexts for both ends of a connection between two identities.

What they promise: TLS 1.3 alone; the peer must send a certificate, and OpenSSL must find a path from it to the trust
bundle (strict RFC 5280 checks on); no session is ever resumed, so every connection is verified; private keys never
touch a disk. What they do not do: say who the peer is. Host names are not checked, the identity is the SPIFFE ID, and
there is none before :func:`verify_connection`, or at the least :func:`certs.svid.check_leaf` on the peer's leaf.
Never send or take an application byte before that.

A context is not changed once it is made: a renewal makes a new one.
"""

from __future__ import annotations

import _ssl
import os
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certs.bundle import TrustBundle
from certs.certificate import pem_text, read_certificate
from certs.errors import CertError, InvalidCertificate, KeyMismatch, UntrustedChain
from certs.keys import key_to_pem, public_bytes
from certs.spiffe import SpiffeId
from certs.verify import verify_peer

# 112 bits of strength whatever the distribution's OpenSSL defaults to; the cipher names do not concern TLS 1.3
_CIPHERS = "DEFAULT:@SECLEVEL=2"


def client_context(
    chain_der: Sequence[bytes], key: ec.EllipticCurvePrivateKey, bundle: TrustBundle, alpn: Sequence[str] = ()
) -> ssl.SSLContext:
    """A context for connections that we open.

    :param chain_der: our certificate in DER, then its intermediates
    :param alpn: protocols to offer, the preferred one first
    :raises KeyMismatch: when ``key`` is not the certificate's
    :raises InvalidCertificate: when our chain cannot be read
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, chain_der, key, bundle, alpn)


def server_context(
    chain_der: Sequence[bytes], key: ec.EllipticCurvePrivateKey, bundle: TrustBundle, alpn: Sequence[str] = ()
) -> ssl.SSLContext:
    """A context for connections that we accept. A client without ALPN, or without one of ours, is accepted without any.

    :param chain_der: our certificate in DER, then its intermediates
    :param alpn: protocols to select, the preferred one first
    :raises KeyMismatch: when ``key`` is not the certificate's
    :raises InvalidCertificate: when our chain cannot be read
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, chain_der, key, bundle, alpn)
    context.num_tickets = 0  # a resumed session would not be verified again
    return context


class Contexts:
    """The contexts of one certificate by the protocols that they offer or select, each made when it is first asked for.

    :param chain_der: our certificate in DER, then its intermediates
    """

    __slots__ = ("_bundle", "_chain_der", "_key", "_made")

    def __init__(self, chain_der: Sequence[bytes], key: ec.EllipticCurvePrivateKey, bundle: TrustBundle) -> None:
        self._chain_der = chain_der
        self._key = key
        self._bundle = bundle
        self._made: dict[tuple[bool, tuple[str, ...]], ssl.SSLContext] = {}

    def get(self, *, server_side: bool, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """The context for ``alpn``, which must come from a short list of ours: every one asked for is kept.

        :raises CertError: as :func:`client_context` and :func:`server_context`
        """
        key = server_side, tuple(alpn)
        context = self._made.get(key)
        if context is None:
            make = server_context if server_side else client_context
            context = self._made[key] = make(self._chain_der, self._key, self._bundle, alpn)
        return context


#: Forward secrecy and authenticated encryption alone, also in TLS 1.2.
_WEB_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2"


def named_client_context(roots: Path | None, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """A context for calls of hosts outside the mesh, which prove their names and are shown nothing.

    :param roots: PEM file with what they have to lead to; None: what the system trusts
    :param alpn: protocols to offer, the preferred one first
    :raises OSError: when the roots can not be read, or are none
    """
    context = _named_context(ssl.PROTOCOL_TLS_CLIENT, alpn)
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    if roots is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        context.load_verify_locations(cafile=str(roots))
    return context


def named_server_context(
    chain_der: Sequence[bytes], key: ec.EllipticCurvePrivateKey, alpn: Sequence[str] = ()
) -> ssl.SSLContext:
    """A context for clients that are not in the mesh and know names: they are shown a chain and asked for nothing.

    :param chain_der: the certificate in DER, then its intermediates
    :param alpn: protocols to select, the preferred one first
    :raises CertError: as :func:`server_context`
    """
    context = _named_context(ssl.PROTOCOL_TLS_SERVER, alpn)
    context.num_tickets = 0
    _load_own_chain(context, chain_der, key)
    return context


def _named_context(protocol: int, alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.post_handshake_auth = False
    context.set_ciphers(_WEB_CIPHERS)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def verify_connection(connection: ssl.SSLSocket | ssl.SSLObject, bundle: TrustBundle, now: float) -> SpiffeId:
    """Who is at the other end of a finished handshake, by our own reading of all certificates that it sent.

    OpenSSL accepted the chain before; this is the second, stricter opinion, and the only one on the identity.

    :param now: seconds since the epoch
    :raises CertError: when the peer proves no identity of the bundle's trust domain; close the connection
    """
    leaf, *intermediates = peer_certificates(connection)
    return verify_peer(leaf, intermediates, bundle, now)


def peer_certificates(connection: ssl.SSLSocket | ssl.SSLObject) -> tuple[bytes, ...]:
    """The certificates that the peer sent, in DER, its own first.

    :raises UntrustedChain: when it sent none
    """
    end: Any = connection
    if sys.version_info >= (3, 13):
        sent = end.get_unverified_chain()
    else:  # there already, but below the surface
        sent = [one.public_bytes(_ssl.ENCODING_DER) for one in end._sslobj.get_unverified_chain() or ()]
    if not sent:
        raise UntrustedChain("peer: it sent no certificate")
    return tuple(sent)


def _context(
    protocol: int, chain_der: Sequence[bytes], key: ec.EllipticCurvePrivateKey, bundle: TrustBundle, alpn: Sequence[str]
) -> ssl.SSLContext:
    # not create_default_context: that one trusts the system's roots and honours SSLKEYLOGFILE
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_TRUSTED_FIRST
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.post_handshake_auth = False
    context.set_ciphers(_CIPHERS)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    context.load_verify_locations(cadata=b"".join(bundle.roots_der))
    _load_own_chain(context, chain_der, key)
    return context


def _load_own_chain(context: ssl.SSLContext, chain_der: Sequence[bytes], key: ec.EllipticCurvePrivateKey) -> None:
    if not chain_der:
        raise InvalidCertificate("our certificate: the chain is empty")
    leaf = read_certificate(chain_der[0], "our certificate")
    public = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if public != public_bytes(key.public_key()):
        raise KeyMismatch("our certificate: the private key is not its own; ask for a new certificate")
    pem = pem_text(chain_der).encode("ascii") + key_to_pem(key)
    # the ssl module takes a chain by path only; this path leads to memory that nobody else can open and that ends here
    descriptor = os.memfd_create("hedgerow-chain", os.MFD_CLOEXEC)
    try:
        remaining = memoryview(pem)
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except ssl.SSLError as error:
        raise CertError(f"our certificate: OpenSSL does not take it ({error.reason})") from None
    finally:
        os.close(descriptor)
