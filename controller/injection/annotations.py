"""What the author of a pod may say about its sidecar: annotations ``hedgerow.dev/<setting>``, read strictly.

Rules:

1. What is not understood is refused, never ignored: a misspelt annotation must not leave a pod other than it was meant.
2. What would weaken what the mesh holds (:data:`WEAKENING`) needs the word of whoever runs the injector, in
   ``allow_annotations``. User, rights and mounts of our containers can not be changed at all.
3. What an annotation says is data. It is never expanded, run, or put into a command.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from controller.injection import names
from controller.injection.errors import InjectionRefused
from controller.injection.settings import IMAGE, InjectionSettings, Resources, quantity
from controller.injection.shared_annotations import MAX_VALUE, inspected_hosts, listed, opaque_ports, port
from graph.fields import Unfit, destination_address, integer, ip_network, matching, seconds, shown, word
from graph.model import InspectedHost

type Read = Callable[[str], Any]

_CONFIG_MAP = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")


@dataclass(frozen=True, slots=True)
class Annotation:
    """One that may be written.

    :param read: what it means; raises :class:`~graph.fields.Unfit`
    :param meaning: in a few words, for documentation
    :param setting: of ``sidecar.yaml`` that it sets, as a path with dots; empty: the injector's own
    :param weakens: values that need the word of an administrator; empty: every one; None: none
    """

    read: Read
    meaning: str
    setting: str = ""
    weakens: tuple[Any, ...] | None = None


def _whole(low: int, high: int) -> Read:
    check = integer(low, high)

    def read(written: str) -> int:
        if not written.isascii() or not written.isdigit() or len(written) > 9:
            raise Unfit(f"{shown(written)} is not such a number", f"write a whole number from {low} to {high}")
        return check(int(written))

    return read


def _seconds(low: float, high: float) -> Read:
    check = seconds(low, high)

    def read(written: str) -> float:
        try:
            return check(float(written))
        except ValueError:
            raise Unfit(f"{shown(written)} is not such a duration", f"write seconds from {low:g} to {high:g}") from None

    return read


def _truth(written: str) -> bool:
    return word("true", "false")(written) == "true"


_ports = listed(port)


def _pair(written: str, wanted: str) -> tuple[str, str]:
    left, equals, right = written.partition("=")
    if not equals:
        raise Unfit(f"{shown(written)} has no '='", wanted)
    return left.strip(), right.strip()


def _inbound(written: str) -> tuple[int, int]:
    listen, application = _pair(written, "write PORT=PORT-OF-THE-APPLICATION, such as 8080=18080")
    read = (port(listen), port(application))
    if read[0] == read[1]:
        raise Unfit(f"{shown(written)} leads to itself", "let the application listen on 127.0.0.1 with another port")
    return read


def _outbound(written: str) -> tuple[int, str]:
    listen, destination = _pair(written, "write PORT=ADDRESS:PORT, such as 15101=10.96.0.7:80")
    return port(listen), str(destination_address(destination))


def _config_map_key(written: str) -> tuple[str, str]:
    name, slash, key = written.partition("/")
    if not slash or not _CONFIG_MAP.fullmatch(name) or not _KEY.fullmatch(key) or key in (".", ".."):
        raise Unfit(f"{shown(written)} is no ConfigMap and key", "write NAME/KEY, such as company-roots/ca.crt")
    return name, key


#: By their names without the prefix.
ANNOTATIONS: Final[Mapping[str, Annotation]] = {
    "injection": Annotation(word("enabled", "disabled"), "whether the pod has a sidecar"),
    "capture": Annotation(word("redirect", "explicit"), "how connections reach the sidecar"),
    "native-sidecar": Annotation(_truth, "`false`: a plain container; `true`: a native one in explicit mode too"),
    "explicit-inbound": Annotation(
        listed(_inbound), "explicit mode: ports that the sidecar takes, each with the application's on 127.0.0.1"
    ),
    "explicit-outbound": Annotation(
        listed(_outbound), "explicit mode: ports on 127.0.0.1, each with the address that it leads to"
    ),
    "rewrite-probes": Annotation(_truth, "`false`: the kubelet's probes stay as they are"),
    "merge-metrics": Annotation(_truth, "`false`: `prometheus.io` annotations stay as they are"),
    "cpu-request": Annotation(quantity, "CPU of the sidecar"),
    "cpu-limit": Annotation(quantity, "likewise"),
    "memory-request": Annotation(quantity, "memory of the sidecar"),
    "memory-limit": Annotation(quantity, "likewise"),
    "opaque-ports": Annotation(opaque_ports, "ports whose bytes are not looked at", "opaque_ports"),
    "mtls-ports": Annotation(_ports, "ports where TLS clients are other meshes' proxies", "mtls_ports"),
    "inspect-ports": Annotation(_ports, "ports whose HTTP is always inspected", "inspect.ports"),
    "inspect-egress": Annotation(inspected_hosts, "hosts outside whose traffic the sidecar reads"),
    "egress-roots": Annotation(
        _config_map_key, "ConfigMap and key of the roots that those hosts' certificates lead to, such as ours/ca.crt"
    ),
    "workers": Annotation(_whole(1, 16), "processes that carry connections", "workers"),
    "drain-seconds": Annotation(_seconds(0, 3600), "how long connections may go on at the end", "drain_seconds"),
    "report-interval": Annotation(_seconds(0.05, 300), "seconds between two reports", "report_interval"),
    "log-level": Annotation(word("debug", "info", "warning", "error"), "what the sidecar logs", "log_level"),
    "access-log": Annotation(word("off", "errors", "all"), "which requests it logs", "access_log"),
    "udp": Annotation(word("allow", "drop"), "what becomes of what is not captured", "udp", weakens=("allow",)),
    "unsynced": Annotation(word("deny", "learn"), "what holds before the first policy", "unsynced", weakens=("learn",)),
    "telemetry": Annotation(word("on", "off"), "whether what the pod does is reported", "telemetry", weakens=("off",)),
    "dns-proxy": Annotation(_truth, "whether DNS goes through the sidecar", "dns.proxy", weakens=(False,)),
    "exclude-cidrs": Annotation(listed(ip_network), "destinations that are not captured", "exclude_cidrs", weakens=()),
    "exclude-outbound-ports": Annotation(
        _ports, "ports of destinations that are not captured", "exclude_outbound_ports", weakens=()
    ),
    "exclude-inbound-ports": Annotation(
        _ports, "ports of the application reached past its sidecar", "exclude_inbound_ports", weakens=()
    ),
    "image": Annotation(
        matching(IMAGE, "a reference such as registry.example/hedgerow-sidecar:1.0"),
        "another image of the sidecar",
        weakens=(),
    ),
}

#: Those that ``allow_annotations`` may hold.
WEAKENING: Final = frozenset(name for name, one in ANNOTATIONS.items() if one.weakens is not None)
#: Written by Hedgerow itself.
_OURS: Final = frozenset({names.RECORD.removeprefix(names.PREFIX), "owned-by"})


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a pod's annotations ask for.

    :param capture: ``redirect`` or ``explicit``; empty: as its namespace needs it
    :param native: None: as the cluster has it
    :param inbound: of explicit mode: the sidecar's ports, each with the application's
    :param outbound: of explicit mode: local ports, each with a destination ``address:port``
    :param inspects: hosts outside whose traffic the sidecar reads
    :param egress_roots: ConfigMap and key of what their certificates have to lead to; None: what the system trusts
    :param sidecar: settings of ``sidecar.yaml``
    """

    capture: str = ""
    native: bool | None = None
    inbound: tuple[tuple[int, int], ...] = ()
    outbound: tuple[tuple[int, str], ...] = ()
    rewrite_probes: bool = True
    merge_metrics: bool = True
    image: str = ""
    inspects: tuple[InspectedHost, ...] = ()
    egress_roots: tuple[str, str] | None = None
    resources: Resources = field(default_factory=Resources)
    sidecar: Mapping[str, Any] = field(default_factory=dict)


