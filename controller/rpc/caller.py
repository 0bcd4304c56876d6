"""Who is calling: from what gRPC's TLS handshake left behind to one instance of the inventory, or to a refusal.

gRPC has checked the client's chain against our roots before a call arrives. On top of that every call is put through
our own rules (:func:`certs.verify.verify_peer`), and then:

1. The SPIFFE ID must be exactly the one that the inventory gives the workload now.
2. The instance is the one that the certificate was signed for (:func:`certs.svid.instance_of`), which must still be an
   instance of that workload, and the same one: not a later one of its name. The address that a call comes from proves
   nothing and is not asked for.
3. What is unclear is refused.

A stream ends when its certificate does, or when the inventory no longer knows its instance.

To verify a chain costs more than all else of a short call, so what was found is remembered (:class:`Proofs`) while the
same roots are in force and no certificate of the chain has ended. What the inventory says is asked each time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

from certs.bundle import TrustBundle
from certs.certificate import read_certificate, read_pem_certificates
from certs.errors import CertError
from certs.spiffe import SpiffeId
from certs.svid import instance_of, uid_of
from certs.verify import verify_peer
from controller.view import View
from graph.errors import InvalidValue
from graph.model import Instance, WorkloadRef

type AuthContext = Mapping[str, Sequence[bytes]]


class Refused(Exception):
    """A call is refused. :param status: for the caller; the message is, too."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Caller:
    """A sidecar that proved who it is.

    :param not_after: until when it proved it, seconds since the epoch
    :param uid: of the instance, as its certificate has it; empty where it has none
    """

    instance: Instance
    identity: SpiffeId
    not_after: float
    uid: str = ""

    @property
    def key(self) -> str:
        """As in :attr:`controller.inventory.Inventory.instances`."""
        return f"{self.instance.workload.namespace}/{self.instance.name}"


@dataclass(frozen=True, slots=True)
class Proved:
    """What a chain proves. Times are seconds since the epoch.

    :param name: of the instance, and its ``uid``; may be empty
    :param not_after: the end of the caller's own certificate
    :param since: when it was verified; ``until``: when the first certificate of the chain ends
    """

    identity: SpiffeId
    name: str
    not_after: float
    since: float
    until: float
    uid: str = ""


def prove(auth: AuthContext, bundle: TrustBundle, now: float) -> Proved:
    """What the chain of a call's authentication context proves.

    :raises Refused: when that is nothing, with the reason
    """
    leaf, others = _certificates(auth)
    try:
        identity = verify_peer(leaf, others, bundle, now)
        name, uid = instance_of(leaf), uid_of(leaf)
        ends = [read_certificate(each).not_valid_after_utc.timestamp() for each in (leaf, *others)]
    except CertError as error:
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, f"the certificate is refused: {error}") from None
    return Proved(identity, name, ends[0], now, min(ends), uid)


class Proofs:
    """Chains that were verified.

    :param most: chains remembered; beyond it those not shown for longest are forgotten
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._bundle: TrustBundle | None = None
        self._found: OrderedDict[bytes, Proved] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def of(self, auth: AuthContext, bundle: TrustBundle, now: float) -> Proved:
        """As :func:`prove`; a refusal is not remembered."""
        if bundle != self._bundle:
            self._found.clear()
            self._bundle = bundle
        shown = hashlib.sha256()
        for part in ("x509_pem_cert", "x509_pem_cert_chain"):
            values = auth.get(part, ())
            shown.update(len(values).to_bytes(4))
            for value in values:
                shown.update(len(value).to_bytes(8))
                shown.update(value)
        key = shown.digest()
        found = self._found.get(key)
        if found is None or not found.since <= now < found.until:
            self._found.pop(key, None)
            found = prove(auth, bundle, now)
        self._found[key] = found
        self._found.move_to_end(key)
        if len(self._found) > self._most:
            self._found.popitem(last=False)
        return found


def identify(auth: AuthContext, view: View, bundle: TrustBundle, now: float, proofs: Proofs) -> Caller:
    """The caller that a call's authentication context proves.

    :param auth: as ``ServicerContext.auth_context()`` gives it
    :param now: seconds since the epoch
    :param proofs: of calls before
    :raises Refused: when it proves none, with the reason
    """
    if auth.get("ssl_tls_version", [b"TLSv1.3"])[0] != b"TLSv1.3":
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, "TLS 1.3 is required; update the client")
    proved = proofs.of(auth, bundle, now)
    instance = instance_in(view, proved.identity, proved.name, proved.uid)
    return Caller(instance, proved.identity, proved.not_after, proved.uid)


def instance_in(view: View, identity: SpiffeId, name: str, uid: str) -> Instance:
    """The instance of the inventory that ``identity``, ``name`` and ``uid`` are, now.

    :raises Refused: when there is none
    """
    denied = grpc.StatusCode.PERMISSION_DENIED
    if not identity.workload:
        raise Refused(denied, f"{identity} is no workload's identity; sidecars call as spiffe://…/ns/…/sa/…/wl/…")
    if not name:
        raise Refused(denied, "the certificate names no instance; join again with a join token")
    try:
        ref = WorkloadRef.parse(f"{identity.namespace}/{identity.workload}")
    except InvalidValue as error:
        raise Refused(denied, str(error)) from None
    instance = view.inventory.instances.get(f"{ref.namespace}/{name}")
    mine = instance is not None and instance.workload == ref
    known = view.inventory.identity_of_instance(instance) if instance and mine else view.inventory.identity_of(ref)
    if known != str(identity):
        raise Refused(denied, f"{identity} is not in the inventory; was the workload renamed or its account changed?")
    if instance is None or not mine:
        raise Refused(denied, f"the inventory has no instance {name!r:.80} of {ref}; was it removed?")
    if uid and instance.uid and uid != instance.uid:
        raise Refused(denied, f"the certificate is of an earlier {name!r:.80} of {ref}; this one has its own")
    return instance


def _certificates(auth: AuthContext) -> tuple[bytes, tuple[bytes, ...]]:
    """The caller's own certificate and the others that it sent, in DER."""
    own = auth.get("x509_pem_cert")
    if not own:
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, "no client certificate; use mutual TLS")
    try:
        leaf = read_pem_certificates(own[0], "certificate")
        sent = auth.get("x509_pem_cert_chain")
        chain = read_pem_certificates(sent[0], "certificate chain") if sent and sent[0].strip() else ()
    except CertError as error:
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, f"the certificate is refused: {error}") from None
    # on the server's side OpenSSL leaves the leaf out of the chain, elsewhere it does not
    return leaf[0], tuple(der for der in chain if der != leaf[0])
