"""``hedgerow check`` against a real API server: what it finds, what it says to do, and how it ends.

Over 400 lines: before and on an installation the same cluster is looked at, which takes long to make.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.apiserver.custom_resources import remove_crds
from e2e.harness.apiserver import ApiServer
from e2e.harness.programs import until
from hedgerow.checking import health, preflight
from hedgerow.checking.finding import Finding, Outcome
from hedgerow.checking.running import run

ROOT = Path(__file__).parents[2]
SYSTEM = "hedgerow-system"
INJECTION = "hedgerow.dev/injection"
OWNED = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


class Answer:
    """What the command said."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.text = done.stdout
        self.errors = done.stderr
        self.findings: dict[str, dict[str, Any]] = {}
        if done.stdout.startswith("{"):
            self.findings = {each["check"]: each for each in json.loads(done.stdout)["findings"]}

    def outcome(self, check: str) -> str:
        return str(self.findings[check]["outcome"])


def hedgerow_check(kubeconfig: Path, *options: str, output: str = "json") -> Answer:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KUBE")}
    command = [sys.executable, "-m", "hedgerow", "check", "--kubeconfig", str(kubeconfig), "-o", output, *options]
    return Answer(
        subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment, cwd=ROOT)
    )


def found(kubeconfig: Path, *, pre: bool = False) -> Answer:
    """What the command would say, without starting a process for it."""
    told: list[Finding] = []
    findings = asyncio.run(run(kubeconfig, "", pre=pre, wait=0.0, tell=told.append))
    assert told == findings
    code = int(any(finding.outcome is Outcome.FAILED for finding in findings))
    text = json.dumps({"findings": [finding.to_dict() for finding in findings]})
    return Answer(subprocess.CompletedProcess([], code, text, ""))


def without(answer: Answer, *checks: str) -> set[str]:
    """What failed, besides these."""
    return {name for name, each in answer.findings.items() if each["outcome"] == "failed"} - set(checks)


# --- before an installation


def test_a_fresh_cluster_can_take_it(apiserver):
    answer = found(apiserver.kubeconfig, pre=True)
    assert answer.code == 0, answer.text + answer.errors
    assert list(answer.findings) == [name for name, _ in preflight.CHECKS]
    assert "1.36" in answer.findings["version"]["text"]
    assert answer.outcome("storage") == "warning"
    assert "existingClaim" in answer.findings["storage"]["hint"]
    assert not without(answer)


def test_a_default_storage_class_is_found(apiserver):
    path = "/apis/storage.k8s.io/v1/storageclasses"
    body = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "example.com/none",
    }
    apiserver.request("POST", path, body)
    try:
        answer = found(apiserver.kubeconfig, pre=True)
        assert answer.findings["storage"] == {
            "check": "storage", "outcome": "ok", "text": "the default storage class is fast",
        }  # fmt: skip
    finally:
        apiserver.request("DELETE", f"{path}/fast")


def test_who_may_not_install_is_told_what_is_missing(apiserver, namespace):
    answer = found(apiserver.kubeconfig_of(namespace, "default"), pre=True)
    assert answer.code == 1
    assert "clusterroles.rbac.authorization.k8s.io" in answer.findings["rights"]["text"]
    assert answer.outcome("version") == "ok"
    assert answer.outcome("namespace") == "failed"
    assert "get" in answer.findings["namespace"]["text"] + answer.findings["namespace"]["hint"]


def test_a_namespace_that_would_inject_itself_is_refused(apiserver):
    apiserver.create_namespace({INJECTION: "enabled"}, name=SYSTEM)
    try:
        answer = found(apiserver.kubeconfig, pre=True)
        assert without(answer) == {"namespace"}
        assert answer.findings["namespace"]["documentation"] == "docs/check.md#namespace"
        apiserver.kubectl("label", "namespace", SYSTEM, f"{INJECTION}-")
        assert found(apiserver.kubeconfig, pre=True).outcome("namespace") == "ok"
    finally:
        apiserver.kubectl("delete", "namespace", SYSTEM, "--wait=true")


