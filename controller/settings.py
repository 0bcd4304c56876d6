"""The controller's settings: ``controller.yaml``, read strictly into one immutable value.

A setting that is not understood is refused, never ignored, and so is a combination that would serve people's tokens
in clear on a network. Every refusal is a :class:`~controller.errors.ConfigError` with field and remedy. Relative paths
are relative to the file that names them, so that the controller can be started from anywhere.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from certs.errors import CertError
from certs.spiffe import SpiffeId
from controller.errors import ConfigError
from controller.fields import (
    Check,
    Fields,
    Unfit,
    host_name,
    integer,
    ip_and_port,
    items,
    kind,
    optional,
    refusal,
    seconds,
    text,
    unfit,
    word,
)
from controller.learner import Gate
from graph.errors import InvalidValue

#: A settings file is a page of text; more than this is a mistake.
MAX_FILE_BYTES = 256 * 1024

_INHERITED = re.compile(r"fd:([0-9]{1,6})")

#: Names under which a page on this machine is reached.
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens. Port 0 takes a free one, which the log then names."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback


@dataclass(frozen=True, slots=True)
class InheritedSocket:
    """A listening socket that whoever started us has opened: ``fd:3``."""

    descriptor: int

    def __str__(self) -> str:
        return f"fd:{self.descriptor}"


@dataclass(frozen=True, slots=True)
class WebTls:
    """PEM files for HTTPS: the certificate with its chain, and its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the controller is told from outside.

    :param state_dir: keys, database and tokens; private to the controller (0700)
    :param inventory: the file that says which workloads, instances and services there are
    :param grpc_listen: mutual TLS: renewal, telemetry, policy, directory
    :param issuer_listen: server TLS: the first signature, against a join token
    :param web_listen: the web API and page
    :param web_hosts: the names under which people reach the page; any other ``Host`` is refused
    :param web_tls: serve HTTPS; required off loopback
    :param svid_lifetime: seconds that a workload's certificate holds; renewed at half of it
    :param inventory_interval: seconds between two looks at the inventory file for changes
    :param learning: when an edge has been seen often and long enough
    :param sse_clients: the most live streams that the page and the command may hold open together
    """

    state_dir: Path
    inventory: Path
    trust_domain: str = "hedgerow.local"
    grpc_listen: Address = Address("0.0.0.0", 15012)
    issuer_listen: Address = Address("0.0.0.0", 15013)
    web_listen: Address | InheritedSocket = Address("127.0.0.1", 8080)
    web_hosts: tuple[str, ...] = ()
    web_tls: WebTls | None = None
    svid_lifetime: float = 3600.0
    inventory_interval: float = 1.0
    learning: Gate = field(default_factory=Gate)
    sse_clients: int = 64
    log_level: str = "info"

    @classmethod
    def load(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Settings:
        """Read a settings file.

        :param overrides: top-level settings that replace those of the file (from the command line); their relative
            paths are relative to the working directory
        :raises ConfigError: when it can not be read, is not YAML, or breaks a rule of :meth:`parse`
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigError(
                f"{path} can not be read: {error.strerror}", remedy="name a readable file with --config"
            ) from None
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes", remedy="this is not a settings file")
        document = read_yaml(data)
        if not isinstance(document, Mapping):
            raise ConfigError(f"{path}: {kind(document)} is not a mapping", remedy="write `name: value` lines")
        given = {name: value for name, value in (overrides or {}).items() if value is not None}
        for name in ("state_dir", "inventory"):
            if isinstance(given.get(name), str):
                given[name] = str(Path.cwd() / given[name])
        return cls.parse({**document, **given}, base=path.absolute().parent)

    @classmethod
    def parse(cls, document: object, base: Path) -> Settings:
        """Check a document that was read from YAML and make settings of it.

        :param base: the folder that relative paths start from
        :raises ConfigError: naming the field, what is wrong with it and the remedy
        """
        path = _path(base)
        fields = Fields(document, refusal(ConfigError), noun="setting")
        settings = cls(
            state_dir=fields.take("state_dir", path),
            inventory=fields.take("inventory", path),
            trust_domain=fields.take("trust_domain", _trust_domain, "hedgerow.local"),
            grpc_listen=fields.take("grpc_listen", _address, Address("0.0.0.0", 15012)),
            issuer_listen=fields.take("issuer_listen", _address, Address("0.0.0.0", 15013)),
            web_listen=fields.take("web_listen", _web_listen, Address("127.0.0.1", 8080)),
            web_hosts=fields.take("web_hosts", items(host_name, at_most=64), ()),
            web_tls=fields.take("web_tls", optional(_web_tls(path)), None),
            svid_lifetime=fields.take("svid_lifetime", seconds(2, 86400), 3600.0),
            inventory_interval=fields.take("inventory_interval", seconds(0.05, 3600), 1.0),
            learning=fields.take("learning", _gate, Gate()),
            sse_clients=fields.take("sse_clients", integer(1, 10_000), 64),
            log_level=fields.take("log_level", word("debug", "info", "warning", "error"), "info"),
        )
        fields.finish()
        settings._check_whole()
        return settings

    def _check_whole(self) -> None:
        web = self.web_listen
        if isinstance(web, Address) and not web.is_loopback and self.web_tls is None:
            raise ConfigError(
                f"{web} is not a loopback address, and tokens would cross the network in clear",
                field="web_listen",
                remedy="listen on 127.0.0.1, or set web_tls to {certificate: FILE, key: FILE}",
            )
        taken: dict[tuple[str, int], str] = {}
        for name, address in self._addresses():
            if address.port and (other := taken.setdefault((address.host, address.port), name)) != name:
                raise ConfigError(f"{address} is taken by {other}", field=name, remedy="give each its own port")

    def _addresses(self) -> list[tuple[str, Address]]:
        listeners = [("grpc_listen", self.grpc_listen), ("issuer_listen", self.issuer_listen)]
        if isinstance(self.web_listen, Address):
            listeners.append(("web_listen", self.web_listen))
        return listeners


