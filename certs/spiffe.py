"""SPIFFE IDs: the names of workloads, as a type.

An ID that exists is valid: :class:`SpiffeId` checks every rule of the SPIFFE-ID document (sections 2.1 to 2.3) when
it is made, however it is made. Only the canonical spelling is taken: section 2.4 lets readers ignore the case of
the scheme and of the trust domain, section 2.1 has issuers write both in lower case; one spelling per identity
keeps comparison exact.

Hedgerow's own IDs are ``spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT[/wl/WORKLOAD]`` with Kubernetes names in the
places. Any other path is a valid SPIFFE ID, and names no namespace, account or workload.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Self

from certs.errors import InvalidSpiffeId

#: The DNS name in the controller's certificate: gRPC clients can only check names. No other certificate carries one.
CONTROLLER_DNS_NAME = "hedgerow-controller.hedgerow-system.svc"

CONTROLLER_NAMESPACE = "hedgerow-system"
CONTROLLER_ACCOUNT = "hedgerow-controller"

#: SPIFFE-ID section 2.3, in bytes; all of an ID is ASCII.
MAX_ID_LENGTH = 2048
MAX_TRUST_DOMAIN_LENGTH = 255

_SCHEME = "spiffe://"
# \Z and fullmatch, never $: that one also matches before a final newline
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """One SPIFFE ID.

    :param trust_domain: the authority part, such as ``hedgerow.local``
    :param path: ``""`` for the trust domain itself, otherwise it begins with ``/``
    :raises InvalidSpiffeId: when any rule of the SPIFFE-ID document is broken

    ``namespace``, ``service_account`` and ``workload`` are Kubernetes names, and empty when the path does not give
    them.
    """

    trust_domain: str
    path: str = ""
    namespace: str = field(init=False, compare=False, repr=False, default="")
    service_account: str = field(init=False, compare=False, repr=False, default="")
    workload: str = field(init=False, compare=False, repr=False, default="")

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        _check_path(self.path)
        length = len(_SCHEME) + len(self.trust_domain) + len(self.path)
        if length > MAX_ID_LENGTH:
            raise InvalidSpiffeId(f"SPIFFE ID: {length} bytes long, at most {MAX_ID_LENGTH} are permitted")
        for name, value in zip(("namespace", "service_account", "workload"), _names(self.path), strict=True):
            object.__setattr__(self, name, value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an ID such as ``spiffe://hedgerow.local/ns/shop/sa/default/wl/cart``.

        :raises InvalidSpiffeId: when ``text`` is not one, in its canonical spelling
        """
        if len(text) > MAX_ID_LENGTH:
            raise InvalidSpiffeId(f"SPIFFE ID: {len(text)} characters long, at most {MAX_ID_LENGTH} are permitted")
        if not text.startswith(_SCHEME):
            raise InvalidSpiffeId(f"SPIFFE ID {_shown(text)}: the scheme is not 'spiffe://', written in lower case")
        trust_domain, slash, path = text[len(_SCHEME) :].partition("/")
        return cls(trust_domain, slash + path)

    @classmethod
    def for_workload(cls, trust_domain: str, namespace: str, service_account: str, workload: str) -> Self:
        """The ID of one workload.

        :raises InvalidSpiffeId: when a part is not a Kubernetes name
        """
        _check_name("namespace", namespace, _LABEL)
        _check_name("service account", service_account, _SUBDOMAIN)
        _check_name("workload", workload, _SUBDOMAIN)
        return cls(trust_domain, f"/ns/{namespace}/sa/{service_account}/wl/{workload}")

    @classmethod
    def for_account(cls, trust_domain: str, namespace: str, service_account: str) -> Self:
        """The ID of a service account, shared by all workloads that run as it.

        :raises InvalidSpiffeId: when a part is not a Kubernetes name
        """
        _check_name("namespace", namespace, _LABEL)
        _check_name("service account", service_account, _SUBDOMAIN)
        return cls(trust_domain, f"/ns/{namespace}/sa/{service_account}")

    @classmethod
    def controller(cls, trust_domain: str) -> Self:
        """The ID of the controller."""
        return cls.for_account(trust_domain, CONTROLLER_NAMESPACE, CONTROLLER_ACCOUNT)

    @classmethod
    def policy_signer(cls, trust_domain: str) -> Self:
        """The ID that signs policy snapshots.

        It is not of the workload form, so no rule about workloads can select it.
        """
        return cls(trust_domain, f"/ns/{CONTROLLER_NAMESPACE}/sa/{CONTROLLER_ACCOUNT}/policy-signer")

    @classmethod
    def of_trust_domain(cls, trust_domain: str) -> Self:
        """The ID of a trust domain, which its signing certificates carry (X509-SVID section 3.2)."""
        return cls(trust_domain)

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"