def test_a_webhook_that_nobody_owns_is_in_the_way(apiserver):
    body = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "hedgerow-injector"},
        "webhooks": [],
    }
    apiserver.request("POST", OWNED, body)
    try:
        assert without(found(apiserver.kubeconfig, pre=True)) == {"leftovers"}
        owner = {"metadata": {"annotations": {"meta.helm.sh/release-name": "hedgerow"}}}
        apiserver.request("PATCH", f"{OWNED}/hedgerow-injector", owner, content_type="application/merge-patch+json")
        assert "hedgerow" in found(apiserver.kubeconfig, pre=True).findings["leftovers"]["text"]
    finally:
        apiserver.request("DELETE", f"{OWNED}/hedgerow-injector")


def test_two_meshes_in_one_namespace_are_refused(apiserver, namespace):
    apiserver.kubectl("label", "namespace", namespace, "istio-injection=enabled")
    answer = found(apiserver.kubeconfig, pre=True)
    assert (answer.code, answer.outcome("other-meshes")) == (0, "ok")
    assert namespace in answer.findings["other-meshes"]["text"]
    apiserver.kubectl("label", "namespace", namespace, f"{INJECTION}=enabled")
    assert without(found(apiserver.kubeconfig, pre=True)) == {"other-meshes"}


# --- on an installation


def test_without_an_installation_everything_says_what_to_do(apiserver):
    answer = found(apiserver.kubeconfig)
    assert answer.code == 1
    assert without(answer) == {"installation"}
    assert "helm install hedgerow" in answer.findings["installation"]["hint"]
    assert answer.findings["old-sidecars"]["text"] == "no pod has a sidecar of an earlier installation"
    text = hedgerow_check(apiserver.kubeconfig, output="table")
    assert text.code == 1
    assert text.text.startswith("FAIL installation: Hedgerow is not installed on this cluster\n")
    assert "more: docs/check.md#installation" in text.text
    assert "1 of 3 checks failed" in text.text


def test_sidecars_that_an_installation_left_behind_are_found_and_how_to_end_them_is_said(apiserver, namespace):
    template = {
        "metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": each, "image": f"{each}:1"} for each in ("app", "hedgerow-sidecar")]},
    }
    body = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "kept", "namespace": namespace},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template},
    }
    apiserver.request("POST", f"/apis/apps/v1/namespaces/{namespace}/statefulsets", body)
    Installed.pod_in(apiserver, namespace, "by-hand", "app", "hedgerow-sidecar")
    Installed.pod_in(apiserver, namespace, "without", "app")
    Installed.pod_in(apiserver, namespace, "over", "app", "hedgerow-sidecar")
    over = {"status": {"phase": "Succeeded"}}
    path = f"/api/v1/namespaces/{namespace}/pods"
    apiserver.request("PATCH", f"{path}/over/status", over, content_type="application/merge-patch+json")
    until(lambda: len(apiserver.request("GET", path)["items"]) == 4, "the pod of the StatefulSet")
    for answer in (found(apiserver.kubeconfig, pre=True), found(apiserver.kubeconfig)):
        said = answer.findings["old-sidecars"]
        assert said["outcome"] == "warning"
        assert said["text"].startswith(
            f"2 pods with a sidecar of an earlier installation: {namespace}/by-hand, {namespace}/kept-0; "
        )
        assert f"kubectl -n {namespace} rollout restart statefulset" in said["hint"]
        assert f"delete and make anew by-hand in {namespace}" in said["hint"]
        assert said["documentation"] == "docs/check.md#old-sidecars"


