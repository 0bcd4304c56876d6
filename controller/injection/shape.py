"""The containers and volumes that are put into a pod, field by field.

Rules:

1. What the API server would add as a default stands here already, so that injecting a pod that it has stored changes
   nothing.
2. Only the capture container has a capability (NET_ADMIN), and only it is root, because Kubernetes gives added
   capabilities to no other user. It ends before anything else of the pod runs.
3. The containers hold no Kubernetes token: where the API server would put one, the trust bundle is mounted once more.
4. ``$`` in what others wrote is doubled, so that the kubelet expands only the references that stand here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from controller.injection import names
from controller.injection.errors import InjectionRefused
from controller.injection.settings import InjectionSettings, Resources

#: Waits until the sidecar is ready. A plain container is started before the application's when it stands first, and the
#: kubelet goes on to the next when this has ended.
_WAIT: Final = (
    "import time,urllib.request as r\n"
    "end=time.monotonic()+{seconds}\n"
    "while True:\n"
    " try:\n"
    "  r.build_opener(r.ProxyHandler({{}})).open('http://127.0.0.1:{port}/healthz/ready',timeout=2).close();break\n"
    " except OSError:\n"
    "  if time.monotonic()>end: raise SystemExit(1)\n"
    "  time.sleep(0.2)\n"
)
_RUN: Final = ("python", "-m", "sidecar")
_CONFIG: Final = ("--config-env", names.SETTINGS_VARIABLE)
_REFERENCES: Final = {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace", "POD_IPS": "status.podIPs"}
_READ_ONLY_FILE: Final = 0o644
#: Bytes of one environment variable; Linux takes 128 KiB (``MAX_ARG_STRLEN``).
MAX_DOCUMENT: Final = 120_000
#: Parts of the settings that matter to the sidecar alone, and not to what prepares for it.
_FOR_THE_SIDECAR: Final = (
    "probes",
    "merge_metrics",
    "metrics",
    "inspect",
    "http",
    "limits",
    "directory",
    "report_flows",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one pod gets.

    :param capture: whether connections are redirected; else they come to declared ports
    :param native: whether the sidecar is an init container that stays
    :param image: of all our containers
    :param sidecar: settings of ``sidecar.yaml`` that are particular to this pod
    :param resources: of the sidecar
    :param inspects: whether it reads what is said to hosts outside
    :param egress_roots: ConfigMap and key of what those hosts' certificates have to lead to; None: the system's
    """

    capture: bool
    native: bool
    image: str
    sidecar: Mapping[str, Any]
    resources: Resources
    inspects: bool = False
    egress_roots: tuple[str, str] | None = None


def settings_document(name: str, plan: Plan, settings: InjectionSettings) -> str:
    """The document of ``sidecar.yaml`` as JSON, with references that the kubelet fills in.

    :param name: of the container that it is for
    :raises InjectionRefused: when it is longer than the kernel takes it
    """
    written = escaped(_over(settings.sidecar, plan.sidecar))
    if name != names.SIDECAR:
        written = {key: value for key, value in written.items() if key not in _FOR_THE_SIDECAR}
    made = {
        "instance": "$(POD_NAME)",
        "addresses": "$(POD_IPS)",
        "controller": str(settings.controller),
        "issuer": str(settings.issuer),
        "trust_domain": settings.trust_domain,
        "trust_bundle": f"{names.TRUST_DIRECTORY}/{names.TRUST_KEY}",
        "service_account_token_file": f"{names.TOKEN_DIRECTORY}/token",
        "state_dir": names.STATE_DIRECTORY,
        "stats_listen": f"0.0.0.0:{names.STATS_PORT}",
    }
    document = json.dumps({**written, **made}, sort_keys=True, separators=(",", ":"))
    if len(document) > MAX_DOCUMENT:
        raise InjectionRefused(
            f"probes and annotations make sidecar settings of {len(document)} bytes",
            field="spec.containers",
            remedy=f"keep to {MAX_DOCUMENT}: shorten the paths and headers of probes",
        )
    return document


