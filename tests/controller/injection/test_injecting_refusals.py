"""What is left alone, what is refused by its field, and what is only told."""

from __future__ import annotations

from typing import Any

import pytest

from controller.injection import names
from controller.injection.injecting import Namespace, Skipped, inject
from tests.controller.injection.pods import SHOP, injected, pod, refused, settings, user

# --- left alone


@pytest.mark.parametrize("namespace", ["kube-system", "kube-public", "kube-node-lease", "hedgerow-system", "ci"])
def test_some_namespaces_are_never_injected(namespace: str) -> None:
    outcome = inject(pod(), Namespace(namespace), settings(excluded_namespaces=["ci"]))
    assert outcome == Skipped("namespace")


def test_pods_that_stay_as_they_are() -> None:
    def reason(given: dict[str, Any]) -> tuple[str, int]:
        outcome = inject(given, SHOP, settings())
        assert isinstance(outcome, Skipped), outcome
        return outcome.reason, len(outcome.warnings)

    assert reason(pod(hostNetwork=True)) == ("host-network", 1)
    assert reason(pod(os={"name": "windows"})) == ("windows", 1)
    assert reason(pod(nodeSelector={"kubernetes.io/os": "windows"})) == ("windows", 1)
    assert reason(pod(annotations={"injection": "disabled"})) == ("disabled", 0)
    assert reason(pod(annotations={"kubernetes.io/config.mirror": "x"})) == ("static-pod", 0)
    labelled = pod()
    labelled["metadata"]["labels"] = {names.INJECTION: "disabled"}
    assert reason(labelled) == ("disabled", 0)
    labelled["metadata"]["annotations"] = {names.INJECTION: "enabled"}
    assert "the label says something else" in refused(labelled)
    assert "enabled, disabled" in refused(pod(annotations={"injection": "off"}))


# --- refused


OUR_TOKEN = {"audience": "hedgerow-controller"}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (pod({"name": "hedgerow-sidecar", "image": "i"}), "spec.containers[0].name"),
        (pod(initContainers=[{"name": "hedgerow-capture", "image": "i"}]), "spec.initContainers[0].name"),
        (pod({"name": "a", "securityContext": user(1337)}), "spec.containers[0].securityContext.runAsUser"),
        (pod(initContainers=[{"name": "a", "securityContext": user(1337)}]), "spec.initContainers[0].securityContext"),
        (pod(ephemeralContainers=[{"name": "a", "securityContext": user(1337)}]), "spec.ephemeralContainers[0]"),
        (pod(securityContext=user(1337)), "spec.securityContext.runAsUser"),
        (pod({"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 15001}]}), "ports[1].containerPort"),
        (pod({"name": "a", "ports": [{"containerPort": 15053, "protocol": "UDP"}]}), "ports[0].containerPort"),
        (pod(volumes=[{"name": "hedgerow-token", "emptyDir": {}}]), "spec.volumes[0].name"),
        (pod({"name": "a", "volumeMounts": [{"name": "hedgerow-token", "mountPath": "/x"}]}), "volumeMounts[0]"),
        (
            pod(volumes=[{"name": "v", "projected": {"sources": [{"serviceAccountToken": OUR_TOKEN}]}}]),
            "sources[0].serviceAccountToken.audience",
        ),
        (pod({"image": "nameless"}), "spec.containers[0].name"),
        ({"metadata": {}, "spec": {}}, "spec.containers"),
        ({"metadata": {}, "spec": {"containers": "x"}}, "spec.containers"),
        ({"metadata": {}, "spec": {"containers": ["x"]}}, "spec.containers[0]"),
        ({"metadata": [], "spec": {}}, "pod.metadata"),
        ({"metadata": {"annotations": {"a": 1}}, "spec": {}}, "metadata.annotations[a]"),
    ],
)  # fmt: skip
def test_what_can_not_have_a_sidecar_is_refused_by_its_field(given: dict[str, Any], field: str) -> None:
    message = refused(given)
    assert field in message.partition(": ")[0], message
    assert "; " in message, "no remedy"


def test_a_token_like_the_sidecar_s_is_refused_to_the_application_whatever_its_audience_is() -> None:
    def holding(audience: str) -> dict[str, Any]:
        source = {"serviceAccountToken": {"audience": audience, "path": "token"}}
        return pod(volumes=[{"name": "v", "projected": {"sources": [source]}}])

    assert "a token for mesh.example would" in refused(holding("mesh.example"), token_audience="mesh.example")
    assert injected(holding("hedgerow-controller"), token_audience="mesh.example"), "for that one nothing is had"


def test_a_container_with_a_user_of_its_own_does_not_mind_the_pods() -> None:
    given = pod({"name": "a", "securityContext": user(1000)}, securityContext=user(1337))
    assert injected(given)


def test_what_only_may_get_past_is_told() -> None:
    powers = {"capabilities": {"add": ["CAP_NET_ADMIN", "CHOWN"]}}
    for given_pod, word in (
        (pod({"name": "a", "securityContext": powers}), "NET_ADMIN"),
        (pod({"name": "a", "securityContext": {"privileged": True}}), "privileged"),
        (pod(hostPID=True), "hostPID"),
        (pod(shareProcessNamespace=True), "shareProcessNamespace"),
        (pod(dnsPolicy="None"), "hedgerow-controller.hedgerow-system.svc"),
        (pod({"name": "a", "lifecycle": {"preStop": {"httpGet": {"path": "/", "port": 1}}}}), "strict"),
    ):
        warnings = injected(given_pod).warnings
        assert len(warnings) == 1, warnings
        assert word in warnings[0]
