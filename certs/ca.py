"""The certificate authority of one trust domain: a root, an issuing certificate under it, and what they sign.

An authority is a value. Every change of its signing certificates returns a new one for the caller to save
(:mod:`certs.ca_files`) before it is used; signing leaves changes nothing. What holds at all times:

1. Only the public key of a request counts, and only after it proved possession of the private one.
2. A leaf is valid within the validity of the issuing certificate, and that one within its root's.
3. What is signed verifies with :mod:`certs.verify` against :meth:`CertificateAuthority.bundle`.
4. A new root is in the bundle before anything is signed under it, and an old one stays until everything signed
   under it ended.

Roll-over of the root goes ``prepare_root`` → (everybody has the new bundle) → ``activate_root`` → (what the old one
signed has ended) → ``retire_roots``. :meth:`CertificateAuthority.maintained` takes the step that is due, by the
clock alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.bundle import TrustBundle
from certs.ca_format import REMEDY, Section, format_sections, parse_sections
from certs.errors import AuthorityError, CertError, InvalidSpiffeId
from certs.issue import Signer, leaf_certificate, read_csr, signing_certificate
from certs.keys import certified_bytes, make_csr, new_key, public_bytes
from certs.spiffe import CONTROLLER_DNS_NAME, SpiffeId, check_instance_name, check_trust_domain, check_uid
from certs.svid import SIGNER_USAGES, TLS_USAGES
from certs.verify import verify_chain

_DAY = 86400.0

#: Lifetimes in seconds.
ROOT_LIFETIME = 3650 * _DAY
ISSUING_LIFETIME = 365 * _DAY
MAX_LEAF_LIFETIME = 7 * _DAY

#: A new root is published this long before it signs anything: longer than any sidecar's bundle goes unrefreshed.
ROOT_OVERLAP = 30 * _DAY

#: Certificates begin this much in the past, for peers whose clocks are behind; a tenth of the lifetime where that
#: is less.
MAX_BACKDATE = 60.0


# what the sections of the text form are called
_ISSUING, _ACTIVE, _NEXT, _RETIRING = "issuing", "active-root", "next-root", "retiring-root"
_ACTIVATES, _NEEDED = "activates-at", "needed-until"


@dataclass(frozen=True, slots=True)
class SignedChain:
    """A certificate with what is needed to verify it.

    :param chain_der: leaf first, then the issuing certificate; the root is not among them
    :param not_before: the leaf's validity, seconds since the epoch
    """

    chain_der: tuple[bytes, ...]
    spiffe_id: SpiffeId
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class Root:
    """A root of the bundle.

    :param key: absent once it is destroyed, as that of a retiring root is
    :param activates_at: for a root that does not sign yet: when it is due to
    :param needed_until: for a root that signs no more: when everything that it signed has ended; seconds since the
        epoch
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None
    activates_at: float | None = None
    needed_until: float | None = None

    def __repr__(self) -> str:
        return f"Root({self.certificate.subject.rfc4514_string()!r})"


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """The authority of one trust domain. Made by :meth:`create` or :meth:`load`, never directly.

    :param issuing: what signs leaves
    :param active: the root that signed ``issuing``
    :param others: the next root, if one is prepared, and the retiring ones
    :param sequence: of the bundle; grows with every change of the set of roots
    """

    trust_domain: str
    issuing: Signer
    active: Root
    others: tuple[Root, ...] = ()
    sequence: int = 1

    @classmethod
    def create(cls, trust_domain: str, now: float) -> Self:
        """Make a new authority with a new root, valid from ``now`` (seconds since the epoch).

        :raises InvalidSpiffeId: when ``trust_domain`` is not a trust domain name
        """
        check_trust_domain(trust_domain)
        root = _new_root(trust_domain, now)
        return cls(trust_domain, _new_issuing(trust_domain, root, now), root)

    @classmethod
    def load(cls, pem: bytes) -> Self:
        """Read what :meth:`dump` wrote.

        :raises AuthorityError: when it is damaged, or its parts do not belong together
        """
        about, sections = parse_sections(pem)
        try:
            (issuing,) = (one for one in sections if one.part == _ISSUING)
            (active,) = (one for one in sections if one.part == _ACTIVE)
            others = [one for one in sections if one is not issuing and one is not active]
            if issuing.key is None:
                raise ValueError(_ISSUING)
            authority = cls(
                trust_domain=about["trust-domain"],
                issuing=Signer(issuing.certificate, issuing.key),
                active=Root(active.certificate, active.key),
                others=tuple(_other_root(one) for one in others),
                sequence=int(about["sequence"]),
            )
        except (ValueError, KeyError):
            raise AuthorityError(f"authority: a part is missing or unknown; {REMEDY}") from None
        _check_consistency(authority)
        return authority

    def dump(self) -> bytes:
        """The whole authority, private keys included, as one PEM text. For :meth:`load`; keep it secret."""
        sections = [
            Section(_ISSUING, self.issuing.certificate, self.issuing.key),
            Section(_ACTIVE, self.active.certificate, self.active.key),
        ]
        for root in self.others:
            times = ((_ACTIVATES, root.activates_at), (_NEEDED, root.needed_until))
            about = {name: repr(at) for name, at in times if at is not None}
            sections.append(
                Section(_RETIRING if root.activates_at is None else _NEXT, root.certificate, root.key, about)
            )
        return format_sections({"trust-domain": self.trust_domain, "sequence": str(self.sequence)}, sections)

    def bundle(self) -> TrustBundle:
        """The roots in force: the active one first, then the next and the retiring ones."""
        roots = (self.active, *self.others)
        return TrustBundle(self.trust_domain, tuple(_der(root.certificate) for root in roots), self.sequence)

    # -- signing -------------------------------------------------------------------------------------------------

    def sign_workload(
        self, csr_der: bytes, spiffe_id: SpiffeId, now: float, lifetime: float, instance: str = "", uid: str = ""
    ) -> SignedChain:
        """Sign a workload's request. Whether the caller is that workload has been attested before.

        :param instance: the replica that it is for; :func:`certs.svid.instance_of` reads it back from the certificate
        :param uid: of that replica and no later one of its name; :func:`certs.svid.uid_of` reads it back
        :param lifetime: seconds, at most :data:`MAX_LEAF_LIFETIME`; less when the issuing certificate ends sooner
        :raises InvalidCsr: see :func:`certs.issue.read_csr`
        :raises InvalidSpiffeId: when the ID is not a workload's of this trust domain, or is the controller's own, or
            ``instance`` or ``uid`` is no name
        :raises AuthorityError: when the issuing certificate is not valid now
        """
        if spiffe_id.trust_domain != self.trust_domain:
            raise InvalidSpiffeId(f"{spiffe_id}: not of trust domain {self.trust_domain}, so not ours to sign")
        if not spiffe_id.namespace:
            raise InvalidSpiffeId(f"{spiffe_id}: it names no namespace and service account, so it is no workload's")
        if spiffe_id == SpiffeId.controller(self.trust_domain):
            raise InvalidSpiffeId(f"{spiffe_id}: that is the controller's identity, no workload may have it")
        if instance:
            check_instance_name(instance)
        if uid:
            check_uid(uid)
        return self._sign(csr_der, spiffe_id, now, lifetime, TLS_USAGES, instance=instance, uid=uid)

    def sign_controller(self, csr_der: bytes, now: float, lifetime: float) -> SignedChain:
        """Sign the controller's own request; the certificate has its DNS name too.

        :raises InvalidCsr: see :func:`certs.issue.read_csr`
        :raises AuthorityError: when the issuing certificate is not valid now
        """
        identity = SpiffeId.controller(self.trust_domain)
        return self._sign(csr_der, identity, now, lifetime, TLS_USAGES, CONTROLLER_DNS_NAME)

    def sign_policy_signer(self, csr_der: bytes, now: float) -> SignedChain:
        """Sign the request of the key that signs policy snapshots.

        It lives as long as the issuing certificate, so that a snapshot on disk can be verified while the controller
        is away. It is no good for TLS.

        :raises InvalidCsr: see :func:`certs.issue.read_csr`
        :raises AuthorityError: when the issuing certificate is not valid now
        """
        remaining = self.issuing.certificate.not_valid_after_utc.timestamp() - now
        return self._sign(csr_der, SpiffeId.policy_signer(self.trust_domain), now, remaining, SIGNER_USAGES)

    def _sign(
        self,
        csr_der: bytes,
        identity: SpiffeId,
        now: float,
        lifetime: float,
        usages: frozenset[x509.ObjectIdentifier],
        dns_name: str = "",
        instance: str = "",
        uid: str = "",
    ) -> SignedChain:
        public = read_csr(csr_der)
        if usages is TLS_USAGES and not 0 < lifetime <= MAX_LEAF_LIFETIME:
            raise AuthorityError(f"lifetime: {lifetime:g} s; it must be above 0 and at most {MAX_LEAF_LIFETIME:g}")
        issuer = self.issuing.certificate
        begins, ends = issuer.not_valid_before_utc.timestamp(), issuer.not_valid_after_utc.timestamp()
        if not begins <= now < ends:
            dates = f"from {issuer.not_valid_before_utc:%Y-%m-%d} to {issuer.not_valid_after_utc:%Y-%m-%d}"
            raise AuthorityError(f"issuing certificate: it is valid {dates} only; check the clock, or renew it")
        not_before = int(max(now - _backdate(lifetime), begins))
        # rounded up, so that a lifetime below a second is not none; never beyond the issuer
        not_after = int(min(-((-now - lifetime) // 1), ends))
        names = (dns_name, instance, uid)
        leaf = leaf_certificate(public, identity, self.issuing, not_before, not_after, usages, *names)
        return SignedChain((_der(leaf), _der(issuer)), identity, float(not_before), float(not_after))

    # -- roll-over -----------------------------------------------------------------------------------------------

    def renew_issuing(self, now: float) -> Self:
        """A new issuing certificate with a new key under the active root.

        Chains of the old one stay valid until they end.
        """
        return replace(self, issuing=_new_issuing(self.trust_domain, self.active, now))

    def prepare_root(self, now: float, overlap: float = ROOT_OVERLAP) -> Self:
        """Add the next root to the bundle. It signs nothing before :meth:`activate_root`.

        :param overlap: seconds until :meth:`maintained` activates it
        :raises AuthorityError: when one is prepared already
        """
        if self._next() is not None:
            raise AuthorityError("root: the next one is prepared already; activate it first")
        root = replace(_new_root(self.trust_domain, now), activates_at=now + overlap)
        return replace(self, others=(root, *self.others), sequence=self.sequence + 1)

    def activate_root(self, now: float) -> Self:
        """Sign under the prepared root from now on, with a new issuing certificate.

        The old root stays in the bundle until everything that it signed has ended; its key is destroyed with the
        old value.

        :raises AuthorityError: when none is prepared
        """
        coming = self._next()
        if coming is None:
            raise AuthorityError(
                "root: no next one is prepared; prepare it, and wait until every sidecar has the bundle"
            )
        # no leaf outlives its issuing certificate, and of those under one root the last made ends last
        needed_until = self.issuing.certificate.not_valid_after_utc.timestamp()
        old = replace(self.active, key=None, needed_until=needed_until)
        active = replace(coming, activates_at=None)
        others = (*(root for root in self.others if root is not coming), old)
        return replace(self, issuing=_new_issuing(self.trust_domain, active, now), active=active, others=others)

    def retire_roots(self, now: float) -> Self:
        """Drop the old roots that nothing valid was signed under any more. Returns itself when there are none."""
        kept = tuple(root for root in self.others if root.needed_until is None or now <= root.needed_until)
        if len(kept) == len(self.others):
            return self
        return replace(self, others=kept, sequence=self.sequence + 1)

    def maintained(self, now: float) -> Self:
        """Take every step that is due at ``now``; returns itself when none is. Save the result before using it."""
        authority = self.retire_roots(now)
        coming = authority._next()
        root_ends = authority.active.certificate.not_valid_after_utc.timestamp()
        if coming is None and now >= root_ends - ISSUING_LIFETIME - ROOT_OVERLAP:
            authority = authority.prepare_root(now)
        elif coming is not None and coming.activates_at is not None and now >= coming.activates_at:
            authority = authority.activate_root(now)
        issuing = authority.issuing.certificate
        begins, ends = issuing.not_valid_before_utc.timestamp(), issuing.not_valid_after_utc.timestamp()
        # before it begins: the clock was ahead when it was made, and has been put right since
        early = now < begins and now >= authority.active.certificate.not_valid_before_utc.timestamp()
        if early or now >= (begins + ends) / 2:
            authority = authority.renew_issuing(now)
        return authority

    def _next(self) -> Root | None:
        return next((root for root in self.others if root.activates_at is not None), None)


def _other_root(section: Section) -> Root:
    if section.part == _NEXT and section.key is not None:
        return Root(section.certificate, section.key, activates_at=float(section.about[_ACTIVATES]))
    if section.part == _RETIRING and section.key is None:
        return Root(section.certificate, None, needed_until=float(section.about[_NEEDED]))
    raise ValueError(section.part)


def _check_consistency(authority: CertificateAuthority) -> None:
    """Whether the parts of an authority that was read belong together: its keys, and a chain that it signs.

    :raises AuthorityError: when they do not
    """
    if authority.active.key is None:
        raise AuthorityError(f"authority: the key of the active root is missing; {REMEDY}")
    if sum(root.activates_at is not None for root in authority.others) > 1:
        raise AuthorityError(f"authority: more than one next root; {REMEDY}")
    pairs = [(authority.issuing.certificate, authority.issuing.key)]
    pairs += [(root.certificate, root.key) for root in (authority.active, *authority.others) if root.key is not None]
    for certificate, key in pairs:
        if public_bytes(key.public_key()) != certified_bytes(certificate):
            name = certificate.subject.rfc4514_string()
            raise AuthorityError(f"authority: a key does not belong to {name!a:.200}; {REMEDY}")
    # judged at a moment when all are valid: that one expired is said, with its dates, when it is used
    moment = authority.issuing.certificate.not_valid_before_utc.timestamp()
    try:
        probe = authority.sign_policy_signer(make_csr(new_key()), moment)
        active = replace(authority, others=()).bundle()
        verify_chain(probe.chain_der[0], probe.chain_der[1:], active, moment)
        authority.bundle()
    except CertError as error:
        raise AuthorityError(f"authority: its parts do not belong together: {error}; {REMEDY}") from None


def _new_root(trust_domain: str, now: float) -> Root:
    begins = int(now - MAX_BACKDATE)
    signer = signing_certificate(new_key(), trust_domain, begins, int(now + ROOT_LIFETIME))
    return Root(signer.certificate, signer.key)


def _new_issuing(trust_domain: str, root: Root, now: float) -> Signer:
    if root.key is None:
        raise AuthorityError("root: its key is gone, so it signs nothing more; activate the next root")
    begins = int(max(now - MAX_BACKDATE, root.certificate.not_valid_before_utc.timestamp()))
    ends = int(min(now + ISSUING_LIFETIME, root.certificate.not_valid_after_utc.timestamp()))
    if ends <= now:
        raise AuthorityError("root: it expired, so it signs nothing more; make a new authority and hand out its bundle")
    signer = Signer(root.certificate, root.key)
    return signing_certificate(new_key(), trust_domain, begins, ends, issuer=signer)


def _backdate(lifetime: float) -> float:
    return min(MAX_BACKDATE, lifetime / 10)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
