"""The MutatingWebhookConfiguration that leads API servers to the injector; the chart's template is compared with it.

Rules:

1. Hedgerow's own namespace and those of Kubernetes are never selected, whatever their labels: the injector must not be
   needed for its own pods, nor for those that the cluster needs.
2. The injector asks the API server nothing. What it has to know of a namespace (which Pod Security Standard holds) is
   said by the path, and the path by the selector.
3. ``caBundle`` is not here: the controller, or cert-manager, puts it in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from controller.injection.names import INJECTION, SYSTEM_NAMESPACES
from controller.injection.outcomes import PodSecurity

NAME: Final = "hedgerow-injector"
SERVICE: Final = "hedgerow-injector"
#: Of the Service.
PORT: Final = 443
#: API servers wait no longer, in seconds.
TIMEOUT: Final = 10

ENFORCES: Final = "pod-security.kubernetes.io/enforce"
#: What a path says about the namespace.
PATHS: Final = {
    "/inject": PodSecurity.PRIVILEGED,
    "/inject/baseline": PodSecurity.BASELINE,
    "/inject/restricted": PodSecurity.RESTRICTED,
}
_CONFINED: Final = [PodSecurity.BASELINE.value, PodSecurity.RESTRICTED.value]


def webhook_configuration(
    namespace: str = "hedgerow-system", failure_policy: str = "Fail", excluded: Sequence[str] = ()
) -> dict[str, Any]:
    """The object, without ``caBundle``.

    :param namespace: Hedgerow's own
    :param failure_policy: ``Fail``: without the injector no pod of these namespaces is made; ``Ignore``: it is made
        without a sidecar
    :param excluded: further namespaces in which no pod is injected
    """
    hooks = [
        _hook("privileged", "/inject", namespace, failure_policy, excluded),
        _hook("baseline", "/inject/baseline", namespace, failure_policy, excluded),
        _hook("restricted", "/inject/restricted", namespace, failure_policy, excluded),
        _ephemeral(namespace, failure_policy, excluded),
    ]
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": NAME, "labels": {"app.kubernetes.io/part-of": "hedgerow"}},
        "webhooks": hooks,
    }


def _hook(level: str, path: str, namespace: str, failure_policy: str, excluded: Sequence[str]) -> dict[str, Any]:
    if level == PodSecurity.PRIVILEGED:
        enforces = {"key": ENFORCES, "operator": "NotIn", "values": _CONFINED}
    else:
        enforces = {"key": ENFORCES, "operator": "In", "values": [level]}
    hook = _base(f"{level}.injector.hedgerow.dev", path, namespace, failure_policy, excluded)
    hook["namespaceSelector"]["matchExpressions"].append(enforces)
    hook["objectSelector"] = {"matchExpressions": [{"key": INJECTION, "operator": "NotIn", "values": ["disabled"]}]}
    hook["rules"] = [
        {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": ["pods"],
            "scope": "Namespaced",
        }
    ]
    return hook


def _ephemeral(namespace: str, failure_policy: str, excluded: Sequence[str]) -> dict[str, Any]:
    """Containers for debugging: refused as the sidecar's user."""
    hook = _base("debugging.injector.hedgerow.dev", "/inject", namespace, failure_policy, excluded)
    hook["rules"] = [
        {
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "operations": ["UPDATE"],
            "resources": ["pods/ephemeralcontainers"],
            "scope": "Namespaced",
        }
    ]
    return hook


def _base(name: str, path: str, namespace: str, failure_policy: str, excluded: Sequence[str]) -> dict[str, Any]:
    never = sorted({*SYSTEM_NAMESPACES, namespace, *excluded})
    return {
        "name": name,
        "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"name": SERVICE, "namespace": namespace, "path": path, "port": PORT}},
        "failurePolicy": failure_policy,
        "matchPolicy": "Equivalent",
        "namespaceSelector": {
            "matchExpressions": [
                {"key": INJECTION, "operator": "In", "values": ["enabled"]},
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": never},
            ]
        },
        "reinvocationPolicy": "IfNeeded",
        "sideEffects": "None",
        "timeoutSeconds": TIMEOUT,
    }
