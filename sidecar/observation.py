"""The settings of what a sidecar shows: probes that it performs for the kubelet, the application's own metrics, labels.

They are parts of ``sidecar.yaml``, read as strictly as the rest of it (:mod:`sidecar.settings`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from graph.fields import Fields, Unfit, integer, ip_address, items, matching, optional, seconds, unfit, word

_CONTAINER = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
#: A request target as a probe may name it: visible ASCII, so that it can be nothing but one (RFC 9112).
_TARGET = re.compile(r"/?[!-~]{0,1023}")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_FIELD_VALUE = re.compile(r"[\t -~]{0,1024}")
_SERVICE = re.compile(r"[!-~]{1,256}")
_LABEL = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]")

#: Fields that frame a message or name its destination; a probe's own must not say otherwise.
_OURS: Final = frozenset({"connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "expect"})

_PORT: Final = integer(1, 65_535)


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """``httpGet`` of Kubernetes.

    :param path: with its query; begins with a slash
    :param headers: that are sent beside ours; ``Host`` among them takes the place of ours
    """

    port: int
    path: str = "/"
    scheme: str = "http"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """``tcpSocket`` of Kubernetes."""

    port: int


@dataclass(frozen=True, slots=True)
class GrpcProbe:
    """``grpc`` of Kubernetes."""

    port: int
    service: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe of the application, asked for at ``/app-health/<container>/<kind>``, which are Istio's paths.

    :param kind: ``livez``, ``readyz`` or ``startupz``
    :param timeout: seconds for all of it
    :param address: where the application listens; empty: the pod's first address, which the kubelet would use
    """

    container: str
    kind: str
    action: HttpProbe | TcpProbe | GrpcProbe
    timeout: float = 1.0
    address: str = ""

    @property
    def path(self) -> str:
        return f"/app-health/{self.container}/{self.kind}"


@dataclass(frozen=True, slots=True)
class MergedMetrics:
    """The application's own metrics, which are shown behind ours.

    :param address: where the application listens; empty: the pod's first address
    :param max_bytes: of the application's page; a longer one is left out
    :param timeout: seconds for it, at most; a scraper that waits for less is believed
    """

    port: int
    path: str = "/metrics"
    address: str = ""
    max_bytes: int = 4 << 20
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class MetricSettings:
    """What metrics say of our own pod, and how many there may be.

    :param app: the pod's label ``app``; ``version`` likewise
    :param cluster: the name of the cluster
    :param series: label sets of Istio's request metrics, as many of its TCP metrics, and as many of its metrics of gRPC
        messages; more are added up in one
    """

    app: str = ""
    version: str = ""
    cluster: str = ""
    series: int = 256


def read_access_log(value: object) -> str:
    """``off``, ``errors`` or ``all``. YAML reads a bare ``off`` as false."""
    return "off" if value is False else word("off", "errors", "all")(value)


def read_telemetry(value: object) -> bool:
    """``on`` or ``off``, which YAML reads as true and false where they stand bare."""
    return value if isinstance(value, bool) else word("on", "off")(value) == "on"


def read_metrics(value: object) -> MetricSettings:
    label = matching(_LABEL, "letters, digits, '-', '_' and '.', 63 at most", may_be_empty=True)
    fields = Fields(value, unfit, noun="setting")
    made = MetricSettings(
        app=fields.take("app", label, ""),
        version=fields.take("version", label, ""),
        cluster=fields.take("cluster", label, ""),
        series=fields.take("series", integer(16, 10_000), MetricSettings().series),
    )
    fields.finish()
    return made


def read_merge(value: object) -> MergedMetrics:
    fields = Fields(value, unfit, noun="setting")
    made = MergedMetrics(
        port=fields.take("port", _PORT),
        path=fields.take("path", _target, "/metrics"),
        address=fields.take("address", optional(ip_address), None) or "",
        max_bytes=fields.take("max_bytes", integer(1024, 256 << 20), 4 << 20),
        timeout=fields.take("timeout", seconds(0.1, 60), 5.0),
    )
    fields.finish()
    return made


def read_probes(value: object) -> tuple[Probe, ...]:
    """The section ``probes:``.

    :raises Unfit: naming what is wrong and what to write instead
    """
    probes = items(_probe, at_most=64)(value)
    for index, probe in enumerate(probes):
        if any(one.path == probe.path for one in probes[:index]):
            raise Unfit(f"{probe.container} has two probes {probe.kind}", "remove one of them", f"[{index}]")
    return probes


def _probe(value: object) -> Probe:
    fields = Fields(value, unfit, noun="setting")
    container = fields.take("container", matching(_CONTAINER, "the name of a container"))
    kind = fields.take("kind", word("livez", "readyz", "startupz"))
    given = (
        fields.take("http", optional(_http), None),
        fields.take("tcp", optional(_tcp), None),
        fields.take("grpc", optional(_grpc), None),
    )
    actions = [action for action in given if action is not None]
    timeout = fields.take("timeout", seconds(0.05, 60), 1.0)
    address = fields.take("address", optional(ip_address), None) or ""
    fields.finish()
    if len(actions) != 1:
        problem = "says both what to do and what else" if actions else "says nothing to do"
        raise Unfit(problem, "write exactly one of http, tcp and grpc")
    return Probe(container, kind, actions[0], timeout, address)


def _http(value: object) -> HttpProbe:
    fields = Fields(value, unfit, noun="setting")
    made = HttpProbe(
        port=fields.take("port", _PORT),
        path=fields.take("path", _target, "/"),
        scheme=fields.take("scheme", _scheme, "http"),
        headers=fields.take("headers", items(_header, at_most=32), ()),
    )
    fields.finish()
    return made


def _scheme(value: object) -> str:
    """Kubernetes writes ``HTTP`` and ``HTTPS``."""
    return word("http", "https")(value.lower() if isinstance(value, str) else value)


def _header(value: object) -> tuple[str, str]:
    fields = Fields(value, unfit, noun="setting")
    name = fields.take("name", matching(_FIELD_NAME, "the name of a header"))
    # no control characters: text() has none, and a line break would begin another header
    written = fields.take("value", matching(_FIELD_VALUE, "visible ASCII characters", may_be_empty=True))
    fields.finish()
    if name.lower() in _OURS:
        raise Unfit(f"{name} is the sidecar's to send", "remove it", ".name")
    return name, written


def _tcp(value: object) -> TcpProbe:
    fields = Fields(value, unfit, noun="setting")
    made = TcpProbe(fields.take("port", _PORT))
    fields.finish()
    return made


def _grpc(value: object) -> GrpcProbe:
    fields = Fields(value, unfit, noun="setting")
    made = GrpcProbe(
        fields.take("port", _PORT),
        fields.take("service", optional(matching(_SERVICE, "the name of a gRPC service", may_be_empty=True)), None)
        or "",
    )
    fields.finish()
    return made


def _target(value: object) -> str:
    written = matching(_TARGET, "a path such as /healthz, of visible ASCII characters")(value)
    if "#" in written:
        raise Unfit("has a fragment, which is never sent", "write it without # and what follows")
    return written if written.startswith("/") else f"/{written}"