def asked(labels: Mapping[str, str], annotations: Mapping[str, str]) -> str:
    """``enabled``, ``disabled`` or empty: whether the pod says anything about being injected.

    :raises InjectionRefused: when it says something else, or label and annotation differ
    """
    said = {kind: given[names.INJECTION] for kind, given in _both(labels, annotations) if names.INJECTION in given}
    for kind, value in said.items():
        if value not in ("enabled", "disabled"):
            raise InjectionRefused(
                f"{shown(value)} is none of the choices",
                field=f"metadata.{kind}[{names.INJECTION}]",
                remedy="use one of: enabled, disabled",
            )
    if len(set(said.values())) > 1:
        raise InjectionRefused(
            "the label says something else",
            field=f"metadata.annotations[{names.INJECTION}]",
            remedy="remove one of them",
        )
    return next(iter(said.values()), "")


def _both(labels: Mapping[str, str], annotations: Mapping[str, str]) -> tuple[tuple[str, Mapping[str, str]], ...]:
    return ("labels", labels), ("annotations", annotations)


def read(annotations: Mapping[str, str], settings: InjectionSettings) -> Wishes:
    """What a pod's annotations ask for.

    :raises InjectionRefused: naming the annotation, what is wrong with it and the remedy
    """
    found: dict[str, Any] = {}
    for full, written in annotations.items():
        name = full.removeprefix(names.PREFIX)
        if name == full or name in _OURS:
            continue
        found[name] = _value(name, written, settings)
    sidecar: dict[str, Any] = {}
    for name, value in found.items():
        if ANNOTATIONS[name].setting:
            _set(sidecar, ANNOTATIONS[name].setting, value)
    return Wishes(
        capture=found.get("capture", ""),
        native=found.get("native-sidecar"),
        inbound=tuple(found.get("explicit-inbound", ())),
        outbound=tuple(found.get("explicit-outbound", ())),
        rewrite_probes=found.get("rewrite-probes", True),
        merge_metrics=found.get("merge-metrics", True),
        image=found.get("image", ""),
        inspects=found.get("inspect-egress", ()),
        egress_roots=found.get("egress-roots"),
        resources=Resources(*(_amounts(found, kind) for kind in ("request", "limit"))),
        sidecar=sidecar,
    )


