"""Who may use the web API: bearer tokens with roles, and the checks that keep other pages' scripts out.

A token is a person's whole authority, so it is never held: what is kept is its SHA-256, and a presented token is hashed
and compared with every one in constant time. (A slow hash would add nothing: the tokens are 256 random bits.)

``Host`` must be a name that we were told to serve, which ends DNS rebinding; ``Origin``, where a browser sends one,
must be that very host, which ends requests of other pages' scripts (Fetch standard, section 3.2).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from controller.errors import ConfigError

#: What a token file holds: one token, 256 random bits in URL-safe base 64.
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,512}")
_BEARER = re.compile(r"[Bb]earer +([A-Za-z0-9_-]{1,512})")


class Role(StrEnum):
    """What a token permits."""

    VIEWER = "viewer"
    OPERATOR = "operator"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("ascii")).digest()


class Tokens:
    """The tokens that open the API, as hashes.

    :param roles: role by token hash (SHA-256)
    """

    def __init__(self, roles: Mapping[bytes, Role]) -> None:
        self._roles = tuple(roles.items())

    def __repr__(self) -> str:
        return f"Tokens({len(self._roles)})"

    @classmethod
    def open(cls, state_dir: Path) -> Tokens:
        """Read ``operator.token`` and ``viewer.token`` of the state directory; make what is missing, mode 0600.

        :raises ConfigError: when one can not be read, can be read by others, or holds no token
        """
        roles: dict[bytes, Role] = {}
        for role in (Role.VIEWER, Role.OPERATOR):
            token = _read_or_make(state_dir / f"{role}.token")
            if roles.get(_digest(token)) is not None:
                raise ConfigError(
                    "viewer.token and operator.token hold the same token",
                    remedy="delete viewer.token; a new one is made",
                )
            roles[_digest(token)] = role
        return cls(roles)

    def role(self, authorization: str | None) -> Role | None:
        """The role of an ``Authorization`` header's token (RFC 6750 section 2.1); None when it opens nothing."""
        found = _BEARER.fullmatch(authorization or "")
        presented = _digest(found[1]) if found else b"\0" * 32
        role: Role | None = None
        for held, held_role in self._roles:  # no early end: time tells nothing about which one matched
            if hmac.compare_digest(presented, held):
                role = held_role
        return role


def _read_or_make(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return _make(path)
    except OSError as error:
        raise ConfigError(
            f"{path} can not be read: {error.strerror}", remedy="make it a plain file of the controller's user"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise ConfigError(f"{path} can be read by others", remedy=f"chmod 600 {path}, and delete it to renew it")
        token = file.read(1024).decode("ascii", "replace").strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{path} holds no token", remedy="delete it; a new one is made at the next start")
    return token


def _make(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
    except OSError as error:
        raise ConfigError(
            f"{path} can not be written: {error.strerror}", remedy="make the state directory writable"
        ) from None
    return token


@dataclass(frozen=True, slots=True)
class Hosts:
    """The names under which we serve.

    :param names: lower case, without brackets and port
    """

    names: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> Hosts:
        return cls(frozenset(name.lower() for name in names))

    def serves(self, host: str) -> bool:
        """Whether a ``Host`` header (``name``, ``name:port``, ``[::1]:port``) is one of ours; the port is not compared:
        behind a port forwarding it is another one."""
        name = _host_of(host)
        return name is not None and name in self.names

    def same_origin(self, origin: str, host: str) -> bool:
        """Whether ``Origin`` (RFC 6454 section 7) is the host and port that the request was sent to."""
        parts = _split(origin)
        return parts is not None and parts[0] in ("http", "https") and parts[1] == host.lower() and self.serves(host)


def _split(origin: str) -> tuple[str, str] | None:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    return parts.scheme, parts.netloc.lower()


def _host_of(host: str) -> str | None:
    if host.startswith("["):
        literal, bracket, rest = host[1:].partition("]")
        if not bracket or (rest and not _is_port(rest)):
            return None
        try:
            return str(ipaddress.IPv6Address(literal))
        except ValueError:
            return None
    name, colon, _ = host.partition(":")
    if colon and not _is_port(host[len(name) :]):
        return None
    return name.lower().removesuffix(".") or None


def _is_port(text: str) -> bool:
    return re.fullmatch(r":[0-9]{1,5}", text) is not None
