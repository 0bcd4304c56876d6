"""Signs workload certificates: the first one against a join token or a token of Kubernetes, every later one against the
one before.

Rules:

1. A join token is spent only for a request that can be signed: the request is checked first.
2. Who asks with a certificate gets one for the same workload and the same instance, and nothing else.
3. A certificate names the instance that it was signed for, so that later calls are bound to it by what the caller
   proves and not by the address it seems to come from; on Kubernetes by the pod's uid too, which no later pod of its
   name has.
4. Every signature is an audit entry, written before the certificate is handed out.
5. Wrong tokens cost their sender's address: :class:`Throttle`. Right ones of Kubernetes may be shown again, a few
   times: :class:`controller.signings.Signings`. How often the API server is asked for one address is bounded whatever
   it answers, and what others of the address were refused while a token waited for its turn counts.
6. No token is in a message, a log or the audit log; there it is the first half of its SHA-256.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from certs.bundle import TrustBundle
from certs.ca import SignedChain
from certs.issue import read_csr
from certs.keys import public_bytes
from certs.spiffe import SpiffeId
from controller.errors import AttestationRefused, ControllerError, JoinTokenError
from controller.keyring import Keyring
from controller.signings import RENEWALS, Complaints, Renewals, Signings
from controller.view import View
from graph.model import Instance

log = logging.getLogger("hedgerow.issuer")


#: Tokens of one address that the API server is asked about in a row, and seconds after which there is one more. A node
#: may stand before many pods with one address, and each of them tries again until the inventory knows it.
LOOKS = 1000
LOOK_INTERVAL = 0.05


class Throttled(ControllerError):
    """Too many tokens came from this address; later ones are not even looked at for a while."""

    code = "throttled"


class Attestations(Protocol):
    """What the issuer asks of the engine."""

    @property
    def view(self) -> View: ...

    async def redeem_join_token(self, token: str) -> Instance: ...

    async def record(self, actor: str, action: str, subject: str, detail: Mapping[str, object]) -> None: ...


@dataclass(frozen=True, slots=True)
class Attested:
    """A sidecar that proved its pod by a token of Kubernetes.

    :param uid: of the pod
    :param evidence: what the audit log is to say of it; JSON types
    """

    instance: Instance
    uid: str
    evidence: Mapping[str, object]


class TokenAttestor(Protocol):
    """Finds out which pod shows a token of Kubernetes; see :mod:`controller.kube.attestation`."""

    async def attest(self, token: str, instance: str, address: str, admit: Callable[[], None]) -> Attested: ...


@dataclass(frozen=True, slots=True)
class Issued:
    """A signed certificate and what its holder has to know besides."""

    chain: SignedChain
    bundle: TrustBundle
    instance: Instance


class Throttle:
    """A bucket of attempts for every address. IPv6 addresses count by their /64, which one machine can have alone.

    :param burst: attempts in a row
    :param interval: seconds after which one more is given
    :param most: addresses remembered; beyond it those not heard of for longest are forgotten
    :param remedy: what to try again with
    :param what: came too often
    """

    def __init__(
        self,
        burst: int = 10,
        interval: float = 6.0,
        most: int = 10_000,
        remedy: str = "`hedgerow join-token`",
        what: str = "wrong tokens",
    ) -> None:
        self._remedy = remedy
        self._what = what
        self._burst = burst
        self._interval = interval
        self._most = most
        self._spent: OrderedDict[str, tuple[float, float]] = OrderedDict()  # attempts spent, and when that was true

    def check(self, address: str, now: float) -> None:
        """:raises Throttled: when the address has no attempt left"""
        left = self._burst - self._spent_by(network_of(address), now)
        if left < 1:
            raise Throttled(
                f"too many {self._what} came from this address",
                remedy=f"try again in {(1 - left) * self._interval:.0f} s with a token from {self._remedy}",
            )

    def failed(self, address: str, now: float) -> None:
        """Count one attempt: a wrong token, or whatever this counts."""
        key = network_of(address)
        self._spent[key] = (self._spent_by(key, now) + 1, now)
        self._spent.move_to_end(key)
        if len(self._spent) > self._most:
            self._spent.popitem(last=False)

    def _spent_by(self, key: str, now: float) -> float:
        spent, at = self._spent.get(key, (0.0, now))
        return max(0.0, spent - max(0.0, now - at) / self._interval)


def check_pace(renewals: Renewals, instance: Instance, now: float) -> None:
    """Count one signature for an instance.

    :raises Throttled: when it had too many
    """
    wait = renewals.admit(f"{instance.workload.namespace}/{instance.name}", now)
    if wait:
        raise Throttled(
            f"{instance.name} had {RENEWALS} certificates in a short time",
            remedy=f"try again in {wait:.0f} s; the one it has holds until then",
        )


def network_of(address: str) -> str:
    """What an address is counted as: itself, or, of IPv6, its /64. Anything else as it is, within a bound."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if parsed.version == 4:
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))


