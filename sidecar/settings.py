"""The sidecar's settings: ``sidecar.yaml``, read strictly into one immutable value.

The governing rule: a setting that is not understood is refused, never ignored; a misspelt ``unsynced: dney`` must not
leave a workload open. Every refusal is a :class:`~sidecar.errors.ConfigError` that names the field, what is wrong with
it and what to write instead.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sidecar.errors import ConfigError

#: A settings file is a page of text; more than this is a mistake.
MAX_FILE_BYTES = 256 * 1024

_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9._]{0,253}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?")
_LEVELS = ("debug", "info", "warning", "error")


class Capture(StrEnum):
    """How connections reach the sidecar."""

    REDIRECT = "redirect"
    """By nft or iptables in the pod's network namespace; the original destination comes from the kernel."""
    EXPLICIT = "explicit"
    """On declared local ports; the original destination comes from this file."""


class Unsynced(StrEnum):
    """What holds before any snapshot was received."""

    DENY = "deny"
    LEARN = "learn"


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port. ``host`` is an IP address where the sidecar listens, and may be a name where it connects."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


#: Istio's ports, so that people's firewalls and habits fit.
OUTBOUND_LISTEN = Address("127.0.0.1", 15001)
INBOUND_LISTEN = Address("0.0.0.0", 15006)
READY_LISTEN = Address("0.0.0.0", 15021)


@dataclass(frozen=True, slots=True)
class OutboundListener:
    """Explicit mode: what connects to ``listen`` is meant for ``destination``."""

    listen: Address
    destination: Address


@dataclass(frozen=True, slots=True)
class InboundListener:
    """Explicit mode: what connects to ``listen`` is meant for our ``application``."""

    listen: Address
    application: Address


