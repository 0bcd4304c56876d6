"""What the API server says of a ServiceAccount token: whose it is, and to which pod it is bound.

Source: Kubernetes, ``TokenReview`` (authentication.k8s.io/v1) and KEP-1205 (bound ServiceAccount tokens). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controller.errors import AttestationRefused, AttestationUnavailable
from graph.text import printable

_ACCOUNT = "system:serviceaccount:"
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_NODE_NAME = "authentication.kubernetes.io/node-name"
_CREDENTIAL = "authentication.kubernetes.io/credential-id"
_SHOWN = 300

#: What the API server's own words mean: the first that is in them decides. They are for people; other words refuse too.
_REASONS = (
    ("expired", "attestation-expired", "the kubelet renews it by itself; check the clocks of node and control plane"),
    (
        "audience",
        "attestation-wrong-audience",
        "project it with `audience: {audience}`, not the token for the API server; where the injector did, its "
        "`token_audience` is not the controller's: set both alike (one value of the chart) and create the pod again",
    ),
    ("invalidated", "attestation-pod-gone", "its pod or account was deleted; nothing is to be done"),
    ("not found", "attestation-pod-gone", "its pod or account was deleted; nothing is to be done"),
)


@dataclass(frozen=True, slots=True)
class BoundPod:
    """The pod that a token was made for.

    :param account: the ServiceAccount's name, in the pod's own namespace
    :param credential: the API server's name for the token (1.30 and later); says nothing of its text
    :param node: where the pod was scheduled when the token was made; may be empty
    """

    namespace: str
    name: str
    uid: str
    account: str
    credential: str = ""
    node: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def evidence(self) -> dict[str, object]:
        """For the audit log."""
        known = {"pod_uid": self.uid, "account": self.account, "credential": self.credential, "node": self.node}
        return {key: value for key, value in known.items() if value}


def bound_pod(status: Mapping[str, Any], audience: str) -> BoundPod:
    """The pod of a reviewed token.

    :param status: of the TokenReview
    :param audience: that it asked for: ours
    :raises AttestationRefused: when the token is not good for us, or proves no pod
    :raises AttestationUnavailable: when the API server does not say for whom it is good
    """
    if status.get("authenticated") is not True:
        raise _not_authenticated(printable(str(status.get("error") or ""))[:_SHOWN], audience)
    audiences = status.get("audiences")
    if not isinstance(audiences, list) or audience not in audiences:
        # "valid for the API server" is not "valid for us": an authenticator that knows no audiences says so
        raise AttestationUnavailable(
            "the API server does not check for whom a token is",
            remedy="a webhook or proxy that authenticates for it has to know audiences",
        )
    user = status.get("user")
    user = user if isinstance(user, dict) else {}
    name, extra = user.get("username"), user.get("extra")
    parts = name.removeprefix(_ACCOUNT).split(":") if isinstance(name, str) and name.startswith(_ACCOUNT) else []
    if len(parts) != 2 or not all(parts):
        raise AttestationRefused(
            "it is no ServiceAccount's token",
            code="attestation-invalid",
            remedy="mount a projected serviceAccountToken",
        )
    said = extra if isinstance(extra, dict) else {}
    pod, uid = _one(said, _POD_NAME), _one(said, _POD_UID)
    if not pod or not uid:
        to = f"node {_one(said, _NODE_NAME)[:80]!a}" if _one(said, _NODE_NAME) else "no pod"
        raise AttestationRefused(
            f"it is bound to {to}, so it does not say which pod shows it",
            code="attestation-unbound",
            remedy="use a projected token of the pod, not one of a Secret, a node or `kubectl create token`",
        )
    return BoundPod(parts[0], pod, uid, parts[1], _one(said, _CREDENTIAL), _one(said, _NODE_NAME))


def _one(extra: Mapping[str, Any], key: str) -> str:
    """A value that is there exactly once; anything else says nothing."""
    values = extra.get(key)
    return values[0] if isinstance(values, list) and len(values) == 1 and isinstance(values[0], str) else ""


def check_ours_alone(status: Mapping[str, Any], bound: BoundPod, audience: str) -> None:
    """That a good token is not good for the API server, too.

    Were it so for our audience, then the token that every container of every pod has by itself would be as good.

    :param status: of a TokenReview that asked for no audience, which is to ask for the API server's own
    :raises AttestationRefused: when the API server takes it
    """
    if status.get("authenticated") is True:
        raise AttestationRefused(
            f"it is for the API server too, and not for {audience!r} alone",
            code="attestation-not-ours-alone",
            remedy="project it with one audience, and let `token_audience`, of the injector and of the controller, be "
            "none of the API server's (--api-audiences)",
            pod=str(bound),
        )


def _not_authenticated(said: str, audience: str) -> AttestationRefused:
    unknown = ("attestation-invalid", "mount a projected serviceAccountToken of this cluster")
    code, remedy = next((found for word, *found in _REASONS if word in said.lower()), unknown)
    return AttestationRefused(
        f"the API server does not accept it{f': {said}' if said else ''}",
        code=code,
        remedy=remedy.replace("{audience}", audience),
    )