def _over(general: Mapping[str, Any], particular: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of all pods and those of this one, section by section."""
    merged = dict(general)
    for name, value in particular.items():
        before = merged.get(name)
        merged[name] = _over(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def escaped(value: Any) -> Any:
    """The same data with every ``$`` doubled, which is how a container's ``env`` writes one."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, Mapping):
        return {key: escaped(inner) for key, inner in value.items()}
    return [escaped(inner) for inner in value] if isinstance(value, list | tuple) else value


def sidecar(plan: Plan, settings: InjectionSettings, resources: Mapping[str, Any]) -> dict[str, Any]:
    """The sidecar's container.

    :param resources: as it shall have them
    """
    container = {
        **_base(names.SIDECAR, plan, settings, resources),
        "command": [*_RUN, *_CONFIG],
        "ports": [{"containerPort": names.STATS_PORT, "name": "hedgerow-stats", "protocol": "TCP"}],
        "readinessProbe": _ready(period=5, failures=3),
        "securityContext": _restricted(names.UID),
        "volumeMounts": [
            {"mountPath": names.TOKEN_DIRECTORY, "name": names.TOKEN_VOLUME, "readOnly": True},
            {"mountPath": names.TRUST_DIRECTORY, "name": names.TRUST_VOLUME, "readOnly": True},
            {"mountPath": names.STATE_MOUNT, "name": names.STATE_VOLUME},
            *_roots_mounts(plan),
            _no_api_token(),
        ],
    }
    if plan.native:
        container["restartPolicy"] = "Always"
        container["startupProbe"] = _ready(period=1, failures=settings.start_seconds)
    else:
        wait = _WAIT.format(seconds=settings.start_seconds, port=names.READY_PORT)
        container["lifecycle"] = {"postStart": {"exec": {"command": ["python", "-c", wait]}}}
    return container


def capture(plan: Plan, settings: InjectionSettings, resources: Mapping[str, Any]) -> dict[str, Any]:
    """The init container that puts the capture rules in force."""
    return {
        **_base(names.CAPTURE, plan, settings, resources),
        "command": [*_RUN, "capture", *_CONFIG],
        "securityContext": {
            **_restricted(0),
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "runAsNonRoot": False,
        },
        "volumeMounts": [_no_api_token()],
    }


def validation(plan: Plan, settings: InjectionSettings, resources: Mapping[str, Any]) -> dict[str, Any]:
    """The init container that fails the pod when connections of an ordinary user are not captured."""
    return {
        **_base(names.VALIDATION, plan, settings, resources),
        "command": [*_RUN, "capture", "--check", *_CONFIG],
        "securityContext": _restricted(names.VALIDATION_UID),
        "volumeMounts": [_no_api_token()],
    }


def _roots_mounts(plan: Plan) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if plan.inspects:
        made.append({"mountPath": names.ROOTS_DIRECTORY, "name": names.ROOTS_VOLUME})
    if plan.egress_roots is not None:
        made.append({"mountPath": names.EGRESS_ROOTS_DIRECTORY, "name": names.EGRESS_ROOTS_VOLUME, "readOnly": True})
    return made


def volumes(plan: Plan, settings: InjectionSettings) -> list[dict[str, Any]]:
    """What the sidecar reads, where it keeps its state, and where it writes what the application has to trust."""
    token = {
        "audience": settings.token_audience,
        "expirationSeconds": settings.token_seconds,
        "path": "token",
    }
    return [
        {
            "name": names.TOKEN_VOLUME,
            "projected": {"defaultMode": _READ_ONLY_FILE, "sources": [{"serviceAccountToken": token}]},
        },
        {
            "name": names.TRUST_VOLUME,
            "configMap": {"defaultMode": _READ_ONLY_FILE, "name": names.TRUST_CONFIG_MAP},
        },
        {"name": names.STATE_VOLUME, "emptyDir": {"sizeLimit": "64Mi"}},
        *_roots_volumes(plan),
    ]


def _roots_volumes(plan: Plan) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if plan.inspects:
        made.append({"name": names.ROOTS_VOLUME, "emptyDir": {"sizeLimit": "16Mi"}})
    if plan.egress_roots is not None:
        name, key = plan.egress_roots
        items = [{"key": key, "path": names.EGRESS_ROOTS_FILE}]
        source = {"defaultMode": _READ_ONLY_FILE, "items": items, "name": name}
        made.append({"name": names.EGRESS_ROOTS_VOLUME, "configMap": source})
    return made


def _base(name: str, plan: Plan, settings: InjectionSettings, resources: Mapping[str, Any]) -> dict[str, Any]:
    references = [
        {"name": variable, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for variable, path in _REFERENCES.items()
    ]
    return {
        "name": name,
        "image": plan.image,
        "imagePullPolicy": settings.image_pull_policy,
        "env": [*references, {"name": names.SETTINGS_VARIABLE, "value": settings_document(name, plan, settings)}],
        "resources": dict(resources),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _restricted(uid: int) -> dict[str, Any]:
    """What Pod Security ``restricted`` asks for, and more."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsGroup": uid,
        "runAsNonRoot": True,
        "runAsUser": uid,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _ready(*, period: int, failures: int) -> dict[str, Any]:
    return {
        "failureThreshold": failures,
        "httpGet": {"path": "/healthz/ready", "port": names.READY_PORT, "scheme": "HTTP"},
        "periodSeconds": period,
        "successThreshold": 1,
        "timeoutSeconds": 3,
    }


def _no_api_token() -> dict[str, Any]:
    return {"mountPath": names.API_TOKEN_DIRECTORY, "name": names.TRUST_VOLUME, "readOnly": True}
