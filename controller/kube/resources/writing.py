"""The custom resources that say what a person asked for; :mod:`controller.kube.resources.reading` is the way back.

Pure, but for the random end of an override's name.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Any

from controller.authoring import ModeRequest
from controller.kube.client import Document
from controller.kube.kinds import Resource
from controller.kube.resources.kinds import ACCESS_OVERRIDES, AUTHOR_ANNOTATION, OURS, SEGMENTATION_MODES
from controller.kube.resources.reading import written
from controller.view import Override
from graph.model import Direction, Protocol, WorkloadRef
from graph.outside import is_wide

#: The longest name of ours: it can stand in a label, too.
MAX_NAME = 63


def override_document(namespace: str, override: Override, now: float) -> Document:
    """The resource for an override that :func:`controller.overrides.make` has checked."""
    spec: dict[str, Any] = {
        "effect": str(override.effect),
        "from": _end(override.source),
        "to": _end(override.destination),
        "owner": override.owner,
        "reason": override.reason,
    }
    if override.port is not None:
        spec["port"] = override.port
    if override.protocol is not Protocol.TCP:
        spec["protocol"] = str(override.protocol)
    if override.operations:
        spec["operations"] = list(override.operations)
    if override.expires_at is not None:
        spec["ttl"] = written(override.expires_at - now)
    port = "all" if override.port is None else str(override.port)
    words = f"{override.effect}-{override.source.name}-to-{override.destination.name}-{port}"
    name = f"{_dns_label(words, MAX_NAME - 9)}-{secrets.token_hex(4)}"
    return _document(ACCESS_OVERRIDES, namespace, name, spec, override.owner)


def mode_document(
    namespace: str,
    name: str,
    workload: str,
    asked: ModeRequest,
    owner: str,
    reason: str,
    held: Mapping[str, Any] | None,
) -> Document:
    """The resource for a mode, on top of what ours says already."""
    spec: dict[str, Any] = dict(held["spec"]) if held is not None else {}
    spec |= {"owner": owner, "reason": reason} | {name: str(value) for name, value in asked_fields(asked).items()}
    if workload:
        spec["workload"] = workload
    document = _document(SEGMENTATION_MODES, namespace, name, spec, owner)
    if held is not None:
        document["metadata"] |= {
            "uid": held["metadata"]["uid"],
            "resourceVersion": held["metadata"]["resourceVersion"],
        }
    return document


def asked_fields(asked: ModeRequest) -> dict[str, object]:
    """What a request sets, by the names of the resource's fields."""
    said: dict[str, object] = {}
    if asked.mode is not None and asked.direction is not Direction.OUTBOUND:
        said["ingress"] = asked.mode
    if asked.mode is not None and asked.direction is not Direction.INBOUND:
        said["egress"] = asked.mode
    if asked.inbound_tls is not None:
        said["inboundTLS"] = asked.inbound_tls
    if asked.network_policy is not None:
        said["networkPolicy"] = asked.network_policy
    return said


def mode_name(workload: str) -> str:
    """Ours is one for a namespace, and one for each workload."""
    if not workload:
        return "hedgerow-namespace"
    name = f"hedgerow-workload-{workload}"
    if len(name) <= MAX_NAME and "." not in workload:
        return name
    digest = hashlib.sha256(workload.encode()).hexdigest()[:8]
    return f"{_dns_label(name, MAX_NAME - 9)}-{digest}"


def _document(resource: Resource, namespace: str, name: str, spec: dict[str, Any], author: str) -> Document:
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": dict(OURS),
            "annotations": {AUTHOR_ANNOTATION: author},
        },
        "spec": spec,
    }


def _end(ref: WorkloadRef) -> dict[str, str]:
    if not ref.is_external:
        return {"namespace": ref.namespace, "workload": ref.name}
    if "/" in ref.name:
        return {"cidr": ref.name}
    return {"host": ref.name} if ref.host or is_wide(ref) else {"address": ref.name}


def _dns_label(text: str, longest: int) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", text.lower())[:longest].strip("-")
