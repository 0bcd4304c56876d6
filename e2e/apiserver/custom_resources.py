"""What the suites about custom resources share: our CRDs in the API server, and objects of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError, HarnessError
from e2e.harness.programs import until

CRDS = Path(__file__).parents[2] / "charts" / "hedgerow" / "files" / "crds"
VERSION = "hedgerow.dev/v1alpha1"


def install_crds(apiserver: ApiServer) -> None:
    """Put our CRDs in and wait until they are served. Done twice it changes nothing."""
    apiserver.kubectl("apply", "--server-side", "-f", str(CRDS))
    names = [f"crd/{file.stem}.hedgerow.dev" for file in sorted(CRDS.glob("*.yaml"))]
    apiserver.kubectl("wait", "--for=condition=Established", "--timeout=200s", *names)
    until(lambda: all(serves(apiserver, "v1alpha1", file.stem) for file in CRDS.glob("*.yaml")), "our CRDs served")


def remove_crds(apiserver: ApiServer) -> None:
    """Take them out with all resources of theirs: what a test installs by the chart can not take over what is there.

    The API server takes a CRD away when it has found that nothing of its kind is left. Where it looked while the
    storage of that kind was being begun anew, it looks again some minutes later, or when the CRD changes.
    """
    names = [f"{file.stem}.hedgerow.dev" for file in sorted(CRDS.glob("*.yaml"))]
    apiserver.kubectl("delete", "crd", *names, "--ignore-not-found", "--wait=false")
    for attempt in range(20):
        left = apiserver.kubectl("get", "crd", *names, "--ignore-not-found", "-o", "name").split()
        if not left:
            return
        if attempt:
            apiserver.kubectl("annotate", *left, f"look-again={attempt}", "--overwrite", check=False)
        apiserver.kubectl("wait", "--for=delete", "--timeout=20s", *left, check=False)
    raise HarnessError(f"not taken away: {', '.join(left)}")


def serves(apiserver: ApiServer, version: str, plural: str) -> bool:
    """Whether the API server answers for one of our kinds by now: a little later than it says so of the CRD."""
    try:
        apiserver.request("GET", f"/apis/hedgerow.dev/{version}/{plural}")
    except ApiError as error:
        if error.status != 404:
            raise
        return False
    return True


def access_override(namespace: str, name: str = "one", **spec: Any) -> dict[str, Any]:
    """An AccessOverride from ``web/front`` to ``cart`` in its own namespace; None takes a field out."""
    whole = {
        "effect": "allow",
        "from": {"namespace": "web", "workload": "front"},
        "to": {"workload": "cart"},
        "port": 8080,
        "owner": "anna",
        "reason": "release 7",
    } | spec
    return _object("AccessOverride", namespace, name, whole)


def segmentation_mode(namespace: str, name: str = "default", **spec: Any) -> dict[str, Any]:
    return _object("SegmentationMode", namespace, name, spec)


def _object(kind: str, namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {key: value for key, value in spec.items() if value is not None},
    }


#: Where the API server has objects of a kind.
PLURALS = {
    "AccessOverride": "apis/hedgerow.dev/v1alpha1/{}/accessoverrides",
    "SegmentationMode": "apis/hedgerow.dev/v1alpha1/{}/segmentationmodes",
    "LearnedPolicy": "apis/hedgerow.dev/v1alpha1/{}/learnedpolicies",
    "NetworkPolicy": "apis/networking.k8s.io/v1/{}/networkpolicies",
    "ResourceQuota": "api/v1/{}/resourcequotas",
}


def path_of(kind: str, namespace: str, name: str = "") -> str:
    """Of one object, or of all in a namespace."""
    return f"/{PLURALS[kind].format(f'namespaces/{namespace}')}" + (f"/{name}" if name else "")


def put(apiserver: ApiServer, document: dict[str, Any], **query: str) -> dict[str, Any]:
    """Apply one object as a person would, without the start of a kubectl for each.

    :raises ApiError: when the API server refuses it
    """
    meta = document["metadata"]
    path = path_of(document["kind"], meta["namespace"], meta["name"])
    asked = {"fieldManager": "kubectl", "fieldValidation": "Strict", "force": "true", **query}
    return apiserver.request(
        "PATCH", f"{path}?{urlencode(asked)}", document, content_type="application/apply-patch+yaml"
    )


def refusal(apiserver: ApiServer, document: dict[str, Any]) -> str:
    """What the API server says against it; nothing is written.

    :raises AssertionError: when it says nothing
    """
    try:
        put(apiserver, document, dryRun="All")
    except ApiError as error:
        return str(error)
    raise AssertionError(f"it was taken: {document}")