def _value(name: str, written: object, settings: InjectionSettings) -> Any:
    def refuse(problem: str, remedy: str) -> InjectionRefused:
        shown_name = names.PREFIX + name if name.isprintable() else names.PREFIX + repr(name)
        return InjectionRefused(problem, field=f"metadata.annotations[{shown_name[:120]}]", remedy=remedy)

    known = ANNOTATIONS.get(name)
    if known is None:
        near = difflib.get_close_matches(name[:80], ANNOTATIONS, n=1)
        remedy = (
            f"did you mean {names.PREFIX}{near[0]}?" if near else "remove it; docs/injection.md has all that there are"
        )
        raise refuse("unknown annotation of Hedgerow", remedy)
    if not isinstance(written, str):
        raise refuse(f"{shown(written)} is not text", "write the value in quotes")
    if len(written) > MAX_VALUE:
        raise refuse(f"{len(written)} characters long", f"use at most {MAX_VALUE}")
    try:
        value = known.read(written)
    except Unfit as error:
        raise refuse(error.problem, error.remedy) from None
    weakens = known.weakens is not None and (not known.weakens or value in known.weakens)
    if weakens and name not in settings.allow_annotations:
        raise refuse(
            "it would weaken what the mesh holds, and the injector's settings do not allow that",
            f"remove it, or have an administrator add {name!r} to allow_annotations of the injector",
        )
    return value


def _amounts(found: Mapping[str, Any], kind: str) -> dict[str, str]:
    return {what: found[f"{what}-{kind}"] for what in ("cpu", "memory") if f"{what}-{kind}" in found}


def _set(settings: dict[str, Any], path: str, value: Any) -> None:
    section, dot, name = path.partition(".")
    if dot:
        settings.setdefault(section, {})[name] = value
    else:
        settings[section] = value