class Installed:
    """The chart on an API server without nodes; what the kubelet and the controller would write, tests write."""

    def __init__(self, apiserver: ApiServer) -> None:
        self.api = apiserver
        values = {"controller": {"persistence": {"enabled": False}}}
        chart = str(ROOT / "charts" / "hedgerow")
        remove_crds(apiserver)
        apiserver.create_namespace(name=SYSTEM)
        apiserver.helm("install", "hedgerow", chart, "-n", SYSTEM, "--values", "-", stdin=yaml.safe_dump(values))

    def remove(self) -> None:
        self.api.helm("uninstall", "hedgerow", "-n", SYSTEM)
        self.api.kubectl("delete", "namespace", SYSTEM, "--wait=true")

    def check(self) -> Answer:
        return found(self.api.kubeconfig)

    def merge(self, path: str, body: dict[str, Any]) -> None:
        self.api.request("PATCH", path, body, content_type="application/merge-patch+json")

    def serve(self, name: str, replicas: int) -> None:
        """Say of so many of a Deployment's pods that they are ready, as the kubelet would."""
        pods = f"/api/v1/namespaces/{SYSTEM}/pods"

        def made() -> list[str]:
            items = self.api.request("GET", f"{pods}?labelSelector=app.kubernetes.io/name%3D{name}")["items"]
            return sorted(item["metadata"]["name"] for item in items)

        until(lambda: len(made()) >= replicas, f"the pods of {name}")
        condition = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for pod in made()[:replicas]:
            self.say(SYSTEM, pod, {"phase": "Running", "conditions": [condition]})
        path = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/{name}"
        until(lambda: self.api.request("GET", path)["status"].get("readyReplicas") == replicas, f"{name} to be ready")

    def believe(self) -> None:
        bundle = base64.b64encode(self.api.ca.read_bytes()).decode()
        operations = [
            {"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": bundle} for index in range(4)
        ]
        path = f"{OWNED}/hedgerow-injector"
        self.api.request("PATCH", path, operations, content_type="application/json-patch+json")

    def answer(self) -> None:
        body = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "by-hand", "labels": {"kubernetes.io/service-name": "hedgerow-injector"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.0.2.7"], "conditions": {"ready": True}}],
        }
        self.api.request("POST", f"/apis/discovery.k8s.io/v1/namespaces/{SYSTEM}/endpointslices", body)

    def trust(self, namespace: str, text: str) -> None:
        self.api.kubectl("apply", "-n", namespace, "-f", "-", stdin=yaml.safe_dump({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hedgerow-trust"},
            "data": {"trust-bundle.pem": text},
        }))  # fmt: skip

    def pod(self, namespace: str, name: str, *containers: str, **spec: Any) -> None:
        self.pod_in(self.api, namespace, name, *containers, **spec)

    @staticmethod
    def pod_in(apiserver: ApiServer, namespace: str, name: str, *containers: str, **spec: Any) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"containers": [{"name": each, "image": f"{each}:1"} for each in containers], **spec},
        }
        apiserver.request("POST", f"/api/v1/namespaces/{namespace}/pods", body)

    def say(self, namespace: str, name: str, status: dict[str, Any]) -> None:
        self.merge(f"/api/v1/namespaces/{namespace}/pods/{name}/status", {"status": status})


@pytest.fixture
def installed(apiserver: ApiServer) -> Iterator[Installed]:
    there = Installed(apiserver)
    yield there
    there.remove()


def test_sidecars_of_an_installation_that_is_there_are_not_of_an_earlier_one(apiserver, installed, namespace):
    installed.pod(namespace, "new", "app", "hedgerow-sidecar")
    assert found(apiserver.kubeconfig, pre=True).outcome("old-sidecars") == "skipped"
    assert "old-sidecars" not in installed.check().findings