@dataclass(frozen=True, slots=True)
class Explicit:
    """The declared ports of explicit mode."""

    outbound: tuple[OutboundListener, ...] = ()
    inbound: tuple[InboundListener, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the sidecar is told from outside.

    :param instance: the name of this replica, unique in its namespace
    :param controller: the controller's gRPC listener that wants our certificate
    :param issuer: the controller's gRPC listener that takes a join token instead
    :param trust_bundle: PEM roots that the first connection to the issuer is checked against
    :param join_token_file: holds the one-time token; deleted after use
    :param addresses: the pod's own IP addresses
    :param uid: the user whose connections are not captured: the sidecar's own
    :param mark: a firewall mark that exempts the sidecar's own connections where users can not be told apart
    :param exclude_cidrs: destinations that are not captured
    :param report_interval: seconds between two reports of flows
    :param drain_seconds: how long open connections may go on after SIGTERM
    """

    instance: str
    controller: Address
    issuer: Address
    trust_domain: str
    trust_bundle: Path
    state_dir: Path
    addresses: tuple[str, ...]
    join_token_file: Path | None = None
    capture: Capture = Capture.REDIRECT
    uid: int = 1337
    mark: int | None = None
    unsynced: Unsynced = Unsynced.DENY
    outbound_listen: Address = OUTBOUND_LISTEN
    inbound_listen: Address = INBOUND_LISTEN
    ready_listen: Address = READY_LISTEN
    exclude_cidrs: tuple[str, ...] = ()
    explicit: Explicit = Explicit()
    report_interval: float = 1.0
    drain_seconds: float = 5.0
    log_level: str = "info"

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read a settings file.

        :raises ConfigError: when it can not be read, is not YAML, or breaks a rule of :meth:`parse`
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}; name a readable file with --config") from None
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: more than {MAX_FILE_BYTES} bytes; this is not a settings file")
        try:
            return cls.parse(_read_yaml(data))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, document: object) -> Settings:
        """Check a document that was read from YAML and make settings of it.

        :raises ConfigError: naming the field, what is wrong with it and the remedy
        """
        reader = _Reader("", document)
        capture = reader.take("capture", _choice(Capture), default=Capture.REDIRECT)
        settings = cls(
            instance=reader.take("instance", _name),
            controller=reader.take("controller", _remote),
            issuer=reader.take("issuer", _remote),
            trust_domain=reader.take("trust_domain", _trust_domain),
            trust_bundle=reader.take("trust_bundle", _path),
            state_dir=reader.take("state_dir", _path),
            addresses=reader.take("addresses", _list(_ip, at_least=1)),
            join_token_file=reader.take("join_token_file", _optional(_path), default=None),
            capture=capture,
            uid=reader.take("uid", _integer(0, 2**32 - 2), default=1337),
            mark=reader.take("mark", _optional(_integer(1, 2**32 - 1)), default=None),
            unsynced=reader.take("unsynced", _choice(Unsynced), default=Unsynced.DENY),
            outbound_listen=reader.take("outbound_listen", _local, default=OUTBOUND_LISTEN),
            inbound_listen=reader.take("inbound_listen", _local, default=INBOUND_LISTEN),
            ready_listen=reader.take("ready_listen", _local, default=READY_LISTEN),
            exclude_cidrs=reader.take("exclude_cidrs", _list(_network), default=()),
            explicit=reader.take("explicit", _explicit, default=Explicit()),
            report_interval=reader.take("report_interval", _seconds(0.05, 300), default=1.0),
            drain_seconds=reader.take("drain_seconds", _seconds(0, 3600), default=5.0),
            log_level=reader.take("log_level", _one_of(_LEVELS), default="info"),
        )
        reader.finish()
        settings._check_whole()
        return settings

    def _check_whole(self) -> None:
        explicit = bool(self.explicit.outbound or self.explicit.inbound)
        if self.capture is Capture.EXPLICIT and not explicit:
            raise ConfigError("explicit: missing; capture: explicit needs explicit.outbound or explicit.inbound")
        if self.capture is Capture.REDIRECT and explicit:
            raise ConfigError("explicit: set with capture: redirect; remove it, or write capture: explicit")
        taken: dict[tuple[str, int], str] = {}
        for field, address in self._listeners():
            if address.port == 0:
                continue
            other = taken.setdefault((address.host, address.port), field)
            if other != field:
                raise ConfigError(f"{field}: {address} is taken by {other}; give each its own port")

    def _listeners(self) -> list[tuple[str, Address]]:
        listeners = [("ready_listen", self.ready_listen)]
        if self.capture is Capture.REDIRECT:
            listeners += [("outbound_listen", self.outbound_listen), ("inbound_listen", self.inbound_listen)]
        listeners += [(f"explicit.outbound[{i}].listen", o.listen) for i, o in enumerate(self.explicit.outbound)]
        listeners += [(f"explicit.inbound[{i}].listen", o.listen) for i, o in enumerate(self.explicit.inbound)]
        return listeners


def _read_yaml(data: bytes) -> object:
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
                raise ConfigError(f"line {key_node.start_mark.line + 1}: {_kind(key)} is not a setting's name")
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

type _Check[T] = Callable[[str, object], T]
"""Takes the field's full name and what was written there; returns the value or raises ConfigError."""


class _Reader:
    """Takes the fields of one mapping, one by one, and refuses what is left over."""

    def __init__(self, prefix: str, document: object) -> None:
        if not isinstance(document, Mapping):
            where = prefix or "the settings"
            raise ConfigError(f"{where}: {_kind(document)} is not a mapping; write `name: value` lines")
        self._prefix = f"{prefix}." if prefix else ""
        self._left = dict(document)
        self._known: list[str] = []

    def take[T](self, name: str, check: _Check[T], default: object = _MISSING) -> T:
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


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"


def _text(field: str, value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(
            f"{field}: {_kind(value)} is not text; write a non-empty string (quote it where it is a number)"
        )
    return value


def _path(field: str, value: object) -> Path:
    return Path(_text(field, value))


def _name(field: str, value: object) -> str:
    text = _text(field, value)
    if not _NAME.fullmatch(text):
        raise ConfigError(
            f"{field}: {text[:60]!r} is not an instance name; use lower-case letters, digits, '-' and '.'"
        )
    return text


def _trust_domain(field: str, value: object) -> str:
    text = _text(field, value)
    if not _DOMAIN.fullmatch(text):
        raise ConfigError(f"{field}: {text[:60]!r} is not a trust domain; write a name such as hedgerow.local")
    return text


def _ip(field: str, value: object) -> str:
    text = _text(field, value)
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ConfigError(f"{field}: {text[:60]!r} is not an IP address; write one such as 10.0.0.7") from None


def _network(field: str, value: object) -> str:
    text = _text(field, value)
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ConfigError(f"{field}: {error}; write a network such as 10.96.0.0/16") from None


def _split(field: str, value: object) -> tuple[str, int]:
    text = _text(field, value)
    host, colon, number = text.rpartition(":")
    if not colon or not number.isascii() or not number.isdigit() or len(number) > 5 or int(number) > 65535:
        raise ConfigError(f"{field}: {text[:80]!r} is not host:port; write it as 10.0.0.1:15012")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{field}: {text[:80]!r} is ambiguous; write an IPv6 address in brackets, [::1]:15012")
    return host, int(number)


def _local(field: str, value: object) -> Address:
    host, port = _split(field, value)
    return Address(_ip(field, host), port)


def _remote(field: str, value: object) -> Address:
    host, port = _split(field, value)
    if port == 0:
        raise ConfigError(f"{field}: port 0 can not be connected to; write the port that the controller listens on")
    try:
        return Address(str(ipaddress.ip_address(host)), port)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise ConfigError(f"{field}: {host[:60]!r} is not a host; write a name or an IP address") from None
        return Address(host, port)


def _integer(low: int, high: int) -> _Check[int]:
    def check(field: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{field}: {_kind(value)} is out of range; write a whole number from {low} to {high}")
        return value

    return check


def _seconds(low: float, high: float) -> _Check[float]:
    def check(field: str, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{field}: {_kind(value)} is out of range; write seconds from {low:g} to {high:g}")
        return float(value)

    return check


def _one_of(allowed: tuple[str, ...]) -> _Check[str]:
    def check(field: str, value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise ConfigError(f"{field}: {_kind(value)} is not a choice; write one of: {', '.join(allowed)}")
        return value

    return check


def _choice[E: StrEnum](kind: type[E]) -> _Check[E]:
    one_of = _one_of(tuple(kind))
    return lambda field, value: kind(one_of(field, value))


def _optional[T](check: _Check[T]) -> _Check[T | None]:
    return lambda field, value: None if value is None else check(field, value)


def _list[T](check: _Check[T], at_least: int = 0) -> _Check[tuple[T, ...]]:
    def check_all(field: str, value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ConfigError(f"{field}: {_kind(value)} is not a list; write `- value` lines below it")
        if len(value) < at_least:
            raise ConfigError(f"{field}: empty; write at least {at_least} entry")
        return tuple(check(f"{field}[{i}]", item) for i, item in enumerate(value))

    return check_all


def _outbound(field: str, value: object) -> OutboundListener:
    reader = _Reader(field, value)
    listener = OutboundListener(reader.take("listen", _local), reader.take("destination", _destination))
    reader.finish()
    return listener


def _inbound(field: str, value: object) -> InboundListener:
    reader = _Reader(field, value)
    listener = InboundListener(reader.take("listen", _local), reader.take("application", _destination))
    reader.finish()
    return listener


def _destination(field: str, value: object) -> Address:
    address = _local(field, value)
    if address.port == 0:
        raise ConfigError(f"{field}: port 0 can not be connected to; write the port that is served there")
    return address


def _explicit(field: str, value: object) -> Explicit:
    reader = _Reader(field, value)
    explicit = Explicit(
        outbound=reader.take("outbound", _list(_outbound), default=()),
        inbound=reader.take("inbound", _list(_inbound), default=()),
    )
    reader.finish()
    return explicit
