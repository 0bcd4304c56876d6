"""AdmissionReview ``admission.k8s.io/v1``: what the API server asks, and what it is answered. Pure.

https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/. Dry runs are answered like
any other, because nothing here has an effect but the answer.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from controller.errors import ControllerError
from controller.injection import conflicts
from controller.injection.errors import InjectionRefused
from controller.injection.injecting import Injected, Namespace, Outcome, PodSecurity, Refused, Skipped, inject
from controller.injection.patch import diff
from controller.injection.settings import InjectionSettings
from graph.text import printable

API_VERSION: Final = "admission.k8s.io/v1"
#: Characters of one warning, and of all; what is longer the API server cuts off.
_ONE_WARNING: Final = 256
_ALL_WARNINGS: Final = 4096


class BadReview(ControllerError):
    """What came is no question of an API server; it is not answered (HTTP 400)."""

    code = "bad-review"


@dataclass(frozen=True, slots=True)
class Answer:
    """:param document: the AdmissionReview to send
    :param outcome: ``injected``, ``unchanged``, ``refused``, ``skipped-<reason>`` or ``passed``, for metrics
    :param dry_run: whether nothing would have been stored
    """

    document: dict[str, Any]
    outcome: str
    dry_run: bool
    namespace: str = ""
    pod: str = ""
    message: str = ""


def answer(body: bytes, enforces: PodSecurity, settings: InjectionSettings) -> Answer:
    """Answer one review.

    :param body: as it came
    :param enforces: the Pod Security Standard of the pod's namespace, which the path of the webhook says
    :raises BadReview: when it is none
    """
    try:
        review = json.loads(body)
    except (ValueError, RecursionError):
        raise BadReview("not JSON", remedy="send an AdmissionReview") from None
    if (
        not isinstance(review, dict)
        or review.get("apiVersion") != API_VERSION
        or review.get("kind") != "AdmissionReview"
    ):
        raise BadReview(f"not an AdmissionReview of {API_VERSION}", remedy="set admissionReviewVersions: [v1]")
    request = review.get("request")
    if not isinstance(request, dict):
        raise BadReview("no request in it", field="request", remedy="send an AdmissionReview with a request")
    uid = request.get("uid")
    if not isinstance(uid, str) or not 0 < len(uid) <= 256:
        raise BadReview("no uid in it", field="request.uid", remedy="send the uid of the request")
    response, outcome = _respond(request, enforces, settings)
    pod = request.get("object")
    metadata = pod.get("metadata") if isinstance(pod, dict) else None
    named = metadata if isinstance(metadata, dict) else {}
    return Answer(
        {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": {"uid": uid, **response}},
        outcome,
        dry_run=request.get("dryRun") is True,
        namespace=printable(str(request.get("namespace", ""))[:80]),
        pod=printable(str(named.get("name") or named.get("generateName", ""))[:260]),
        message=response.get("status", {}).get("message", ""),
    )


def _respond(
    request: Mapping[str, Any], enforces: PodSecurity, settings: InjectionSettings
) -> tuple[dict[str, Any], str]:
    kind, pod = request.get("kind"), request.get("object")
    namespace = request.get("namespace")
    asked = (kind.get("group"), kind.get("version"), kind.get("kind")) if isinstance(kind, dict) else None
    what = (request.get("operation"), request.get("subResource") or "")
    if asked != ("", "v1", "Pod") or not isinstance(pod, dict) or not isinstance(namespace, str):
        return _passed("the injector was asked about something that is no pod; look at its webhook configuration")
    if what == ("UPDATE", "ephemeralcontainers"):
        return _of_outcome(pod, _ephemeral(pod))
    if what != ("CREATE", ""):
        return _passed("the injector was asked about something else than a new pod; look at its webhook configuration")
    return _of_outcome(pod, inject(pod, Namespace(namespace, enforces), settings))


def _ephemeral(pod: Mapping[str, Any]) -> Outcome:
    """Containers for debugging come later; they must not be the sidecar's user either, nor read what it keeps."""
    try:
        spec = pod.get("spec")
        spec = spec if isinstance(spec, dict) else {}
        if not conflicts.has_ours(spec):
            return Skipped("not-injected")
        conflicts.check_debugging(spec)
    except InjectionRefused as error:
        return Refused(error)
    return Skipped("debugging")


def _of_outcome(pod: Mapping[str, Any], outcome: Outcome) -> tuple[dict[str, Any], str]:
    match outcome:
        case Refused(error):
            status = {"code": 403, "reason": "Forbidden", "message": printable(str(error))[:1024]}
            return {"allowed": False, "status": status}, "refused"
        case Skipped(reason, warnings):
            return {"allowed": True, **_warned(warnings)}, f"skipped-{reason}"
        case Injected(changed, warnings):
            operations = list(diff(dict(pod), changed))
            if not operations:
                return {"allowed": True, **_warned(warnings)}, "unchanged"
            patch = base64.b64encode(json.dumps(operations, separators=(",", ":")).encode()).decode()
            return {"allowed": True, "patchType": "JSONPatch", "patch": patch, **_warned(warnings)}, "injected"


def _passed(warning: str) -> tuple[dict[str, Any], str]:
    return {"allowed": True, **_warned((warning,))}, "passed"


def _warned(warnings: tuple[str, ...]) -> dict[str, list[str]]:
    shown: list[str] = []
    for warning in warnings:
        line = printable(f"hedgerow: {warning}")
        short = line if len(line) <= _ONE_WARNING else line[: _ONE_WARNING - 1] + "…"
        if sum(map(len, shown)) + len(short) <= _ALL_WARNINGS:
            shown.append(short)
    return {"warnings": shown} if shown else {}
