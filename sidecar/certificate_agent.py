"""Gets our certificate and keeps it fresh.

The governing rules:

1. The key is made here and leaves this process only for the state directory. A renewal has a fresh key.
2. The first signature is paid for with the join token, on the issuer's port, where the trust bundle of the settings
   proves who the issuer is. Every later one is asked for on the mTLS port with the certificate in force.
3. Nothing of an answer is used before all of it was checked (:func:`sidecar.credentials.check_svid`).
4. Expected trouble (the controller is away) is waited out. What only a person can mend (a spent token) is an
   :class:`~sidecar.errors.EnrolmentError` that says how.
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
from sidecar.settings import Settings
from sidecar.state import SVID, TRUST_BUNDLE, StateDirectory, StoredInstance

log = logging.getLogger(__name__)

#: Seconds that the issuer has for an answer.
SIGN_TIMEOUT = 10.0

#: Seconds after which a sleeping agent looks at the clock again: it may have been set, or the machine suspended.
MAX_SLEEP = 30.0

MAX_TOKEN_BYTES = 4096

_NEW_TOKEN = "have a new join token made (`hedgerow join-token create WORKLOAD INSTANCE`)"  # noqa: S105  # a text


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
        self.problem = ""
        """Why there is no good certificate now, for people; empty when there is one."""

    async def obtain(self) -> CredentialStore:
        """The stored certificate when it is still good, else a first one for the join token; waits for the issuer.

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
            if wait > 0:
                await asyncio.sleep(min(wait, MAX_SLEEP))
                continue
            try:
                svid = await self._renew(credentials)
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
        backoff = Backoff(self._random)
        while True:
            try:
                svid = await self._enrol(reason)
            except ControllerUnavailable as error:
                delay = backoff.failed()
                self.problem = f"waiting for a first certificate: {error}"
                log.warning("the issuer %s is away, next try in %.1f s: %s", self._settings.issuer, delay, error)
                await asyncio.sleep(delay)
            else:
                self.problem = ""
                return svid

    async def _enrol(self, reason: str) -> Svid:
        """A first certificate for the join token, which is spent by it."""
        bundle = self._configured_bundle()
        token = self._read_token(reason)
        key = new_key()
        async with attestation_channel(self._settings.issuer, bundle) as channel:
            request = pb.SignRequest(csr_der=make_csr(key), join_token=token)
            try:
                svid = self._check(await _sign(channel, request), key, bundle)
            except ControllerRefused as error:
                raise EnrolmentError(
                    f"join_token_file: the issuer refused the token ({error}); a token works once and for a limited "
                    f"time: {_NEW_TOKEN} and write it to {self._settings.join_token_file}"
                ) from None
            except CertError as error:
                raise EnrolmentError(f"the issuer's answer can not be used: {error}; {_NEW_TOKEN}") from None
        await self._save(svid)
        self._delete_token()
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
            raise ConfigError(
                f"trust_bundle: {path}: {error.strerror}; copy trust-bundle.pem from the controller's state directory"
            ) from None
        try:
            return TrustBundle.from_pem(pem, self._settings.trust_domain)
        except CertError as error:
            raise ConfigError(f"trust_bundle: {path}: {error}") from None

    # The join token --------------------------------------------------------------------------------------------------

    def _read_token(self, reason: str) -> str:
        path = self._settings.join_token_file
        if path is None:
            raise EnrolmentError(f"{reason} and join_token_file is not set; {_NEW_TOKEN} and name its file there")
        try:
            with path.open("rb") as file:
                data = file.read(MAX_TOKEN_BYTES + 1)
        except FileNotFoundError:
            raise EnrolmentError(
                f"{reason} and join_token_file {path} is not there (a used token is deleted); "
                f"{_NEW_TOKEN} and write it to that file"
            ) from None
        except OSError as error:
            raise EnrolmentError(f"join_token_file: {path}: {error.strerror}; make it readable for this user") from None
        token = data.strip()
        # never quoted in a message: it may be half a token
        if not token or len(data) > MAX_TOKEN_BYTES or not token.isascii() or not token.decode().isprintable():
            raise EnrolmentError(f"join_token_file: {path} does not hold a join token; {_NEW_TOKEN} and write it there")
        return token.decode()

    def _delete_token(self) -> None:
        path = self._settings.join_token_file
        if path is None:
            return
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # it is spent, so nothing is lost but tidiness
            log.warning("join_token_file: %s is spent and can not be deleted: %s", path, error.strerror)

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
            return None, "there is no certificate yet"
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
        token = self._settings.join_token_file
        try:
            configured = self._configured_bundle()
        except ConfigError as error:
            log.warning("%s", error)
            return False
        if set(configured.roots_der) & set(stored.roots_der):
            return False
        log.warning("trust_bundle: %s holds none of the roots in use", self._settings.trust_bundle)
        return token is not None and token.exists()

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
