"""The sidecar's settings: ``sidecar.yaml``, read strictly into one immutable value.

The governing rule: a setting that is not understood is refused, never ignored; a misspelt ``unsynced: dney`` must not
leave a workload open. Every refusal is a :class:`~sidecar.errors.ConfigError` that names the field, what is wrong with
it and what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from graph.documents import read_yaml
from graph.fields import Address as Address
from graph.fields import (
    Fields,
    Unfit,
    choice,
    flag,
    integer,
    ip_network,
    items,
    listen_address,
    matching,
    optional,
    refuse_taken,
    remote_address,
    seconds,
    text,
    trust_domain_name,
    word,
)
from sidecar.capture_settings import (
    ADMIN_LISTEN,
    INBOUND_LISTEN,
    OUTBOUND_LISTEN,
    READY_LISTEN,
    STATS_LISTEN,
    Capture,
    Explicit,
    Udp,
    read_addresses,
    read_explicit,
    read_loopback,
)
from sidecar.dataplane.detect import OPAQUE_PORTS
from sidecar.dataplane.settings import ALPN as TUNNEL
from sidecar.directory_settings import DEFAULTS as DIRECTORY_DEFAULTS
from sidecar.directory_settings import DirectorySettings, read_directory
from sidecar.dns.settings import Dns, read_dns
from sidecar.errors import ConfigError
from sidecar.http.settings import DEFAULTS as HTTP_DEFAULTS
from sidecar.http.settings import HttpSettings
from sidecar.inspect.settings import DEFAULTS as INSPECT_DEFAULTS
from sidecar.inspect.settings import InspectSettings, read_inspect
from sidecar.limits import read_http, read_limits
from sidecar.observation import (
    MergedMetrics,
    MetricSettings,
    Probe,
    read_access_log,
    read_merge,
    read_metrics,
    read_probes,
    read_telemetry,
)

EXCLUSIONS = ("exclude_cidrs", "exclude_inbound_ports", "exclude_outbound_ports")
#: A settings file is a page of text; more than this is a mistake.
MAX_FILE_BYTES = 256 * 1024
#: Processes of one sidecar.
MAX_WORKERS = 16
#: A client says no more protocols than this in one hello.
MAX_ALPN = 16

_ALPN = re.compile(r"[!-~]{1,255}")
_INSTANCE = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
#: How the kubelet leaves a reference to a variable that it does not know.
_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]{0,62})\)")


class Unsynced(StrEnum):
    """What holds before any snapshot was received."""

    DENY = "deny"
    LEARN = "learn"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the sidecar is told from outside.

    :param instance: the name of this replica, unique in its namespace
    :param controller: the controller's gRPC listener that wants our certificate
    :param issuer: the controller's gRPC listener that takes a join token instead
    :param trust_bundle: PEM roots that the first connection to the issuer is checked against
    :param join_token_file: holds the one-time token; deleted after use
    :param service_account_token_file: holds a Kubernetes token that names our pod; read anew whenever one is needed
    :param addresses: the pod's own IP addresses
    :param uid: the user whose connections are not captured: the sidecar's own
    :param mark: a firewall mark that exempts the sidecar's own connections where users can not be told apart
    :param admin_listen: the administration pages, on loopback; None: nowhere. Left out of the file it is Istio's port
        with ``capture: redirect``, and nowhere without, where several sidecars may share an address; likewise
    :param stats_listen: metrics, and probes of the application
    :param exclude_cidrs: destinations that are not captured
    :param exclude_outbound_ports: TCP ports of destinations that are not captured
    :param exclude_inbound_ports: TCP ports of the application that are reached past its sidecar
    :param udp: what becomes of protocols that are not captured
    :param dns: how the application's questions to DNS are handled
    :param directory: how much of the directory is kept, and how often it is asked
    :param telemetry: whether connections and requests are counted, for reports to the controller and for metrics
    :param report_interval: seconds between two reports of flows
    :param report_flows: flows that are told apart between two reports; connections of more are shed and counted
    :param hold_seconds: after SIGTERM, how long everything goes on as before, except that we are no longer ready
    :param drain_seconds: how long open connections may go on after that
    :param exit_with_application: after SIGTERM, stay for the application's new connections until it has ended
    :param workers: processes that carry connections; with 1 it is this very process, and there is no other
    :param opaque_ports: ports of the application whose bytes are not looked at; they take the place of the defaults
    :param mtls_ports: ports of the application where every TLS client is another mesh's proxy
    :param mtls_alpn: ALPN protocols that are offered to other meshes' servers
    :param http: what bounds the lane that reads HTTP
    :param inspect: what is done to connections that are inspected, and which are
    :param limits: what bounds the data path, as far as it differs from
        :class:`~sidecar.dataplane.settings.DataPlaneSettings`
    """

    instance: str
    controller: Address
    issuer: Address
    trust_domain: str
    trust_bundle: Path
    state_dir: Path
    addresses: tuple[str, ...]
    join_token_file: Path | None = None
    service_account_token_file: Path | None = None
    capture: Capture = Capture.REDIRECT
    uid: int = 1337
    mark: int | None = None
    unsynced: Unsynced = Unsynced.DENY
    outbound_listen: Address = OUTBOUND_LISTEN
    inbound_listen: Address = INBOUND_LISTEN
    ready_listen: Address = READY_LISTEN
    exclude_cidrs: tuple[str, ...] = ()
    exclude_outbound_ports: tuple[int, ...] = ()
    exclude_inbound_ports: tuple[int, ...] = ()
    udp: Udp = Udp.ALLOW
    dns: Dns = field(default_factory=Dns)
    directory: DirectorySettings = DIRECTORY_DEFAULTS
    explicit: Explicit = field(default_factory=Explicit)
    telemetry: bool = True
    report_interval: float = 1.0
    report_flows: int = 4096
    hold_seconds: float = 0.0
    drain_seconds: float = 5.0
    exit_with_application: bool = False
    workers: int = 1
    opaque_ports: frozenset[int] = OPAQUE_PORTS
    mtls_ports: frozenset[int] = frozenset()
    mtls_alpn: tuple[str, ...] = ("istio",)
    http: HttpSettings = HTTP_DEFAULTS
    inspect: InspectSettings = INSPECT_DEFAULTS
    limits: Mapping[str, int | float] = field(default_factory=dict)
    log_level: str = "info"
    admin_listen: Address | None = None
    stats_listen: Address | None = None
    access_log: str = "off"
    metrics: MetricSettings = field(default_factory=MetricSettings)
    merge_metrics: MergedMetrics | None = None
    probes: tuple[Probe, ...] = ()

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
        return cls._read(data, str(path))

    @classmethod
    def from_environment(cls, name: str, environment: Mapping[str, str]) -> Settings:
        """Read the same document, as YAML or JSON, from an environment variable.

        Kubernetes fills ``$(NAME)`` in a variable's value with the variables that stand before it, and leaves what it
        does not know as it is.

        :raises ConfigError: when it is not set, is not YAML, or breaks a rule of :meth:`parse`
        """
        where = f"environment variable {name[:80]!a}"
        document = environment.get(name)
        if document is None:
            raise ConfigError(f"{where} is not set; set it to the document of sidecar.yaml, or use --config FILE")
        try:
            return cls._read(document.encode(errors="surrogateescape"), where)
        except ConfigError as error:
            left = _REFERENCE.search(document)
            hint = f" ($({left[1]}) was not filled in: `env` has to define {left[1]} before this)" if left else ""
            raise ConfigError(f"{error}{hint}") from None

    @classmethod
    def _read(cls, data: bytes, where: str) -> Settings:
        try:
            return cls.parse(read_yaml(data, MAX_FILE_BYTES, if_larger="this is not a settings file"))
        except Unfit as error:
            raise ConfigError(f"{where}: {_refusal(error.inner, error.problem, error.remedy)}") from None
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def parse(cls, document: object) -> Settings:
        """Check a document that was read from YAML and make settings of it.

        :raises ConfigError: naming the field, what is wrong with it and the remedy
        """
        fields = Fields(document, _refusal, noun="setting")
        capture = fields.take("capture", choice(*Capture), Capture.REDIRECT)
        redirect = capture is Capture.REDIRECT
        settings = cls(
            instance=fields.take("instance", matching(_INSTANCE, "lower-case letters, digits, '-' and '.'")),
            controller=fields.take("controller", remote_address),
            issuer=fields.take("issuer", remote_address),
            trust_domain=fields.take("trust_domain", trust_domain_name),
            trust_bundle=fields.take("trust_bundle", _path),
            state_dir=fields.take("state_dir", _path),
            addresses=fields.take("addresses", read_addresses),
            join_token_file=fields.take("join_token_file", optional(_path), None),
            service_account_token_file=fields.take("service_account_token_file", optional(_path), None),
            capture=capture,
            uid=fields.take("uid", integer(0, 2**32 - 2), 1337),
            mark=fields.take("mark", optional(integer(1, 2**32 - 1)), None),
            unsynced=fields.take("unsynced", choice(*Unsynced), Unsynced.DENY),
            outbound_listen=fields.take("outbound_listen", listen_address, OUTBOUND_LISTEN),
            inbound_listen=fields.take("inbound_listen", listen_address, INBOUND_LISTEN),
            ready_listen=fields.take("ready_listen", listen_address, READY_LISTEN),
            exclude_cidrs=fields.take("exclude_cidrs", items(ip_network), ()),
            exclude_outbound_ports=fields.take("exclude_outbound_ports", items(integer(1, 65535)), ()),
            exclude_inbound_ports=fields.take("exclude_inbound_ports", items(integer(1, 65535)), ()),
            udp=fields.take("udp", choice(*Udp), Udp.ALLOW),
            dns=fields.take("dns", read_dns, Dns()),
            directory=fields.take("directory", read_directory, DIRECTORY_DEFAULTS),
            explicit=fields.take("explicit", read_explicit, Explicit()),
            telemetry=fields.take("telemetry", read_telemetry, True),
            report_interval=fields.take("report_interval", seconds(0.05, 300), 1.0),
            report_flows=fields.take("report_flows", integer(16, 65_536), 4096),
            hold_seconds=fields.take("hold_seconds", seconds(0, 3600), 0.0),
            drain_seconds=fields.take("drain_seconds", seconds(0, 3600), 5.0),
            exit_with_application=fields.take("exit_with_application", flag, False),
            workers=fields.take("workers", integer(1, MAX_WORKERS), 1),
            opaque_ports=frozenset(fields.take("opaque_ports", items(integer(1, 65535)), tuple(OPAQUE_PORTS))),
            mtls_ports=frozenset(fields.take("mtls_ports", items(integer(1, 65535)), ())),
            mtls_alpn=fields.take("mtls_alpn", items(matching(_ALPN, "1 to 255 visible ASCII characters")), ("istio",)),
            http=fields.take("http", read_http, HTTP_DEFAULTS),
            inspect=fields.take("inspect", read_inspect, INSPECT_DEFAULTS),
            limits=fields.take("limits", read_limits, {}),
            log_level=fields.take("log_level", word("debug", "info", "warning", "error"), "info"),
            admin_listen=fields.take("admin_listen", optional(read_loopback), ADMIN_LISTEN if redirect else None),
            stats_listen=fields.take("stats_listen", optional(listen_address), STATS_LISTEN if redirect else None),
            access_log=fields.take("access_log", read_access_log, "off"),
            metrics=fields.take("metrics", read_metrics, MetricSettings()),
            merge_metrics=fields.take("merge_metrics", optional(read_merge), None),
            probes=fields.take("probes", read_probes, ()),
        )
        fields.finish()
        settings._check_whole()
        return settings._of_its_pod()

    def _of_its_pod(self) -> Settings:
        """With a Kubernetes token only what the pod itself asks for is inspected: its application was told of that."""
        egress = self.inspect.egress
        if self.service_account_token_file is None or egress.hosts is not None:
            return self
        return replace(self, inspect=replace(self.inspect, egress=replace(egress, hosts=frozenset())))

    def _check_whole(self) -> None:
        explicit = bool(self.explicit.outbound or self.explicit.inbound)
        if self.capture is Capture.EXPLICIT and not explicit:
            raise ConfigError("explicit: missing; capture: explicit needs explicit.outbound or explicit.inbound")
        if self.stats_listen is None and (self.probes or self.merge_metrics is not None):
            name = "probes" if self.probes else "merge_metrics"
            raise ConfigError(f"{name}: nothing serves it; set stats_listen, such as 0.0.0.0:15020")
        if self.capture is Capture.REDIRECT and explicit:
            raise ConfigError("explicit: set with capture: redirect; remove it, or write capture: explicit")
        if self.capture is Capture.EXPLICIT and self.udp is Udp.DROP:
            raise ConfigError("udp: drop needs capture: redirect; without capture nothing can be dropped, write allow")
        if self.capture is Capture.EXPLICIT:
            self._check_nothing_for_capture()
        if self.join_token_file is not None and self.service_account_token_file is not None:
            raise ConfigError("join_token_file: set beside service_account_token_file; remove one of them")
        if self.exit_with_application and (self.capture is Capture.EXPLICIT or self.mark is not None):
            raise ConfigError(
                "exit_with_application: the application is told from us by its user, which takes capture: redirect "
                "and no mark; write false"
            )
        if TUNNEL in self.mtls_alpn or len(self.mtls_alpn) > MAX_ALPN:
            raise ConfigError(f"mtls_alpn: write at most {MAX_ALPN} protocols, and not {TUNNEL}, our own")
        refuse_taken(self.listeners(), _refusal)

    def _check_nothing_for_capture(self) -> None:
        listeners = {"inbound_listen": INBOUND_LISTEN, "outbound_listen": OUTBOUND_LISTEN}
        for name, without in (dict.fromkeys(EXCLUSIONS, ()) | listeners).items():
            if getattr(self, name) != without:
                raise ConfigError(f"{name}: with capture: explicit nothing is captured that it could be for; remove it")

    @property
    def dns_proxy(self) -> bool:
        """Whether the application's questions to DNS go through us."""
        return self.capture is Capture.REDIRECT if self.dns.proxy is None else self.dns.proxy

    def listeners(self) -> list[tuple[str, Address]]:
        """Every address that is listened on, under the name of its setting."""
        listeners = [("ready_listen", self.ready_listen)]
        if self.admin_listen is not None:
            listeners.append(("admin_listen", self.admin_listen))
        if self.stats_listen is not None:
            listeners.append(("stats_listen", self.stats_listen))
        if self.capture is Capture.REDIRECT:
            listeners += [("outbound_listen", self.outbound_listen), ("inbound_listen", self.inbound_listen)]
        if self.dns_proxy:
            listeners.append(("dns.listen", self.dns.listen))
        listeners += [(f"explicit.outbound[{i}].listen", o.listen) for i, o in enumerate(self.explicit.outbound)]
        listeners += [(f"explicit.inbound[{i}].listen", o.listen) for i, o in enumerate(self.explicit.inbound)]
        return listeners


def _refusal(name: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError(f"{name}: {problem}; {remedy}" if name else f"{problem}; {remedy}")


def _path(value: object) -> Path:
    return Path(text(4096)(value))
