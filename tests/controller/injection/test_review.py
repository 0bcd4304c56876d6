"""AdmissionReviews: what is answered to what."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.injection.injecting import PodSecurity
from controller.injection.review import BadReview, answer
from tests.controller.injection.pods import injected, pod, settings, user
from tests.controller.injection.strategies import JSON
from tests.controller.injection.test_patch import applied


def review(given: Any, **request: Any) -> bytes:
    document = {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "operation": "CREATE",
            "namespace": "shop",
            "object": given,
            **request,
        },
    }
    return json.dumps(document).encode()


def answered(body: bytes, enforces: PodSecurity = PodSecurity.PRIVILEGED) -> tuple[dict[str, Any], str]:
    made = answer(body, enforces, settings())
    assert made.document["apiVersion"] == "admission.k8s.io/v1"
    assert made.document["kind"] == "AdmissionReview"
    assert made.document["response"]["uid"] == "705ab4f5"
    return made.document["response"], made.outcome


def test_a_pod_is_answered_with_the_patch_that_injects_it() -> None:
    response, outcome = answered(review(pod()))
    assert (response["allowed"], response["patchType"], outcome) == (True, "JSONPatch", "injected")
    operations = json.loads(base64.b64decode(response["patch"]))
    assert applied(pod(), operations) == injected(pod()).pod


def test_a_pod_that_is_injected_already_needs_no_patch() -> None:
    response, outcome = answered(review(injected(pod()).pod))
    assert response == {"uid": "705ab4f5", "allowed": True}
    assert outcome == "unchanged"


def test_a_dry_run_is_answered_alike() -> None:
    body = review(pod(), dryRun=True)
    assert answered(body) == answered(review(pod()))
    assert answer(body, PodSecurity.PRIVILEGED, settings()).dry_run


def test_a_refusal_says_field_and_remedy() -> None:
    response, outcome = answered(review(pod(annotations={"uid": "0"})))
    assert (response["allowed"], response["status"]["code"], outcome) == (False, 403, "refused")
    assert "hedgerow.dev/uid" in response["status"]["message"]
    assert "patch" not in response


def test_the_path_says_what_the_namespace_enforces() -> None:
    response, _ = answered(review(pod()), PodSecurity.RESTRICTED)
    assert "restricted" in response["status"]["message"]


def test_the_node_s_network_is_left_alone_with_a_word() -> None:
    response, outcome = answered(review(pod(hostNetwork=True)))
    assert (response["allowed"], outcome) == (True, "skipped-host-network")
    assert response["warnings"][0].startswith("hedgerow: not injected")
    assert "patch" not in response


def test_warnings_are_short_and_few() -> None:
    many = [{"name": f"c{n}", "image": "i", "securityContext": {"privileged": True}} for n in range(300)]
    response, _ = answered(review(pod(*many)))
    assert all(len(warning) <= 256 for warning in response["warnings"])
    assert sum(map(len, response["warnings"])) <= 4096


def test_debugging_as_the_sidecar_is_refused() -> None:
    made = injected(pod()).pod
    asked: dict[str, Any] = {"operation": "UPDATE", "subResource": "ephemeralcontainers"}
    made["spec"]["ephemeralContainers"] = [{"name": "debug", "image": "sh"}]
    assert answered(review(made, **asked))[0]["allowed"]
    made["spec"]["ephemeralContainers"][0]["securityContext"] = user(1337)
    response, _ = answered(review(made, **asked))
    assert "spec.ephemeralContainers[0].securityContext.runAsUser" in response["status"]["message"]
    del made["metadata"]["annotations"]  # which whoever may change a pod can do while it runs
    assert not answered(review(made, **asked))[0]["allowed"]
    stranger = pod(ephemeralContainers=[{"name": "debug", "image": "sh", "securityContext": user(1337)}])
    assert answered(review(stranger, **asked))[0]["allowed"], "not a pod of the mesh"


@pytest.mark.parametrize("volume", ["hedgerow-state", "hedgerow-token", "hedgerow-trust"])
@pytest.mark.parametrize("kept", [True, False], ids=["annotated", "annotations taken away"])
def test_debugging_reads_nothing_that_the_sidecar_keeps(volume: str, kept: bool) -> None:
    made = injected(pod()).pod
    if not kept:
        del made["metadata"]["annotations"]
    mount = {"name": volume, "mountPath": "/look"}
    made["spec"]["ephemeralContainers"] = [{"name": "debug", "image": "sh", "volumeMounts": [mount]}]
    response, _ = answered(review(made, operation="UPDATE", subResource="ephemeralcontainers"))
    assert not response["allowed"]
    assert f"{volume} is the sidecar's alone" in response["status"]["message"]


def test_a_name_of_ours_excuses_no_container_for_debugging() -> None:
    made = injected(pod(), validation=False).pod
    free = {"name": "hedgerow-validation", "image": "sh", "securityContext": user(1337)}
    made["spec"]["ephemeralContainers"] = [free]
    assert not answered(review(made, operation="UPDATE", subResource="ephemeralcontainers"))[0]["allowed"]


@pytest.mark.parametrize(
    "request_",
    [
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
        {"kind": None},
        {"operation": "DELETE", "object": None},
        {"operation": "UPDATE"},
        {"subResource": "status", "operation": "UPDATE"},
        {"namespace": None},
    ],
)
def test_what_the_injector_is_not_for_passes_with_a_word(request_: dict[str, Any]) -> None:
    response, outcome = answered(review(pod(), **request_))
    assert (response["allowed"], outcome) == (True, "passed")
    assert "webhook configuration" in response["warnings"][0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"x"}}',
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}',
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":""}}',
        b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":7}}',
    ],
)
def test_what_is_no_review_is_refused(body: bytes) -> None:
    with pytest.raises(BadReview):
        answer(body, PodSecurity.PRIVILEGED, settings())


@given(st.dictionaries(st.sampled_from(["kind", "operation", "namespace", "object", "subResource", "dryRun"]), JSON))
def test_whatever_is_asked_is_answered(request_: dict[str, Any]) -> None:
    response, _ = answered(review(pod(), **request_))
    assert isinstance(response["allowed"], bool)
