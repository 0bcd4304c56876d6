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

from controller.errors import ConfigError, refusal
from controller.kube.settings import KubernetesSettings, kubernetes_settings
from controller.learner import Gate
from controller.settings_file import read_settings
from graph.errors import InvalidValue
from graph.fields import Address as Address
from graph.fields import (
    Check,
    Fields,
    Unfit,
    host_name,
    integer,
    items,
    listen_address,
    optional,
    refuse_taken,
    seconds,
    text,
    trust_domain_name,
    unfit,
    word,
)

_INHERITED = re.compile(r"fd:([0-9]{1,6})")

GRPC_LISTEN = Address("0.0.0.0", 15012)
ISSUER_LISTEN = Address("0.0.0.0", 15013)
WEB_LISTEN = Address("127.0.0.1", 8080)

#: Names under which a page on this machine is reached.
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


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
    :param inventory: the file that says which workloads, instances and services there are; None on Kubernetes
    :param kubernetes: the cluster that says so instead; one of the two is there
    :param grpc_listen: mutual TLS: renewal, telemetry, policy, directory
    :param issuer_listen: server TLS: the first signature, against a join token
    :param web_listen: the web API and page
    :param monitoring_listen: probes and metrics, for machines, in clear and without names; None: nowhere
    :param web_hosts: the names under which people reach the page; any other ``Host`` is refused
    :param web_tls: serve HTTPS; required off loopback
    :param svid_lifetime: seconds that a workload's certificate holds; renewed at half of it
    :param inventory_interval: seconds between two looks at the inventory file for changes; not on Kubernetes
    :param learning: when an edge has been seen often and long enough
    :param sse_clients: the most live streams that the page and the command may hold open together
    :param streams_per_second: that one sidecar may begin, ten seconds' worth of them in a row
    """

    state_dir: Path
    inventory: Path | None = None
    kubernetes: KubernetesSettings | None = None
    trust_domain: str = "hedgerow.local"
    grpc_listen: Address = GRPC_LISTEN
    issuer_listen: Address = ISSUER_LISTEN
    web_listen: Address | InheritedSocket = WEB_LISTEN
    monitoring_listen: Address | None = None
    web_hosts: tuple[str, ...] = ()
    web_tls: WebTls | None = None
    svid_lifetime: float = 3600.0
    inventory_interval: float = 1.0
    learning: Gate = field(default_factory=Gate)
    sse_clients: int = 64
    streams_per_second: int = 10
    log_level: str = "info"

    @classmethod
    def load(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Settings:
        """Read a settings file.

        :param overrides: top-level settings that replace those of the file (from the command line); their relative
            paths are relative to the working directory
        :raises ConfigError: when it can not be read, is not YAML, or breaks a rule of :meth:`parse`
        """
        document = read_settings(path)
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
            inventory=fields.take("inventory", optional(path), None),
            kubernetes=_section(fields, document, base),
            trust_domain=fields.take("trust_domain", trust_domain_name, "hedgerow.local"),
            grpc_listen=fields.take("grpc_listen", listen_address, GRPC_LISTEN),
            issuer_listen=fields.take("issuer_listen", listen_address, ISSUER_LISTEN),
            web_listen=fields.take("web_listen", _web_listen, WEB_LISTEN),
            monitoring_listen=fields.take("monitoring_listen", optional(listen_address), None),
            web_hosts=fields.take("web_hosts", items(host_name, at_most=64), ()),
            web_tls=fields.take("web_tls", optional(_web_tls(path)), None),
            svid_lifetime=fields.take("svid_lifetime", seconds(2, 86400), 3600.0),
            inventory_interval=fields.take("inventory_interval", seconds(0.05, 3600), 1.0),
            learning=fields.take("learning", _gate, Gate()),
            sse_clients=fields.take("sse_clients", integer(1, 10_000), 64),
            streams_per_second=fields.take("streams_per_second", integer(4, 1000), 10),
            log_level=fields.take("log_level", word("debug", "info", "warning", "error"), "info"),
        )
        fields.finish()
        settings._check_whole()
        if isinstance(document, Mapping):
            settings._check_effect(document)
        return settings

    def _check_whole(self) -> None:
        if self.kubernetes is not None and self.inventory is not None:
            raise ConfigError(
                "set beside kubernetes, which says by itself what runs",
                field="inventory",
                remedy="remove one of the two",
            )
        if self.kubernetes is None and self.inventory is None:
            raise ConfigError(
                "missing",
                field="inventory",
                remedy="name the file that says what runs, or add a `kubernetes:` section on a cluster",
            )
        web = self.web_listen
        if isinstance(web, Address) and not ipaddress.ip_address(web.host).is_loopback and self.web_tls is None:
            raise ConfigError(
                f"{web} is not a loopback address, and tokens would cross the network in clear",
                field="web_listen",
                remedy="listen on 127.0.0.1, or set web_tls to {certificate: FILE, key: FILE}",
            )
        refuse_taken(self._addresses(), refusal(ConfigError))

    def _check_effect(self, document: Mapping[Any, Any]) -> None:
        """Refuse what is said, even if it is what holds anyhow, and would change nothing if it were changed."""
        if self.kubernetes is None:
            return
        if "inventory_interval" in document:
            raise ConfigError(
                "set beside kubernetes, where no file is looked at",
                field="inventory_interval",
                remedy="remove it; kubernetes.coalesce says how soon what changed on the cluster is taken",
            )
        section = document["kubernetes"]
        if isinstance(self.web_listen, InheritedSocket) and section and section.get("reclaim"):
            raise ConfigError(
                f"set beside web_listen: {self.web_listen}, a socket that would be lost by beginning anew",
                field="kubernetes.reclaim",
                remedy="write 0 or remove it, or listen on an address",
            )

    def _addresses(self) -> list[tuple[str, Address]]:
        listeners = [("grpc_listen", self.grpc_listen), ("issuer_listen", self.issuer_listen)]
        if isinstance(self.web_listen, Address):
            listeners.append(("web_listen", self.web_listen))
        if self.monitoring_listen is not None:
            listeners.append(("monitoring_listen", self.monitoring_listen))
        return listeners


def _section(fields: Fields, document: object, base: Path) -> KubernetesSettings | None:
    """The ``kubernetes:`` section. An empty one counts: it is all that a pod of the chart needs."""
    present = isinstance(document, Mapping) and "kubernetes" in document
    found: KubernetesSettings | None = fields.take("kubernetes", kubernetes_settings(base), None)
    return (found or KubernetesSettings()) if present else None


def _path(base: Path) -> Check[Path]:
    return lambda value: base / text(4096)(value)


def _web_listen(value: object) -> Address | InheritedSocket:
    if isinstance(value, str) and (inherited := _INHERITED.fullmatch(value)):
        return InheritedSocket(int(inherited[1]))
    if isinstance(value, str) and value.startswith("fd:"):
        raise Unfit(f"{value[:40]!r} names no descriptor", "write fd:3 for the inherited socket with number 3")
    return listen_address(value)


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