def read_yaml(data: bytes) -> object:
    """YAML's safe subset, and no key twice: the second would silently replace the first.

    :raises ConfigError: naming the line
    """

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[object, object]:
        loader.flatten_mapping(node)
        made: dict[object, object] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"line {line}: {kind(key)} is not a setting's name", remedy="write `name: value`")
            if key in made:
                raise ConfigError(f"written twice (line {line})", field=key, remedy="remove one of them")
            made[key] = loader.construct_object(value_node, deep=True)
        return made

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(data, Loader)  # noqa: S506  # derived from SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}", remedy="correct the file") from None


def _path(base: Path) -> Check[Path]:
    return lambda value: base / text(4096)(value)


def _address(value: object) -> Address:
    return Address(*ip_and_port(value))


def _web_listen(value: object) -> Address | InheritedSocket:
    if isinstance(value, str) and (inherited := _INHERITED.fullmatch(value)):
        return InheritedSocket(int(inherited[1]))
    if isinstance(value, str) and value.startswith("fd:"):
        raise Unfit(f"{value[:40]!r} names no descriptor", "write fd:3 for the inherited socket with number 3")
    return _address(value)


def _trust_domain(value: object) -> str:
    name = text(255)(value)
    try:
        return SpiffeId.controller(name).trust_domain
    except CertError as error:
        raise Unfit(str(error), "write a lower-case name such as hedgerow.local") from None


def _web_tls(path: Check[Path]) -> Check[WebTls]:
    def check(value: object) -> WebTls:
        fields = Fields(value, unfit, noun="setting")
        tls = WebTls(fields.take("certificate", path), fields.take("key", path))
        fields.finish()
        return tls

    return check


def _gate(value: object) -> Gate:
    fields = Fields(value, unfit, noun="setting")
    standard = Gate()
    day = 86400.0
    try:
        gate = Gate(
            min_connections=fields.take("min_connections", integer(1, 10**9), standard.min_connections),
            min_seconds=fields.take("min_seconds", seconds(0, 365 * day), standard.min_seconds),
            quiet_seconds=fields.take("quiet_seconds", seconds(0, 365 * day), standard.quiet_seconds),
            stale_after=fields.take("stale_after", seconds(1, 3650 * day), standard.stale_after),
            retire_after=fields.take("retire_after", seconds(1, 3650 * day), standard.retire_after),
        )
    except InvalidValue as error:
        raise Unfit(error.problem, error.remedy, "." + error.field.rpartition(".")[2]) from None
    fields.finish()
    return gate
