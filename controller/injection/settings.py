"""What is injected, and where: the section ``injection:`` of ``injector.yaml``, read strictly into one value.

The webhook and ``hedgerow inject`` read the same section, so that both make the same pods. What a pod's author may
change by annotations is :mod:`controller.injection.annotations`; what may not be changed without an administrator's
word is listed in ``allow_annotations``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from controller.injection.audience import AUDIENCE, token_audience
from controller.injection.names import SYSTEM_NAMESPACES
from graph.fields import (
    Address,
    Check,
    Fields,
    Unfit,
    flag,
    integer,
    items,
    matching,
    namespace_name,
    remote_address,
    shown,
    trust_domain_name,
    unfit,
    word,
)

#: The first version in which an init container with ``restartPolicy: Always`` is on by default (KEP-753).
NATIVE_SINCE: Final = (1, 29)

_VERSION = re.compile(r"v?([0-9]{1,3})\.([0-9]{1,3})([.+-].{0,60})?")
IMAGE: Final = re.compile(r"[a-zA-Z0-9][-a-zA-Z0-9._:/@]{0,510}")
_QUANTITY = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
_CLUSTER = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]")

#: Settings of the sidecar that the injector makes itself; ``sidecar:`` must not say otherwise.
MADE: Final = frozenset(
    {
        "instance",
        "controller",
        "issuer",
        "trust_domain",
        "trust_bundle",
        "state_dir",
        "addresses",
        "join_token_file",
        "service_account_token_file",
        "capture",
        "explicit",
        "outbound_listen",
        "inbound_listen",
        "ready_listen",
        "stats_listen",
        "admin_listen",
        "uid",
        "mark",
        "probes",
        "merge_metrics",
    }
)
#: The rest of them: what ``sidecar:`` may say for every pod. Values are the sidecar's to check.
PASSED: Final = frozenset(
    {
        "access_log",
        "directory",
        "dns",
        "drain_seconds",
        "exclude_cidrs",
        "exclude_inbound_ports",
        "exclude_outbound_ports",
        "exit_with_application",
        "hold_seconds",
        "http",
        "inspect",
        "limits",
        "log_level",
        "metrics",
        "mtls_alpn",
        "mtls_ports",
        "opaque_ports",
        "report_flows",
        "report_interval",
        "telemetry",
        "udp",
        "unsynced",
        "workers",
    }
)


@dataclass(frozen=True, slots=True)
class Resources:
    """Requests and limits of a container, as Kubernetes writes quantities."""

    requests: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, dict[str, str]]:
        """As it stands in a container; without what is empty."""
        parts = {"limits": dict(self.limits), "requests": dict(self.requests)}
        return {name: part for name, part in parts.items() if part}


CONTROLLER: Final = Address("hedgerow-controller.hedgerow-system.svc", 15012)
ISSUER: Final = Address("hedgerow-controller.hedgerow-system.svc", 15013)
SIDECAR_RESOURCES: Final = Resources({"cpu": "50m", "memory": "96Mi"}, {"memory": "512Mi"})
CAPTURE_RESOURCES: Final = Resources({"cpu": "10m", "memory": "48Mi"}, {"memory": "128Mi"})


@dataclass(frozen=True, slots=True)
class InjectionSettings:
    """Everything that decides, beside the pod and its namespace, what is injected.

    :param image: of the sidecar and of the containers that prepare for it
    :param namespace: Hedgerow's own, in which no pod is injected
    :param excluded_namespaces: others in which none is, beside those of Kubernetes itself
    :param kubernetes_version: of the cluster, such as ``(1, 36)``; None: one that we support
    :param native_sidecar: whether to use init containers with ``restartPolicy: Always`` where the cluster has them
    :param validation: whether a container without rights has to see captured connections before the pod goes on
    :param start_seconds: that a sidecar may take until it is ready, before the kubelet starts it again
    :param token_audience: whom it is for: what the controller is told in ``kubernetes.token_audience``
    :param token_seconds: that a projected ServiceAccount token holds; the kubelet renews it
    :param allow_annotations: annotations that weaken what the mesh holds and that authors of pods may use all the same
    :param sidecar: settings of ``sidecar.yaml`` for every pod
    """

    image: str
    image_pull_policy: str = "IfNotPresent"
    namespace: str = "hedgerow-system"
    excluded_namespaces: frozenset[str] = frozenset()
    kubernetes_version: tuple[int, int] | None = None
    native_sidecar: bool = True
    validation: bool = True
    start_seconds: int = 600
    controller: Address = CONTROLLER
    issuer: Address = ISSUER
    trust_domain: str = "hedgerow.local"
    token_audience: str = AUDIENCE
    token_seconds: int = 600
    cluster: str = ""
    resources: Resources = SIDECAR_RESOURCES
    capture_resources: Resources = CAPTURE_RESOURCES
    allow_annotations: frozenset[str] = frozenset()
    sidecar: Mapping[str, Any] = field(default_factory=dict)

    @property
    def knows_native(self) -> bool:
        """Whether the cluster runs native sidecars."""
        return self.kubernetes_version is None or self.kubernetes_version >= NATIVE_SINCE

    def excludes(self, namespace: str) -> bool:
        """Whether no pod of this namespace is ever injected."""
        return namespace in SYSTEM_NAMESPACES or namespace == self.namespace or namespace in self.excluded_namespaces


def read_injection(weakening: frozenset[str]) -> Check[InjectionSettings]:
    """Reads the section ``injection:``.

    :param weakening: the names that ``allow_annotations`` may hold, without the prefix
    """

    def check(value: object) -> InjectionSettings:
        fields = Fields(value, unfit, noun="setting")
        namespace = fields.take("namespace", namespace_name, "hedgerow-system")
        host = f"hedgerow-controller.{namespace}.svc"
        settings = InjectionSettings(
            image=fields.take("image", matching(IMAGE, "a reference such as registry.example/hedgerow-sidecar:1.0")),
            image_pull_policy=fields.take("image_pull_policy", word("Always", "IfNotPresent", "Never"), "IfNotPresent"),
            namespace=namespace,
            excluded_namespaces=frozenset(fields.take("excluded_namespaces", items(namespace_name, at_most=1000), ())),
            kubernetes_version=fields.take("kubernetes_version", kubernetes_version, None),
            native_sidecar=fields.take("native_sidecar", flag, True),
            validation=fields.take("validation", flag, True),
            start_seconds=fields.take("start_seconds", integer(5, 86400), 600),
            controller=fields.take("controller", remote_address, Address(host, 15012)),
            issuer=fields.take("issuer", remote_address, Address(host, 15013)),
            trust_domain=fields.take("trust_domain", trust_domain_name, "hedgerow.local"),
            token_audience=fields.take("token_audience", token_audience, AUDIENCE),
            token_seconds=fields.take("token_seconds", integer(600, 86400), 600),
            cluster=fields.take("cluster", matching(_CLUSTER, "letters, digits, '-', '_', '.'", may_be_empty=True), ""),
            resources=fields.take("resources", resources, SIDECAR_RESOURCES),
            capture_resources=fields.take("capture_resources", resources, CAPTURE_RESOURCES),
            allow_annotations=frozenset(fields.take("allow_annotations", items(word(*sorted(weakening))), ())),
            sidecar=fields.take("sidecar", _sidecar, {}),
        )
        fields.finish()
        return settings

    return check


def kubernetes_version(value: object) -> tuple[int, int] | None:
    """``v1.36.3`` or ``1.36``; empty or nothing: any that we support."""
    if value is None or value == "":
        return None
    found = _VERSION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise Unfit(f"{shown(value)} is no version of Kubernetes", 'write it as "1.36" (in quotes) or v1.36.3')
    return int(found[1]), int(found[2])


def quantity(value: object) -> str:
    """An amount of CPU or memory as Kubernetes writes it, or a plain number (``0.5``), as its YAML may hold one too."""
    written = value
    if isinstance(value, int | float) and not isinstance(value, bool):
        written = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not isinstance(written, str) or not _QUANTITY.fullmatch(written):
        raise Unfit(f"{shown(value)} is no quantity", "write one such as 100m, 1, 128Mi or 1Gi")
    return written


def resources(value: object) -> Resources:
    """``{requests: {cpu, memory}, limits: {cpu, memory}}``."""
    fields = Fields(value, unfit, noun="setting")
    made = Resources(fields.take("requests", _amounts, {}), fields.take("limits", _amounts, {}))
    fields.finish()
    for name, request in made.requests.items():
        limit = made.limits.get(name)
        if limit is not None and amount(request) > amount(limit):
            raise Unfit(f"{request} is more than the limit, {limit}", "raise the limit", f".requests.{name}")
    return made


_UNITS: Final = {
    "": 1.0,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}


def amount(written: str) -> float:
    """The number that a quantity stands for."""
    number = written.rstrip("mkKMGTi")
    return float(number) * _UNITS[written[len(number) :]]


def _amounts(value: object) -> dict[str, str]:
    fields = Fields(value, unfit, noun="setting")
    made = {name: fields.take(name, quantity, "") for name in ("cpu", "memory", "ephemeral-storage")}
    fields.finish()
    return {name: written for name, written in made.items() if written}


def _sidecar(value: object) -> dict[str, Any]:
    """Settings for every sidecar: known by name, not made by us, plain data."""
    if not isinstance(value, Mapping):
        raise Unfit(f"{shown(value)} is not a mapping", "write settings of sidecar.yaml, as `name: value`")
    for name in value:
        if name in MADE:
            raise Unfit("is made by the injector, pod by pod", "remove it", f".{name}")
        if name not in PASSED:
            known = ", ".join(sorted(PASSED))
            raise Unfit("unknown setting of a sidecar", f"remove it; known are: {known}", f".{str(name)[:80]}")
    return dict(value)