def test_an_installation_is_followed_until_it_is_well(apiserver, installed, namespace):
    answer = installed.check()
    assert without(answer) == {"controller", "injector", "webhook"}
    assert answer.findings["controller"]["text"].startswith("0 of 1 ready")
    assert "describe pod hedgerow-controller-" in answer.findings["controller"]["hint"], "nothing has written a log yet"
    assert "no authority" in answer.findings["webhook"]["text"]
    assert answer.outcome("trust") == "warning"
    assert (answer.outcome("injected"), answer.outcome("sidecars")) == ("skipped", "skipped")
    installed.serve("hedgerow-controller", 1)
    installed.serve("hedgerow-injector", 1)
    answer = installed.check()
    assert answer.outcome("controller") == "ok"
    assert (answer.outcome("injector"), answer.findings["injector"]["text"]) == ("warning", "1 of 2 ready")
    installed.serve("hedgerow-injector", 2)
    installed.believe()
    answer = installed.check()
    assert answer.outcome("injector") == "ok"
    assert "can not be made" in answer.findings["webhook"]["text"], "nobody is behind the service"
    installed.answer()
    assert not without(installed.check())
    # a namespace that asks for sidecars
    apiserver.kubectl("label", "namespace", namespace, f"{INJECTION}=enabled")
    assert without(installed.check()) == {"trust"}
    installed.trust(namespace, "nothing that anybody could believe")
    assert without(installed.check()) == {"trust"}
    installed.trust(namespace, apiserver.ca.read_text())
    answer = installed.check()
    assert (answer.code, answer.outcome("trust"), answer.outcome("sidecars")) == (0, "ok", "skipped")


def test_pods_and_their_sidecars_are_judged(apiserver, installed, namespace):
    installed.serve("hedgerow-controller", 1)
    installed.serve("hedgerow-injector", 2)
    installed.believe()
    installed.answer()
    installed.trust(namespace, apiserver.ca.read_text())
    installed.pod(namespace, "old", "app")
    installed.pod(namespace, "on-the-host", "app", hostNetwork=True)
    installed.pod(namespace, "over", "app")
    installed.say(namespace, "over", {"phase": "Succeeded"})
    # made before the label, so that no webhook is asked
    installed.pod(namespace, "new", "app", "hedgerow-sidecar")
    apiserver.kubectl("label", "namespace", namespace, f"{INJECTION}=enabled")
    status = {"name": "hedgerow-sidecar", "ready": False, "restartCount": 3, "image": "", "imageID": ""}
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}
    installed.say(namespace, "new", {"phase": "Running", "containerStatuses": [{**status, "state": waiting}]})
    answer = installed.check()
    assert without(answer) == {"sidecars"}
    assert answer.findings["injected"]["text"] == f"1 of 2 pods without a sidecar: {namespace}/old"
    assert f"delete and make anew old in {namespace}" in answer.findings["injected"]["hint"], "nothing starts it again"
    assert "CrashLoopBackOff: back-off 40s" in answer.findings["sidecars"]["text"]
    assert "logs new -c hedgerow-sidecar" in answer.findings["sidecars"]["hint"]
    assert answer.outcome("versions") == "warning", "hedgerow-sidecar:1 is not what new pods get"
    ready = {**status, "ready": True, "state": {"running": {}}}
    installed.say(namespace, "new", {"containerStatuses": [ready]})
    answer = installed.check()
    assert (answer.code, answer.findings["sidecars"]["text"]) == (0, "1 sidecar ready")


def test_a_hint_names_the_pod_that_is_in_trouble(apiserver, installed):
    """kubectl shows a Deployment's log of any of its pods, of one that is well most often."""
    installed.serve("hedgerow-injector", 2)
    path = f"/api/v1/namespaces/{SYSTEM}/pods"
    pods = apiserver.request("GET", f"{path}?labelSelector=app.kubernetes.io/name%3Dhedgerow-injector")["items"]
    bad = sorted(pod["metadata"]["name"] for pod in pods)[-1]
    broken = {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    status = {"name": "injector", "ready": False, "restartCount": 3, "image": "", "imageID": ""}
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}
    installed.say(SYSTEM, bad, {"conditions": [broken], "containerStatuses": [{**status, "state": waiting}]})
    until(lambda: installed.check().outcome("injector") == "warning", "the Deployment to have heard of it")
    assert f"logs {bad} says why" in installed.check().findings["injector"]["hint"]
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    installed.say(SYSTEM, bad, {"containerStatuses": [{**status, "state": waiting}]})
    assert f"describe pod {bad} says why" in installed.check().findings["injector"]["hint"]
    (controller,) = apiserver.request("GET", f"{path}?labelSelector=app.kubernetes.io/name%3Dhedgerow-controller")[
        "items"
    ]
    message = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    unbound = {"type": "PodScheduled", "status": "False", "message": message} | {
        "lastTransitionTime": broken["lastTransitionTime"]
    }
    installed.say(SYSTEM, controller["metadata"]["name"], {"conditions": [unbound]})
    assert "docs/check.md#storage" in installed.check().findings["controller"]["hint"]