def check_trust_domain(name: str) -> None:
    """Apply the rules for trust domain names (SPIFFE-ID section 2.1).

    :raises InvalidSpiffeId: when one is broken
    """
    if not name:
        raise InvalidSpiffeId("SPIFFE ID: the trust domain is empty")
    if len(name) > MAX_TRUST_DOMAIN_LENGTH:
        raise InvalidSpiffeId(
            f"trust domain: {len(name)} characters long, at most {MAX_TRUST_DOMAIN_LENGTH} are permitted"
        )
    if not _TRUST_DOMAIN.fullmatch(name):
        raise InvalidSpiffeId(
            f"trust domain {_shown(name)}: only lower-case letters, digits, '.', '-' and '_' are permitted; "
            "no user, port, query, fragment or percent-encoding"
        )


def _check_path(path: str) -> None:
    """SPIFFE-ID section 2.2."""
    if not path:
        return
    if not path.startswith("/"):
        raise InvalidSpiffeId(f"SPIFFE ID path {_shown(path)}: it must begin with '/'")
    for segment in path[1:].split("/"):
        if not segment:
            raise InvalidSpiffeId(f"SPIFFE ID path {_shown(path)}: it has an empty segment or ends in '/'")
        if segment in (".", ".."):
            raise InvalidSpiffeId(f"SPIFFE ID path {_shown(path)}: '.' and '..' are not permitted as segments")
        if not _SEGMENT.fullmatch(segment):
            raise InvalidSpiffeId(
                f"SPIFFE ID path {_shown(path)}: only letters, digits, '.', '-' and '_' are permitted in a segment; "
                "no query, fragment or percent-encoding"
            )


def _names(path: str) -> tuple[str, str, str]:
    """Namespace, account and workload of a path of Hedgerow's form; empty where it is not.

    Segments that are not Kubernetes names give nothing: ``/ns/-/…`` must never read as the namespace of what is
    outside.
    """
    match path.split("/"):
        case ["", "ns", namespace, "sa", account]:
            workload = ""
        case ["", "ns", namespace, "sa", account, "wl", workload] if _is_name(workload, _SUBDOMAIN):
            pass
        case _:
            return "", "", ""
    if not _is_name(namespace, _LABEL) or not _is_name(account, _SUBDOMAIN):
        return "", "", ""
    return namespace, account, workload


def check_instance_name(name: str) -> None:
    """Instances are named as Kubernetes names pods (RFC 1123 subdomains).

    :raises InvalidSpiffeId: when ``name`` is not of that form
    """
    _check_name("instance", name, _SUBDOMAIN)


def check_uid(uid: str) -> None:
    """What tells an instance from others of its name is written as one, too; Kubernetes gives UUIDs.

    :raises InvalidSpiffeId: when ``uid`` is not of that form
    """
    _check_name("uid", uid, _SUBDOMAIN)


def _is_name(text: str, pattern: re.Pattern[str]) -> bool:
    return len(text) <= 253 and pattern.fullmatch(text) is not None


def _check_name(field_name: str, text: str, pattern: re.Pattern[str]) -> None:
    if not _is_name(text, pattern):
        raise InvalidSpiffeId(
            f"{field_name} {_shown(text)}: not a Kubernetes name; use lower-case letters, digits and '-'"
            f"{'' if pattern is _LABEL else ' or .'}, {63 if pattern is _LABEL else 253} characters at most"
        )


def _shown(text: str) -> str:
    """Quoted for a message: a hostile text neither floods a log nor breaks its lines."""
    return ascii(text if len(text) <= 100 else text[:100] + "…")
