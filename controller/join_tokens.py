"""One-time join tokens: how a machine without Kubernetes gets its first certificate.

A token's text is ``hedgerow-join.ID.SECRET`` with 256 random bits as the secret. Only the SHA-256 of the secret is
kept: who reads the database can join nothing. (A plain hash is enough for a secret that cannot be guessed.) The ID
finds the token, the secret is compared in constant time, and a wrong secret and an unknown ID take the same path.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from controller.errors import InvalidRequest, JoinTokenError
from graph.model import Instance, WorkloadRef

SECRET_BYTES = 32
MAX_LIFETIME = 30 * 86400.0

_TEXT = re.compile(r"hedgerow-join\.([0-9a-f]{16})\.([A-Za-z0-9_-]{43})")
_NOBODY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What is kept of a token. Times are seconds since the epoch; ``used_at`` is None until it is used.

    :param digest: SHA-256 of the secret, hexadecimal
    :param instance: the instance's name, in the namespace of ``workload``
    :param owner: the person who made it
    """

    id: str
    digest: str
    workload: WorkloadRef
    instance: str
    owner: str
    created_at: float
    expires_at: float
    used_at: float | None = None

    @property
    def instance_key(self) -> str:
        return f"{self.workload.namespace}/{self.instance}"


def make(instance: Instance, expires_in: float, owner: str, now: float) -> tuple[str, JoinToken]:
    """A new token: its text, which is shown once, and what is kept of it.

    :param expires_in: seconds, 30 days at most
    :raises InvalidRequest: when it is out of bounds
    """
    if not 0 < expires_in <= MAX_LIFETIME:
        raise InvalidRequest(
            f"{expires_in} is no lifetime of a join token",
            field="expires_in",
            remedy=f"use more than 0 and at most {MAX_LIFETIME:.0f} seconds",
        )
    token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(SECRET_BYTES)
    token = JoinToken(token_id, _digest(secret), instance.workload, instance.name, owner, now, now + expires_in)
    return f"hedgerow-join.{token_id}.{secret}", token


def check(text: str, tokens: Mapping[str, JoinToken], now: float) -> JoinToken:
    """The token that ``text`` is, if it may be used now.

    :param tokens: by id
    :raises JoinTokenError: telling whether it is unknown, used or expired; never repeating it
    """
    form = _TEXT.fullmatch(text.strip()) if len(text) < 256 else None
    token_id, secret = form.groups() if form is not None else ("", "")
    token = tokens.get(token_id)
    right = hmac.compare_digest(_digest(secret), token.digest if token is not None else _NOBODY)
    if form is None or token is None or not right:
        raise JoinTokenError(
            "the join token is not one of this controller's",
            field="join_token",
            remedy="create one with `hedgerow join-token` and copy all of it",
            code="join-token-unknown",
        )
    if token.used_at is not None:
        raise JoinTokenError(
            f"the join token {token.id} was used before",
            field="join_token",
            remedy="create another one; if nobody of yours used it, quarantine the workload and look at the audit log",
            code="join-token-used",
        )
    if now >= token.expires_at:
        raise JoinTokenError(
            f"the join token {token.id} expired {now - token.expires_at:.0f} s ago",
            field="join_token",
            remedy="create another one",
            code="join-token-expired",
        )
    return token


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