def test_pods_without_a_sidecar_are_started_again_by_their_kinds(apiserver, installed, namespace):
    template = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}}
    for kind in ("Deployment", "StatefulSet"):
        body = {
            "apiVersion": "apps/v1",
            "kind": kind,
            "metadata": {"name": f"a-{kind.lower()}", "namespace": namespace},
            "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template},
        }
        apiserver.request("POST", f"/apis/apps/v1/namespaces/{namespace}/{kind.lower()}s", body)
    path = f"/api/v1/namespaces/{namespace}/pods"
    until(lambda: len(apiserver.request("GET", path)["items"]) == 2, "a pod of each")
    apiserver.kubectl("label", "namespace", namespace, f"{INJECTION}=enabled")
    hint = installed.check().findings["injected"]["hint"]
    assert f"kubectl -n {namespace} rollout restart deployment,statefulset" in hint
    assert "make anew" not in hint


def test_waiting_ends_with_what_it_waited_for(apiserver, installed):
    command = [sys.executable, "-m", "hedgerow", "check", "--kubeconfig", str(apiserver.kubeconfig), "--wait", "240"]
    waiting = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        installed.serve("hedgerow-controller", 1)
        installed.serve("hedgerow-injector", 2)
        installed.believe()
        installed.answer()
        told, _ = waiting.communicate(timeout=300)
    finally:
        waiting.kill()
        waiting.wait()
    assert waiting.returncode == 0, told
    assert told.count("controller:") == 1, "only the last round is told"


# --- when nobody can say


def test_an_api_server_that_is_away_is_no_finding(apiserver, tmp_path):
    document = yaml.safe_load(apiserver.kubeconfig.read_text())
    document["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(document))
    answer = hedgerow_check(path)
    assert answer.code == 3
    assert "127.0.0.1:9" in answer.errors


def test_a_token_that_nobody_knows_is_refused_access(apiserver, namespace, tmp_path):
    document = yaml.safe_load(apiserver.kubeconfig_of(namespace, "default").read_text())
    document["users"][0]["user"] = {"token": "forged"}
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(document))
    answer = hedgerow_check(path)
    assert answer.code == 4
    assert "forged" not in answer.text + answer.errors


def test_a_kubeconfig_that_is_not_there_is_said_to_be_missing(tmp_path):
    answer = hedgerow_check(tmp_path / "none")
    assert answer.code == 2
    assert answer.errors.startswith(f"error: --kubeconfig: {tmp_path}/none: No such file or directory")


@pytest.mark.parametrize("content", ["", "{", "kind: Config\n", "clusters: 7\n"])
def test_a_kubeconfig_that_is_none_is_named(tmp_path, content):
    path = tmp_path / "config"
    path.write_text(content)
    answer = hedgerow_check(path)
    assert answer.code == 2
    assert str(path) in answer.errors
    assert "try:" in answer.errors


def test_every_check_has_its_place_in_the_documentation():
    anchors = set(re.findall(r"^### (\S+)$", (ROOT / "docs" / "check.md").read_text(), re.MULTILINE))
    names = {name for name, _ in (*preflight.CHECKS, *health.CHECKS, *health.WITHOUT_INSTALLATION)}
    assert names == anchors
