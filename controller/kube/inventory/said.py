"""What pods, services and namespaces say by annotations that matters to others than the pod's own sidecar. Pure.

Rules:

1. Opaque ports: a pod's own annotation (of its owner's template), else its namespace's; and those of the services of
   its namespace before it, whose numbers are the service's ports. They win over an ``appProtocol``.
2. A host outside is inspected where a pod asks for it **and** its namespace permits it
   (``hedgerow.dev/inspectable-hosts``). Who may write pods may usually not write namespaces, and must not be able to
   have the mesh stand in for whatever host they like.
3. What can not be read says nothing, and is a problem that people are shown. (Pods with it are refused by the injector,
   which reads the same.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from controller.injection.names import INSPECT_EGRESS, INSPECTABLE_HOSTS, OPAQUE_PORTS
from controller.injection.shared_annotations import (
    MAX_VALUE,
    HostPattern,
    inspectable_hosts,
    inspected_hosts,
    opaque_ports,
)
from controller.kube.inventory.reading import Object, part
from controller.memory import remembered
from graph.fields import Unfit
from graph.model import InspectedHost
from graph.wire.bounds import MAX_INSPECTED


@dataclass(frozen=True, slots=True)
class Said:
    """Of a pod, its template, or a service.

    :param opaque: ports; None where nothing is said
    :param inspects: hosts that it asks to have inspected
    :param problem: why something of it could not be read; empty when all could
    """

    opaque: tuple[int, ...] | None = None
    inspects: tuple[InspectedHost, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class NamespaceSaid:
    """Of a namespace.

    :param opaque: of its pods that say nothing; None where nothing is said
    :param inspectable: what its pods may have inspected
    """

    opaque: tuple[int, ...] | None = None
    inspectable: tuple[HostPattern, ...] = ()
    problem: str = ""


SILENT: Final = Said()
NAMESPACE_SILENT: Final = NamespaceSaid()


def said_of(metadata: Object) -> Said:
    """What a pod or a service says; the same value for the same words."""
    annotations = part(metadata, "annotations")
    opaque, inspects = annotations.get(OPAQUE_PORTS), annotations.get(INSPECT_EGRESS)
    return SILENT if opaque is None and inspects is None else _said(_bounded(opaque), _bounded(inspects))


def namespace_said(metadata: Object) -> NamespaceSaid:
    """What a namespace says of its pods."""
    annotations = part(metadata, "annotations")
    opaque, inspectable = annotations.get(OPAQUE_PORTS), annotations.get(INSPECTABLE_HOSTS)
    if opaque is None and inspectable is None:
        return NAMESPACE_SILENT
    return _namespace_said(_bounded(opaque), _bounded(inspectable))


def _bounded(written: object) -> str | None:
    """At most one character more than is read."""
    return written[: MAX_VALUE + 1] if isinstance(written, str) else None


@remembered(1024)
def _said(opaque: str | None, inspects: str | None) -> Said:
    problems: list[str] = []
    ports = _read(OPAQUE_PORTS, opaque, opaque_ports, problems)
    hosts = _read(INSPECT_EGRESS, inspects, inspected_hosts, problems)
    return Said(None if ports is None else tuple(ports), hosts or (), "; ".join(problems))


@remembered(1024)
def _namespace_said(opaque: str | None, inspectable: str | None) -> NamespaceSaid:
    problems: list[str] = []
    ports = _read(OPAQUE_PORTS, opaque, opaque_ports, problems)
    patterns = _read(INSPECTABLE_HOSTS, inspectable, inspectable_hosts, problems)
    return NamespaceSaid(None if ports is None else tuple(ports), patterns or (), "; ".join(problems))


def _read[T](name: str, written: str | None, read: Callable[[str], T], problems: list[str]) -> T | None:
    if written is None:
        return None
    try:
        if len(written) > MAX_VALUE:
            raise Unfit(f"more than {MAX_VALUE} characters", "shorten it")
        return read(written)
    except Unfit as error:
        problems.append(f"the annotation {name} is not followed: {error.problem}; {error.remedy}")
        return None


def opaque_of(said: Iterable[Said], space: NamespaceSaid) -> frozenset[int]:
    """The opaque ports of a workload, whose template, or pods without one, say so."""
    inherited = space.opaque or ()
    return frozenset(number for each in said for number in (inherited if each.opaque is None else each.opaque))


def inspected_of(
    said: Iterable[Said], space: NamespaceSaid
) -> tuple[tuple[InspectedHost, ...], tuple[InspectedHost, ...]]:
    """What a workload inspects, and what it asked for without being permitted to, both sorted."""
    asked = sorted({one for each in said for one in each.inspects})
    permitted = [one for one in asked if any(pattern.permits(one.host) for pattern in space.inspectable)]
    kept = permitted[:MAX_INSPECTED]
    return tuple(kept), tuple(one for one in asked if one not in kept)
