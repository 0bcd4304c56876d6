"""The certificate in force, and the one place where a new one is believed.

The governing rules:

1. Bytes become an :class:`Svid` only through :func:`check_svid`: the chain leads to the trust bundle, the leaf keeps
   every SVID rule, names a workload of our trust domain, and belongs to our key. Wherever they came from.
2. Contexts are never changed. A renewal makes new ones and tells subscribers.
3. A trust bundle is replaced only by one of the same trust domain that is not older and still holds one of our roots:
   roots change by overlap, never in one step.

How certificates are asked for is in :mod:`sidecar.certificate_agent`.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from certs.bundle import TrustBundle
from certs.certificate import pem_text, read_certificate
from certs.contexts import Contexts, verify_connection
from certs.errors import CertError, InvalidBundle, KeyMismatch, UntrustedChain
from certs.keys import public_bytes
from certs.spiffe import SpiffeId
from certs.svid import instance_of
from certs.verify import verify_peer
from graph.model import WorkloadRef

log = logging.getLogger(__name__)

#: Of the tunnels between sidecars (RFC 7301).
ALPN = ("hedgerow/1",)

MAX_CHAIN = 5


@dataclass(frozen=True, slots=True)
class Svid:
    """A certificate that was checked, with its key and the bundle that it was checked against.

    :param chain_der: leaf first, without the root
    :param instance: the replica that the leaf names; empty when it names none
    :param not_before: seconds since the epoch; also ``not_after``
    """

    chain_der: tuple[bytes, ...]
    key: ec.EllipticCurvePrivateKey
    bundle: TrustBundle
    identity: SpiffeId
    instance: str
    not_before: float
    not_after: float

    def __repr__(self) -> str:  # never the key
        return f"Svid({self.identity}, not_after={self.not_after:.0f})"

    @property
    def workload(self) -> WorkloadRef:
        return WorkloadRef(self.identity.namespace, self.identity.workload)

    @property
    def chain_pem(self) -> bytes:
        return pem_text(self.chain_der).encode()


def check_svid(
    chain_der: tuple[bytes, ...], key: ec.EllipticCurvePrivateKey, bundle: TrustBundle, trust_domain: str, now: float
) -> Svid:
    """Verify a chain that is meant to be ours.

    :param now: seconds since the epoch
    :raises CertError: when any part of rule 1 is broken
    """
    if bundle.trust_domain != trust_domain:
        raise InvalidBundle(f"trust bundle: of trust domain {bundle.trust_domain!r}, ours is {trust_domain!r}")
    if not 1 <= len(chain_der) <= MAX_CHAIN:
        raise UntrustedChain(f"certificate chain: {len(chain_der)} certificates, 1 to {MAX_CHAIN} are permitted")
    identity = verify_peer(chain_der[0], chain_der[1:], bundle, now)
    if identity.trust_domain != trust_domain or not identity.workload:
        raise UntrustedChain(f"certificate: {identity} names no workload of trust domain {trust_domain!r}")
    leaf = read_certificate(chain_der[0], "leaf")
    public_key = leaf.public_key()
    if not isinstance(public_key, ec.EllipticCurvePublicKey) or public_bytes(public_key) != public_bytes(
        key.public_key()
    ):
        raise KeyMismatch("certificate: it was made for another key than ours")
    return Svid(
        chain_der=chain_der,
        key=key,
        bundle=bundle,
        identity=identity,
        instance=instance_of(chain_der[0]),
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def next_bundle(held: TrustBundle, offered: TrustBundle) -> TrustBundle:
    """Which bundle to use after the controller, whom ``held`` authenticated, sent ``offered``.

    :raises InvalidBundle: when it is of another trust domain, or shares no root with the one held
    """
    if offered.trust_domain != held.trust_domain:
        raise InvalidBundle(
            f"trust bundle: the controller sent one of trust domain {offered.trust_domain!r}, "
            f"ours is {held.trust_domain!r}; check that controller and issuer are of one mesh"
        )
    if not set(offered.roots_der) & set(held.roots_der):
        raise InvalidBundle("trust bundle: the controller sent one without any root that we trust; roots must overlap")
    return offered if offered.sequence >= held.sequence else held


class CredentialStore:
    """Implements :class:`sidecar.dataplane.contracts.Credentials` over the newest :class:`Svid`.

    :param clock: seconds since the epoch
    :raises CertError: when no TLS context can be made of ``svid``
    """

    def __init__(self, svid: Svid, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._subscribers: list[Callable[[], None]] = []
        self._svid = svid
        self._contexts, self._client, self._server = _contexts(svid)
        self.renewals = 0

    @property
    def svid(self) -> Svid:
        return self._svid

    @property
    def client_context(self) -> ssl.SSLContext:
        return self._client

    @property
    def server_context(self) -> ssl.SSLContext:
        return self._server

    def mesh_context(self, *, server_side: bool, alpn: Sequence[str]) -> ssl.SSLContext:
        return self._contexts.get(server_side=server_side, alpn=alpn)

    @property
    def identity(self) -> SpiffeId:
        return self._svid.identity

    @property
    def instance(self) -> str:
        return self._svid.instance

    @property
    def not_after(self) -> float:
        return self._svid.not_after

    def verify_connection(self, session: ssl.SSLObject) -> SpiffeId:
        return verify_connection(session, self._svid.bundle, self._clock())

    def verify_certificates(self, certificates: Sequence[bytes], at: float) -> SpiffeId:
        leaf, *intermediates = certificates
        return verify_peer(leaf, intermediates, self._svid.bundle, at)

    def subscribe(self, renewed: Callable[[], None]) -> None:
        self._subscribers.append(renewed)

    def replace(self, svid: Svid) -> None:
        """Put a newer certificate in force and tell subscribers.

        :raises CertError: when it is of another identity, or no context can be made of it; the old one stays
        """
        if svid.identity != self._svid.identity:
            raise CertError(f"certificate: it is for {svid.identity} and we are {self._svid.identity}")
        contexts = _contexts(svid)
        self._svid = svid
        self._contexts, self._client, self._server = contexts
        self.renewals += 1
        for renewed in tuple(self._subscribers):
            try:
                renewed()
            except Exception:  # one subscriber's fault must not keep the others on an old certificate
                log.exception("a subscriber failed on a renewal")


def _contexts(svid: Svid) -> tuple[Contexts, ssl.SSLContext, ssl.SSLContext]:
    contexts = Contexts(svid.chain_der, svid.key, svid.bundle)
    return contexts, contexts.get(server_side=False, alpn=ALPN), contexts.get(server_side=True, alpn=ALPN)
