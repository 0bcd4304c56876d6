"""Gets our certificate and keeps it fresh.

The governing rules:

1. The key is made here and leaves this process only for the state directory. A renewal has a fresh key.
2. The first signature is paid for with a token (:mod:`sidecar.proofs`), on the issuer's port, where the trust bundle
   of the settings proves who the issuer is. Every later one is asked for on the mTLS port with the certificate in
   force; when that has expired, it is a first one again.
3. Nothing of an answer is used before all of it was checked (:func:`sidecar.credentials.check_svid`).
4. Expected trouble (the controller is away) is waited out, and in a pod everything is. What only a person can mend (a
   spent join token) is an :class:`~sidecar.errors.EnrolmentError` that says how.
5. Roots that the settings' file brings while we run are taken over as those that the controller sends: by overlap, and
   not backwards. When they do not overlap, the controller has another authority, and we begin again there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random

import grpc.aio
from cryptography.hazmat.primitives.asymmetric import ec

from certs.bundle import TrustBundle
from certs.certificate import pem_text, read_pem_certificates
from certs.errors import CertError
from certs.keys import key_from_pem, key_to_pem, make_csr, new_key
from certs.rotation import renewal_at
from certs.svid import instance_of
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from sidecar.backoff import Backoff
from sidecar.channel import attestation_channel, mutual_channel, translated
from sidecar.credentials import CredentialStore, Svid, check_svid, next_bundle
from sidecar.errors import ConfigError, ControllerRefused, ControllerUnavailable, EnrolmentError, StateError
from sidecar.proofs import proof_of
from sidecar.settings import Settings
from sidecar.state import SVID, TRUST_BUNDLE, StateDirectory, StoredInstance

log = logging.getLogger(__name__)

#: Seconds that the issuer has for an answer.
SIGN_TIMEOUT = 10.0

#: Seconds after which a sleeping agent looks at the clock again: it may have been set, or the machine suspended.
MAX_SLEEP = 30.0

#: Seconds between two tries of a pod whose token is refused: what is wrong is mended elsewhere, and by people.
REFUSED_WAIT = 60.0

#: Why a certificate is asked for by one that has just begun.
_NONE_YET = "there is no certificate yet"


class CertificateAgent:
    """Owns the certificate's life: from the state directory or the issuer, through every renewal.

    :param random: the source of all jitter
    :param clock: seconds since the epoch
    """

    def __init__(self, settings: Settings, state: StateDirectory, random: Random, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._state = state
        self._random = random
        self._clock = clock
        self._proof = proof_of(settings)
        #: Of a first certificate, until there is one: an answer that was lost is asked for again with the same key.
        self._first_key: ec.EllipticCurvePrivateKey | None = None
        self._bundle_seen: tuple[int, ...] | None = None
        self.problem = ""
        """Why there is no good certificate now, for people; empty when there is one."""

    async def obtain(self) -> CredentialStore:
        """The stored certificate when it is still good, else a first one for a token; waits for the issuer.

        :raises EnrolmentError: when neither is to be had; also StateError and ConfigError for what they name
        """
        svid, reason = self._stored()
        if svid is None:
            svid = await self._enrol_patiently(reason)
        return CredentialStore(svid, self._clock)

    async def run(self, credentials: CredentialStore) -> None:
        """Renew before every expiry, until cancelled."""
        backoff = Backoff(self._random)
        due = self._due(credentials.svid)
        while True:
            wait = due - self._clock()
            if wait > 0 and not self._bundle_changed():
                await asyncio.sleep(min(wait, MAX_SLEEP))
                continue
            held = credentials.svid
            try:
                svid = await (self._renew(credentials) if wait <= 0 else self._follow_bundle(held))
                if svid is None:
                    continue
                credentials.replace(svid)
            except (ControllerUnavailable, ControllerRefused, EnrolmentError, ConfigError, CertError) as error:
                self._failed(credentials, error)
                # a short-lived certificate is not outwaited
                left = credentials.not_after - self._clock()
                delay = backoff.failed()
                await asyncio.sleep(min(delay, max(left / 8, 0.05)) if left > 0 else delay)
                continue
            backoff.succeeded()
            self.problem = ""
            if svid.chain_der == held.chain_der:  # only the roots are others
                continue
            due = self._due(svid)
            log.info("certificate renewed for %s, good for %.0f s", svid.identity, svid.not_after - self._clock())

    def _due(self, svid: Svid) -> float:
        return renewal_at(svid.not_before, svid.not_after, self._random)

    def _failed(self, credentials: CredentialStore, error: Exception) -> None:
        left = credentials.not_after - self._clock()
        if left > 0:
            log.warning("the certificate could not be renewed, %.0f s are left: %s", left, error)
        else:
            self.problem = f"the certificate has expired and could not be renewed: {error}"
            log.error("%s", self.problem)

    # Asking ----------------------------------------------------------------------------------------------------------

    async def _enrol_patiently(self, reason: str) -> Svid:
        waiting = "waiting for a first certificate" if reason == _NONE_YET else f"{reason}; waiting for a new one"
        away = Backoff(self._random)
        refused = Backoff(self._random, first=1.0, cap=REFUSED_WAIT)
        while True:
            try:
                svid = await self._enrol(reason)
            except ControllerUnavailable as error:
                delay = away.failed()
                self.problem = f"{waiting}: {error}"
                log.warning("no certificate from %s yet, next try in %.1f s: %s", self._settings.issuer, delay, error)
            except (EnrolmentError, ConfigError) as error:
                if not self._proof.patient:
                    raise
                delay = refused.failed()
                self.problem = f"{waiting}: {error}"
                log.error("no certificate, next try in %.1f s: %s", delay, error)
            else:
                self.problem = ""
                return svid
            await asyncio.sleep(delay)

    async def _enrol(self, reason: str) -> Svid:
        """A first certificate for what proves us."""
        bundle = self._configured_bundle()
        key = self._first_key = self._first_key or new_key()
        request = self._proof.request(make_csr(key), reason)
        async with attestation_channel(self._settings.issuer, bundle) as channel:
            try:
                svid = self._check(await _sign(channel, request), key, bundle)
            except ControllerRefused as error:
                raise self._proof.refused(error) from None
            except CertError as error:
                raise self._proof.unusable(error) from None
        self._first_key = None
        await self._save(svid)
        self._proof.spent()
        log.info("certificate received for %s, good for %.0f s", svid.identity, svid.not_after - self._clock())
        return svid

    async def _renew(self, credentials: CredentialStore) -> Svid:
        held = credentials.svid
        if held.not_after <= self._clock():  # it can not prove anything any more; a person may have left a new token
            return await self._enrol("the certificate has expired")
        key = new_key()
        async with mutual_channel(self._settings.controller, held) as channel:
            svid = self._check(await _sign(channel, pb.SignRequest(csr_der=make_csr(key))), key, held.bundle)
        if svid.identity != held.identity:
            raise CertError(f"the issuer answered for {svid.identity} and we are {held.identity}")
        await self._save(svid)
        return svid

    def _check(self, answer: pb.SignResponse, key: ec.EllipticCurvePrivateKey, held: TrustBundle) -> Svid:
        """:raises CertError: when any part of the answer is not what we asked for"""
        domain = self._settings.trust_domain
        offered = TrustBundle(answer.bundle.trust_domain, tuple(answer.bundle.roots_der), answer.bundle.sequence)
        bundle = next_bundle(held, offered)
        svid = check_svid(tuple(answer.chain_der), key, bundle, domain, self._clock())
        instance = instance_of(svid.chain_der[0]) or answer.instance
        if instance != self._settings.instance or answer.instance != instance:
            raise CertError(
                f"it is for instance {instance[:80]!r} and this is {self._settings.instance!r} (see `instance:`)"
            )
        if answer.spiffe_id != str(svid.identity) or answer.workload != str(svid.workload):
            raise CertError(f"it says {answer.spiffe_id[:200]!r} beside a certificate for {svid.identity}")
        return svid

    def _configured_bundle(self) -> TrustBundle:
        path = self._settings.trust_bundle
        try:
            pem = path.read_bytes()
        except OSError as error:
            remedy = "copy trust-bundle.pem from the controller's state directory"
            if self._proof.patient:
                remedy = "the controller keeps it in ConfigMap hedgerow-trust of every meshed namespace"
            raise ConfigError(f"trust_bundle: {path}: {error.strerror}; {remedy}") from None
        try:
            return TrustBundle.from_pem(pem, self._settings.trust_domain)
        except CertError as error:
            raise ConfigError(f"trust_bundle: {path}: {error}") from None

    # The trust bundle of the settings --------------------------------------------------------------------------------

    def _bundle_stamp(self) -> tuple[int, ...] | None:
        """Changes when the file does, also when a link on the way to it does; None when there is none."""
        try:
            status = self._settings.trust_bundle.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _bundle_changed(self) -> bool:
        stamp = self._bundle_stamp()
        return stamp is not None and stamp != self._bundle_seen

    async def _follow_bundle(self, held: Svid) -> Svid | None:
        """Our certificate under the roots that the file has now; None when that changes nothing."""
        stamp = self._bundle_stamp()
        try:
            configured = self._configured_bundle()
        except ConfigError as error:
            self._bundle_seen = stamp  # told once
            log.warning("the roots in force stay: %s", error)
            return None
        if set(configured.roots_der) & set(held.bundle.roots_der):
            self._bundle_seen = stamp
            if configured.sequence <= held.bundle.sequence:
                return None
            domain = self._settings.trust_domain
            svid = check_svid(held.chain_der, held.key, configured, domain, self._clock())
            await self._save(svid)
            log.info("the trust bundle has changed; sequence %d is in force", configured.sequence)
            return svid
        if not self._proof.at_hand():
            self._bundle_seen = stamp
            log.warning("trust_bundle: %s holds none of the roots in use", self._settings.trust_bundle)
            return None
        log.warning("the trust bundle is of another authority; a certificate is asked for there")
        svid = await self._enrol("the controller has another authority")
        self._bundle_seen = stamp
        return svid

    # The state directory ---------------------------------------------------------------------------------------------

    def _stored(self) -> tuple[Svid | None, str]:
        """The stored certificate; else None and why not.

        :raises StateError: when the directory belongs to another instance
        """
        try:
            stored = self._state.read_instance()
            pem, bundle_pem = self._state.read(SVID), self._state.read(TRUST_BUNDLE)
        except StateError as error:
            log.warning("%s", error)
            return None, f"the stored certificate is unusable ({error})"
        if stored is not None and stored.instance != self._settings.instance:
            raise StateError(
                f"state_dir: {self._state.path} belongs to instance {stored.instance!r} and this is "
                f"{self._settings.instance!r}; give every instance its own directory"
            )
        if stored is None or pem is None or bundle_pem is None:
            return None, _NONE_YET
        try:
            bundle = TrustBundle.from_pem(bundle_pem, self._settings.trust_domain)
            end = pem.index(_KEY_END) + len(_KEY_END)
            chain = read_pem_certificates(pem[end:].lstrip(), "stored certificate")
            svid = check_svid(chain, key_from_pem(pem[:end]), bundle, self._settings.trust_domain, self._clock())
        except (CertError, ValueError) as error:
            log.warning("the stored certificate is not used: %s", error)
            return None, f"the stored certificate is not used ({error})"
        if str(svid.identity) != stored.spiffe_id:
            return None, f"the stored certificate is for {svid.identity} and not for {stored.spiffe_id}"
        if self._of_another_authority(bundle):
            return None, "the stored certificate is from another authority than trust_bundle"
        log.info("stored certificate for %s, good for %.0f s", svid.identity, svid.not_after - self._clock())
        return svid, ""

    def _of_another_authority(self, stored: TrustBundle) -> bool:
        """Whether the settings name a new authority and bring a token for it. Without one the stored roots stay good:
        the file may be older than the last change of roots."""
        try:
            configured = self._configured_bundle()
        except ConfigError as error:
            log.warning("%s", error)
            return False
        if set(configured.roots_der) & set(stored.roots_der):
            return False
        log.warning("trust_bundle: %s holds none of the roots in use", self._settings.trust_bundle)
        return self._proof.at_hand()

    async def _save(self, svid: Svid) -> None:
        def save() -> None:
            # the bundle first: it verifies the old certificate too, should we stop half-way
            self._state.write(TRUST_BUNDLE, svid.bundle.to_pem().encode())
            self._state.write(SVID, key_to_pem(svid.key) + pem_text(svid.chain_der).encode())
            stored = StoredInstance(self._settings.instance, str(svid.workload), str(svid.identity))
            self._state.write_instance(stored)

        try:
            await asyncio.to_thread(save)
        except StateError as error:  # it is good without the disk, until a restart
            log.error("the certificate is in force and will not survive a restart: %s", error)


_KEY_END = b"-----END PRIVATE KEY-----\n"


async def _sign(channel: grpc.aio.Channel, request: pb.SignRequest) -> pb.SignResponse:
    with translated():
        answer: pb.SignResponse = await rpc.IssuerStub(channel).Sign(request, timeout=SIGN_TIMEOUT)
        return answer
