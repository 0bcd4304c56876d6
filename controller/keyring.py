"""The controller's keys: the certificate authority on disk, its own server certificate, and the policy signer.

Rules:

1. Whatever changes the authority is on disk before anything is signed with it.
2. The server's own certificate is renewed near half of its life. What new handshakes use is one immutable value that is
   swapped as a whole, so that gRPC's threads may read it at any time and no open connection notices.
3. The policy signer's key is made at every start and never leaves memory: every snapshot carries its certificate.
4. A disk that takes nothing keeps the authority as it was, and not the server from going on with a fresh certificate.
5. A clock that was ahead for a while, and is put right, leaves nothing that begins only later.

``STATE_DIR/ca/`` holds the authority, ``STATE_DIR/trust-bundle.pem`` the roots, which are public.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from cryptography.hazmat.primitives.asymmetric import ec

from certs.bundle import TrustBundle
from certs.ca import MAX_LEAF_LIFETIME, CertificateAuthority, SignedChain
from certs.ca_files import load_authority, save_authority
from certs.certificate import check_validity, pem_text
from certs.errors import AuthorityError, CertError
from certs.keys import key_to_pem, make_csr, new_key
from certs.rotation import renewal_at
from certs.signing import sign_payload
from certs.spiffe import SpiffeId
from controller.errors import ConfigError, ControllerError

log = logging.getLogger("hedgerow.keyring")

BUNDLE_FILE = "trust-bundle.pem"
CA_DIRECTORY = "ca"

#: Seconds between two looks at the clock: it may have been set, or the machine suspended.
MAX_SLEEP = 30.0


@dataclass(frozen=True, slots=True)
class ServerMaterial:
    """What a TLS handshake of ours needs. Never logged: its repr shows no key.

    :param version: grows with every change
    :param not_before: its validity, seconds since the epoch
    :param renew_at: when the next one is due, seconds since the epoch
    """

    version: int
    chain_pem: bytes
    key_pem: bytes
    roots_pem: bytes
    not_before: float
    not_after: float
    renew_at: float

    def __repr__(self) -> str:
        return f"ServerMaterial(version={self.version}, not_after={self.not_after})"


@dataclass(frozen=True, slots=True)
class PolicySigner:
    """What signs policy snapshots. Never logged: its repr shows no key."""

    key: ec.EllipticCurvePrivateKey
    chain: SignedChain

    def sign(self, payload: bytes) -> bytes:
        """The signature of a serialised snapshot; see :mod:`certs.signing`."""
        return sign_payload(self.key, payload)

    def __repr__(self) -> str:
        return f"PolicySigner({self.chain.spiffe_id})"


class Keyring:
    """Holds the authority and what the controller itself needs of it. Made by :meth:`open`.

    :param lifetime: seconds that the server's own certificate holds
    :param clock: seconds since the epoch
    """

    def __init__(
        self,
        state_dir: Path,
        authority: CertificateAuthority,
        lifetime: float,
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        self._state_dir = state_dir
        self._authority = authority
        self._lifetime = min(lifetime, MAX_LEAF_LIFETIME)
        self._clock = clock
        self._random = random
        self._bundle = authority.bundle()
        self._bundle_due = True  # to be written
        now = clock()
        self._signer = self._new_signer(now)
        self._material = self._new_material(now, 1)

    @classmethod
    def open(
        cls,
        state_dir: Path,
        trust_domain: str,
        lifetime: float,
        clock: Callable[[], float],
        random: Random | None = None,
    ) -> Keyring:
        """Read the authority of a state directory, or make it at the first start, and write the trust bundle beside it.

        :raises ConfigError: when it is damaged, belongs to another trust domain, or can not be written
        """
        directory = state_dir / CA_DIRECTORY
        now = clock()
        try:
            authority = load_authority(directory)
            if authority is None:
                authority = CertificateAuthority.create(trust_domain, now)
                save_authority(directory, authority)
                log.info("a new certificate authority was made for trust domain %s", trust_domain)
            if authority.trust_domain != trust_domain:
                raise ConfigError(
                    f"{trust_domain!r}, but the authority in {directory} is that of {authority.trust_domain!r}",
                    field="trust_domain",
                    remedy="restore the setting, or set state_dir to a new directory",
                )
            due = authority.maintained(now)
            if due is not authority:
                save_authority(directory, due)
            ring = cls(state_dir, due, lifetime, clock, random or Random())  # noqa: S311  # spreads renewals
            ring._write_bundle()
        except CertError as error:
            raise ConfigError(str(error), remedy="nothing was changed") from None
        return ring

    # --- what others use

    @property
    def bundle(self) -> TrustBundle:
        """The roots in force."""
        return self._bundle

    @property
    def material(self) -> ServerMaterial:
        """What handshakes use now. May be read from any thread."""
        return self._material

    def sign_workload(
        self, csr_der: bytes, spiffe_id: SpiffeId, instance: str, uid: str, lifetime: float
    ) -> SignedChain:
        """Sign a workload's request; see :meth:`certs.ca.CertificateAuthority.sign_workload`."""
        return self._authority.sign_workload(csr_der, spiffe_id, self._clock(), lifetime, instance, uid)

    def check_ready(self) -> None:
        """Whether certificates can be signed now, which is worth knowing before a join token is spent.

        :raises AuthorityError: when the issuing certificate is not valid by our clock
        """
        issuing = self._authority.issuing.certificate
        if reason := check_validity(issuing, self._clock(), "issuing certificate"):
            raise AuthorityError(f"{reason}; check the controller's clock")

    @property
    def signer(self) -> PolicySigner:
        """What signs snapshots now."""
        return self._signer

    # --- upkeep

    async def run(self) -> None:
        """Renew and roll over as it becomes due, until cancelled. A failure is logged and tried again."""
        while True:
            await asyncio.sleep(max(0.05, min(self._material.renew_at - self._clock(), MAX_SLEEP)))
            try:
                await asyncio.to_thread(self.maintain)
            except (CertError, ControllerError, OSError) as error:
                log.error("the controller's certificates could not be renewed: %s", error)
                await asyncio.sleep(1)

    def maintain(self) -> None:
        """Take every step that is due by the clock.

        :raises CertError, ConfigError: when a step fails; it is still due, and the others were taken
        """
        now = self._clock()
        before = self._authority
        try:
            self._maintain_authority(now)
        finally:
            if self._authority is not before or now < self._signer.chain.not_before:
                self._signer = self._new_signer(now)
            held = self._material
            if self._authority is not before or now >= held.renew_at or now < held.not_before:
                self._material = self._new_material(now, held.version + 1)
                log.info("the controller's certificate was renewed, good for %.0f s", self._material.not_after - now)
        if self._bundle_due:
            self._write_bundle()

    def _maintain_authority(self, now: float) -> None:
        due = self._authority.maintained(now)
        if due is not self._authority:
            save_authority(self._state_dir / CA_DIRECTORY, due)
            log.info("the certificate authority was renewed; its bundle has sequence %d", due.sequence)
            self._authority, self._bundle = due, due.bundle()
            self._bundle_due = True

    def _new_signer(self, now: float) -> PolicySigner:
        key = new_key()
        return PolicySigner(key, self._authority.sign_policy_signer(make_csr(key), now))

    def _new_material(self, now: float, version: int) -> ServerMaterial:
        key = new_key()
        chain = self._authority.sign_controller(make_csr(key), now, self._lifetime)
        return ServerMaterial(
            version,
            chain_pem=pem_text(chain.chain_der).encode("ascii"),
            key_pem=key_to_pem(key),
            roots_pem=self._bundle.to_pem().encode("ascii"),
            not_before=chain.not_before,
            not_after=chain.not_after,
            renew_at=renewal_at(chain.not_before, chain.not_after, self._random),
        )

    def _write_bundle(self) -> None:
        path = self._state_dir / BUNDLE_FILE
        beside = path.with_name(f".{BUNDLE_FILE}.new")
        try:
            with beside.open("w", encoding="ascii") as file:
                file.write(self._bundle.to_pem())
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            self._bundle_due = False
        except OSError as error:
            raise ConfigError(
                f"{path} can not be written: {error.strerror}", remedy="make the state directory writable"
            ) from None