class Issuer:
    """Decides who gets which certificate.

    :param lifetime: seconds that a workload's certificate holds
    :param clock: seconds since the epoch
    :param attestor: None where there is no Kubernetes
    """

    def __init__(
        self,
        keyring: Keyring,
        engine: Attestations,
        lifetime: float,
        clock: Callable[[], float],
        throttle: Throttle | None = None,
        attestor: TokenAttestor | None = None,
    ) -> None:
        self._keyring = keyring
        self._engine = engine
        self._lifetime = lifetime
        self._clock = clock
        self._throttle = throttle or Throttle()
        self._attestor = attestor
        # a node may stand before many pods with one address, and each of them may be wrong for a while
        volume = "the pod's projected volume"
        self._attesting = Throttle(burst=60, interval=1.0, remedy=volume)
        self._looks = Throttle(burst=LOOKS, interval=LOOK_INTERVAL, remedy=volume, what="tokens")
        self._signings = Signings()
        self._renewals = Renewals(lifetime / RENEWALS)
        self._complaints = Complaints()

    async def join(self, csr_der: bytes, token: str, address: str) -> Issued:
        """The first certificate of an instance, for a join token.

        :param address: where the caller seems to be, for the throttle
        :raises Throttled: before anything else is looked at
        :raises certs.errors.InvalidCsr: the token is then still good
        :raises JoinTokenError: when the token opens nothing
        """
        now = self._clock()
        self._throttle.check(address, now)
        read_csr(csr_der)
        self._keyring.check_ready()
        try:
            instance = await self._engine.redeem_join_token(token)
        except JoinTokenError:
            self._throttle.failed(address, now)
            raise
        return await self._sign(csr_der, instance, "certificate.join")

    async def attest(self, csr_der: bytes, token: str, instance: str, address: str) -> Issued:
        """The first certificate of an instance, for a token of Kubernetes; also another one, for the same or a later
        token, when the first was lost or has expired.

        :param instance: who the caller takes itself for
        :param address: where it seems to be
        :raises Throttled: before anything else is looked at
        :raises certs.errors.InvalidCsr:
        :raises AttestationRefused, AttestationUnavailable: see :mod:`controller.kube.attestation`
        """
        self._attesting.check(address, self._clock())
        key = hashlib.sha256(public_bytes(read_csr(csr_der))).digest()
        self._keyring.check_ready()
        if self._attestor is None:
            raise AttestationRefused(
                "this controller is not on Kubernetes", code="attestation-no-cluster", remedy="use a join token"
            )
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        try:
            attested = await self._attestor.attest(token, instance, address, lambda: self._look(address))
            pod = f"{attested.instance.workload.namespace}/{attested.instance.name}"
            keys = self._signings.admit(pod, attested.uid, digest, key, self._clock())
        except AttestationRefused as error:
            self._attesting.failed(address, self._clock())
            await self._write_down(error, address)
            raise
        if keys > 1:
            log.warning("the token of pod %s signs key number %d; it was signed for before", pod, keys)
        evidence = {**attested.evidence, "token_sha256": digest[:16].hex(), "token_keys": keys}
        return await self._sign(csr_der, attested.instance, "certificate.attest", evidence)

    def _look(self, address: str) -> None:
        """Count one token that the API server is about to be asked about.

        :raises Throttled: when the address had too many, or too many wrong ones since this one came
        """
        now = self._clock()
        self._attesting.check(address, now)
        self._looks.check(address, now)
        self._looks.failed(address, now)

    async def _write_down(self, error: AttestationRefused, address: str) -> None:
        """A pod that showed a good token and gets nothing for it is worth an audit entry; a stranger is not."""
        if error.pod and self._complaints.is_new(error.pod, error.code, self._clock()):
            detail = {"code": error.code, "problem": error.problem, "from": address}
            await self._engine.record(f"sidecar:{error.pod}", "certificate.refused", error.pod, detail)

    async def renew(self, csr_der: bytes, instance: Instance) -> Issued:
        """The next certificate of an instance that proved who it is.

        :raises Throttled: when it asks without end
        :raises certs.errors.InvalidCsr:
        """
        read_csr(csr_der)
        self._keyring.check_ready()
        check_pace(self._renewals, instance, self._clock())
        return await self._sign(csr_der, instance, "certificate.renew")

    async def _sign(
        self, csr_der: bytes, instance: Instance, action: str, evidence: Mapping[str, object] = MappingProxyType({})
    ) -> Issued:
        view = self._engine.view
        identity = SpiffeId.parse(view.inventory.identity_of_instance(instance))
        chain = self._keyring.sign_workload(csr_der, identity, instance.name, instance.uid, self._lifetime)
        await self._engine.record(
            f"sidecar:{instance.workload.namespace}/{instance.name}",
            action,
            str(instance.workload),
            {
                "instance": instance.name,
                "spiffe_id": str(identity),
                "not_after": chain.not_after,
                "public_key_sha256": hashlib.sha256(public_bytes(read_csr(csr_der))).hexdigest(),
                **evidence,
            },
        )
        return Issued(chain, self._keyring.bundle, instance)
