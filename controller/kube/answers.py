"""From what went wrong with one request to one of our exceptions, with the remedy. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from controller.kube.errors import (
    Conflicting,
    Expired,
    Forbidden,
    KubernetesError,
    NoSuchObject,
    NoSuchResource,
    Refused,
    Unauthorized,
    Unreachable,
    Untrusted,
)
from controller.kube.kinds import Resource
from graph.text import printable

#: How RBAC (and nothing else that answers 403) says whom it refuses.
_DENIED = re.compile(r'User "(?P<user>[^"]{1,512})" cannot (?P<verb>[a-z]+) (?:resource|path) "(?P<what>[^"]{1,512})"')
_SHOWN = 600


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked, in RBAC's words.

    :param verb: ``get``, ``list``, ``watch``, ``create``, ``update``, ``patch``, ``delete``
    """

    verb: str
    path: str
    resource: Resource | None = None
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    def __str__(self) -> str:
        if self.resource is None:
            return f"{self.verb} {self.path}"
        what = f"{self.resource}/{self.subresource}" if self.subresource else str(self.resource)
        where = f" in {self.namespace}" if self.namespace else ""
        return f"{self.verb} {what}{f' {self.name}' if self.name else ''}{where}"


def unreachable(call: Call, error: Exception, host: str = "") -> Unreachable:
    """No answer, or half of one."""
    why = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
    where = f" at {host}" if host else ""
    return Unreachable(
        f"{call}: the API server{where} does not answer: {printable(why)[:_SHOWN]}",
        remedy="what is in force stays; check the address, the network and whether the API server runs",
    )


def untrusted(call: Call, error: Exception, host: str) -> Untrusted:
    """The TLS handshake failed."""
    return Untrusted(
        f"{call}: {host} did not prove that it is our API server, or refused our certificate: "
        f"{printable(str(error))[:_SHOWN]}",
        remedy="what is in force stays; check the CA (certificate-authority), the server's name, and whether the "
        "client certificate has expired",
    )


def refusal_of(call: Call, status: int, headers: Mapping[str, str], body: bytes) -> KubernetesError:
    """What an answer that is no success means.

    :param body: a ``Status`` object, when the API server itself answered
    """
    reason, message = _said(body)
    text = f"{call}: {message or f'HTTP {status}'}"
    if status == 401:
        return Unauthorized(
            f"{call}: the API server does not know us",
            status=status,
            reason=reason,
            remedy="the token or client certificate is wrong or has expired: make a new kubeconfig, or check that the "
            "pod's ServiceAccount exists; it is read again by itself",
        )
    if status == 403:
        denied = _DENIED.search(message)
        if denied is not None:
            return Forbidden(text, status=status, reason=reason, remedy=_missing_rule(call, denied["user"]))
        return Refused(text, status=status, reason=reason, remedy="an admission rule or a quota refuses it")
    if status == 404:
        if call.name or (call.verb == "create" and "namespaces" in message):
            return NoSuchObject(text, status=status, reason=reason)
        return NoSuchResource(
            f"{call}: the API server has no such resource",
            status=status,
            reason=reason,
            remedy="install the CRDs of this version (`helm upgrade` with charts/hedgerow), or update the cluster",
        )
    if status == 409:
        return Conflicting(text, status=status, reason=reason)
    if status == 410 or reason == "Expired":
        return Expired(text, status=status, reason=reason)
    if status in (408, 429) or status >= 500:
        return Unreachable(
            text,
            status=status,
            reason=reason,
            remedy="what is in force stays; it is tried again",
            retry_after=_seconds(headers.get("Retry-After", "")),
        )
    return Refused(text, status=status, reason=reason, remedy="see the API server's message")


def _missing_rule(call: Call, user: str) -> str:
    """The line of RBAC that would allow it."""
    if call.resource is None:
        rule = f'nonResourceURLs: ["{call.path}"], verbs: ["{call.verb}"]'
    else:
        what = f"{call.resource.plural}/{call.subresource}" if call.subresource else call.resource.plural
        rule = f'apiGroups: ["{call.resource.group}"], resources: ["{what}"], verbs: ["{call.verb}"]'
    _, _, account = user.partition("system:serviceaccount:")
    namespace, _, name = account.partition(":")
    whose = f"ServiceAccount {name} in {namespace}" if account else f"user {printable(user)}"
    return f"add {{{rule}}} to a role of {whose} (`helm upgrade` puts ours back)"


def _said(body: bytes) -> tuple[str, str]:
    """``reason`` and ``message`` of a Status object; of anything else its beginning."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return "", printable(body[:_SHOWN].decode(errors="replace"))
    if not isinstance(found, dict):
        return "", ""
    return printable(str(found.get("reason") or "")), printable(str(found.get("message") or ""))[:_SHOWN]


def _seconds(written: str) -> float:
    return float(written) if written.isascii() and written.isdigit() and len(written) < 6 else 0.0
