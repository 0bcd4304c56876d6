"""Checks for values that a person wrote into a settings file, each of which names the field when it refuses one.

A :data:`Check` takes the field's full name (``explicit.outbound[1].listen``) and what was written there, and returns
the value or raises :class:`~sidecar.errors.ConfigError` with what is wrong and what to write instead.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from certs.errors import CertError
from certs.spiffe import check_trust_domain
from sidecar.errors import ConfigError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port. ``host`` is an IP address where the sidecar listens, and may be a name where it connects."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_yaml(data: bytes) -> object:
    """YAML's safe subset, and no key twice: the second would silently replace the first."""
    import yaml  # only here: the parser is not needed again once the sidecar runs

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[object, object]:
        loader.flatten_mapping(node)
        made: dict[object, object] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: {shown(key)} is not a setting's name")
            if key in made:
                raise ConfigError(f"{key}: written twice (line {key_node.start_mark.line + 1}); remove one of them")
            made[key] = loader.construct_object(value_node, deep=True)
        return made

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(data, Loader)  # noqa: S506  # derived from SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"not YAML ({line}); correct the file") from None


_MISSING = object()

type Check[T] = Callable[[str, object], T]
"""Takes the field's full name and what was written there; returns the value or raises ConfigError."""


class FieldReader:
    """Takes the fields of one mapping, one by one, and refuses what is left over."""

    def __init__(self, prefix: str, document: object) -> None:
        if not isinstance(document, Mapping):
            where = prefix or "the settings"
            raise ConfigError(f"{where}: {shown(document)} is not a mapping; write `name: value` lines")
        self._prefix = f"{prefix}." if prefix else ""
        self._left = dict(document)
        self._known: list[str] = []

    def take[T](self, name: str, check: Check[T], default: object = _MISSING) -> T:
        self._known.append(name)
        field = self._prefix + name
        value = self._left.pop(name, _MISSING)
        if value is not _MISSING:
            return check(field, value)
        if default is _MISSING:
            raise ConfigError(f"{field}: missing; add a line `{name}: …`")
        return default  # type: ignore[return-value]  # every default is a value that its check could return

    def finish(self) -> None:
        for name in self._left:
            known = ", ".join(self._known)
            raise ConfigError(f"{self._prefix}{name}: unknown setting; remove it or use one of: {known}")


def shown(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"


def text(field: str, value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(
            f"{field}: {shown(value)} is not text; write a non-empty string (quote it where it is a number)"
        )
    return value


def file_path(field: str, value: object) -> Path:
    return Path(text(field, value))


def instance_name(field: str, value: object) -> str:
    written = text(field, value)
    if not _NAME.fullmatch(written):
        raise ConfigError(
            f"{field}: {written[:60]!r} is not an instance name; use lower-case letters, digits, '-' and '.'"
        )
    return written


def trust_domain_name(field: str, value: object) -> str:
    name = text(field, value)
    try:
        check_trust_domain(name)
    except CertError as error:
        raise ConfigError(f"{field}: {error}; write a name such as hedgerow.local") from None
    return name


def ip_address(field: str, value: object) -> str:
    written = text(field, value)
    try:
        return str(ipaddress.ip_address(written))
    except ValueError:
        raise ConfigError(f"{field}: {written[:60]!r} is not an IP address; write one such as 10.0.0.7") from None


def network(field: str, value: object) -> str:
    written = text(field, value)
    try:
        return str(ipaddress.ip_network(written))
    except ValueError as error:
        raise ConfigError(f"{field}: {error}; write a network such as 10.96.0.0/16") from None


def _split(field: str, value: object) -> tuple[str, int]:
    written = text(field, value)
    host, colon, number = written.rpartition(":")
    if not colon or not number.isascii() or not number.isdigit() or len(number) > 5 or int(number) > 65535:
        raise ConfigError(f"{field}: {written[:80]!r} is not host:port; write it as 10.0.0.1:15012")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{field}: {written[:80]!r} is ambiguous; write an IPv6 address in brackets, [::1]:15012")
    return host, int(number)


def local_address(field: str, value: object) -> Address:
    host, port = _split(field, value)
    return Address(ip_address(field, host), port)


def remote_address(field: str, value: object) -> Address:
    host, port = _split(field, value)
    if port == 0:
        raise ConfigError(f"{field}: port 0 can not be connected to; write the port that the controller listens on")
    try:
        return Address(str(ipaddress.ip_address(host)), port)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise ConfigError(f"{field}: {host[:60]!r} is not a host; write a name or an IP address") from None
        return Address(host, port)


def integer(low: int, high: int) -> Check[int]:
    def check(field: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{field}: {shown(value)} is out of range; write a whole number from {low} to {high}")
        return value

    return check


def seconds(low: float, high: float) -> Check[float]:
    def check(field: str, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{field}: {shown(value)} is out of range; write seconds from {low:g} to {high:g}")
        return float(value)

    return check


def one_of(allowed: tuple[str, ...]) -> Check[str]:
    def check(field: str, value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ConfigError(f"{field}: {shown(value)} is not a choice; write one of: {', '.join(allowed)}")
        return value

    return check


def choice[E: StrEnum](kind: type[E]) -> Check[E]:
    check = one_of(tuple(kind))
    return lambda field, value: kind(check(field, value))


def optional[T](check: Check[T]) -> Check[T | None]:
    return lambda field, value: None if value is None else check(field, value)


def list_of[T](check: Check[T], at_least: int = 0) -> Check[tuple[T, ...]]:
    def check_all(field: str, value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ConfigError(f"{field}: {shown(value)} is not a list; write `- value` lines below it")
        if len(value) < at_least:
            raise ConfigError(f"{field}: empty; write at least {at_least} entry")
        return tuple(check(f"{field}[{i}]", item) for i, item in enumerate(value))

    return check_all


def destination_address(field: str, value: object) -> Address:
    address = local_address(field, value)
    if address.port == 0:
        raise ConfigError(f"{field}: port 0 can not be connected to; write the port that is served there")
    return address
