"""The harness keeps its word: what other suites build upon is tried here against the real thing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError, CommandFailed, HarnessError
from e2e.harness.programs import until
from e2e.harness.requests import Api, ApiUnreachable

AUDIENCE = "somebody.example"

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ranges.harness.example}
spec:
  group: harness.example
  names: {kind: Range, plural: ranges, singular: range}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [low, high]
            properties: {low: {type: integer}, high: {type: integer}}
            x-kubernetes-validations:
            - {rule: self.low <= self.high, message: low must not exceed high}
"""


def pod(name: str, account: str = "default") -> dict[str, object]:
    container = {"name": "app", "image": "none.example/none:1"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"serviceAccountName": account, "containers": [container]},
    }


def review(apiserver: ApiServer, token: str, audience: str) -> dict[str, object]:
    spec = {"token": token, "audiences": [audience]}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
    return apiserver.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body)["status"]


def test_a_namespace_is_fresh_and_admits_pods(apiserver: ApiServer, namespace: str) -> None:
    assert apiserver.kubectl("-n", namespace, "get", "pods", "-o", "name") == ""

    apiserver.kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(pod("one")))

    assert apiserver.kubectl("-n", namespace, "get", "pods", "-o", "name").split() == ["pod/one"]


def test_controllers_run(apiserver: ApiServer, namespace: str) -> None:
    apiserver.kubectl("-n", namespace, "create", "deployment", "web", "--image=none.example/none:1", "--replicas=2")

    def owned() -> bool:
        pods = apiserver.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
        return [item["metadata"]["ownerReferences"][0]["kind"] for item in pods] == ["ReplicaSet"] * 2

    until(owned, "two pods of a ReplicaSet")


def test_a_deleted_namespace_goes_with_everything_in_it(apiserver: ApiServer) -> None:
    name = apiserver.create_namespace({"purpose": "deletion"})
    assert apiserver.request("GET", f"/api/v1/namespaces/{name}")["metadata"]["labels"]["purpose"] == "deletion"
    apiserver.kubectl("-n", name, "create", "configmap", "left-over")

    apiserver.delete_namespace(name)

    def gone() -> bool:
        return name not in apiserver.kubectl("get", "namespaces", "-o", "name")

    until(gone, f"{name} gone")


def test_custom_resources_are_judged_by_their_rules(apiserver: ApiServer, namespace: str) -> None:
    apiserver.kubectl("apply", "-f", "-", stdin=CRD)
    try:
        apiserver.kubectl("wait", "--for=condition=Established", "crd/ranges.harness.example", "--timeout=30s")
        path = f"/apis/harness.example/v1/namespaces/{namespace}/ranges"
        body = {"apiVersion": "harness.example/v1", "kind": "Range", "metadata": {"name": "r"}}

        with pytest.raises(ApiError, match="low must not exceed high") as refused:
            apiserver.request("POST", path, body | {"spec": {"low": 2, "high": 1}})
        assert (refused.value.status, refused.value.reason) == (422, "Invalid")

        apiserver.request("POST", path, body | {"spec": {"low": 1, "high": 2}})
    finally:
        apiserver.kubectl("delete", "crd", "ranges.harness.example")


def test_a_token_is_for_its_audience_alone(apiserver: ApiServer, namespace: str) -> None:
    token = apiserver.token(namespace, "default", AUDIENCE)

    accepted = review(apiserver, token, AUDIENCE)
    assert accepted["authenticated"] is True
    assert accepted["user"]["username"] == f"system:serviceaccount:{namespace}:default"
    assert not review(apiserver, token, "another.example").get("authenticated")


def test_a_token_is_bound_to_its_pod_and_ends_with_it(apiserver: ApiServer, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    uid = apiserver.request("POST", pods, pod("bound"))["metadata"]["uid"]
    token = apiserver.token(namespace, "default", AUDIENCE, pod="bound")

    extra = review(apiserver, token, AUDIENCE)["user"]["extra"]
    assert extra["authentication.kubernetes.io/pod-name"] == ["bound"]
    assert extra["authentication.kubernetes.io/pod-uid"] == [uid]

    apiserver.request("DELETE", f"{pods}/bound", {"gracePeriodSeconds": 0})
    until(lambda: not review(apiserver, token, AUDIENCE).get("authenticated"), "refused the token of a deleted pod")


def test_an_account_may_do_what_it_was_granted_and_no_more(apiserver: ApiServer, namespace: str) -> None:
    config = str(apiserver.kubeconfig_of(namespace, "default"))
    whoami = apiserver.kubectl("--kubeconfig", config, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
    assert whoami == f"system:serviceaccount:{namespace}:default"
    with pytest.raises(CommandFailed, match="forbidden"):
        apiserver.kubectl("--kubeconfig", config, "-n", namespace, "get", "configmaps")

    apiserver.kubectl("-n", namespace, "create", "role", "reader", "--verb=list", "--resource=configmaps")
    account = f"--serviceaccount={namespace}:default"
    apiserver.kubectl("-n", namespace, "create", "rolebinding", "reader", "--role=reader", account)

    def may() -> bool:
        answer = apiserver.kubectl(
            "--kubeconfig", config, "-n", namespace, "get", "configmaps", "-o", "name", check=False
        )
        return answer.split() == ["configmap/kube-root-ca.crt"]

    until(may, "allowed by the new role")
    with pytest.raises(CommandFailed, match="forbidden"):
        apiserver.kubectl("--kubeconfig", config, "-n", namespace, "get", "secrets")


def test_who_did_what_is_in_the_audit_log(apiserver: ApiServer, namespace: str) -> None:
    apiserver.kubectl("-n", namespace, "create", "configmap", "watched")

    def logged() -> bool:
        wanted = ("create", "configmaps", namespace, "watched")
        seen = [(event["verb"], event.get("objectRef") or {}) for event in apiserver.audited()]
        return wanted in [(verb, o.get("resource"), o.get("namespace"), o.get("name")) for verb, o in seen]

    until(logged, "in the audit log")


def test_the_server_stops_and_comes_back_with_everything(apiserver: ApiServer, namespace: str) -> None:
    apiserver.kubectl("-n", namespace, "create", "configmap", "kept")
    url = apiserver.url

    apiserver.stop()
    try:
        with pytest.raises(ApiUnreachable):
            apiserver.request("GET", "/api")
    finally:
        apiserver.start()

    assert apiserver.url == url
    assert "configmap/kept" in apiserver.kubectl("-n", namespace, "get", "configmaps", "-o", "name")


@pytest.mark.parametrize("program", ["etcd", "kube-apiserver", "kube-controller-manager"])
def test_what_ended_by_itself_is_begun_again_and_told(apiserver: ApiServer, namespace: str, program: str) -> None:
    apiserver.kubectl("-n", namespace, "create", "configmap", "kept")

    os.kill(apiserver.pid_of(program), signal.SIGKILL)
    told: list[dict[str, str]] = []
    until(lambda: told.append(apiserver.mend()) or program in told[-1], f"the end of {program} noticed")

    assert told[-1][program].startswith(f"{program} was killed by SIGKILL:")
    assert program not in apiserver.mend()
    assert "configmap/kept" in apiserver.kubectl("-n", namespace, "get", "configmaps", "-o", "name")
    fresh = apiserver.create_namespace()  # its account is made by the controllers
    apiserver.delete_namespace(fresh)


def test_what_was_told_to_stop_stays_stopped(apiserver: ApiServer) -> None:
    apiserver.stop()
    try:
        assert apiserver.mend() == {}
        assert not apiserver.running
    finally:
        apiserver.start()


def test_a_watch_from_before_a_compaction_is_gone(apiserver: ApiServer, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    before = apiserver.request("GET", pods)["metadata"]["resourceVersion"]
    apiserver.request("POST", pods, pod("later"))

    assert apiserver.compact() > int(before)
    apiserver.stop()
    apiserver.start()

    with pytest.raises(ApiError) as refused:
        apiserver.request("GET", f"{pods}?resourceVersion={before}&resourceVersionMatch=Exact&limit=1")
    assert (refused.value.status, refused.value.reason) == (410, "Expired")


def test_strangers_are_refused(apiserver: ApiServer) -> None:
    with pytest.raises(ApiError) as anonymous:
        Api.at(apiserver.url, apiserver.ca).call("GET", "/api/v1/pods")
    assert anonymous.value.status == 403
    with pytest.raises(ApiError) as invalid:
        Api.at(apiserver.url, apiserver.ca, token="made.up.token").call("GET", "/api/v1/pods")
    assert invalid.value.status == 401


def test_helm_installs_and_removes(apiserver: ApiServer, namespace: str, tmp_path: Path) -> None:
    chart = tmp_path / "small"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: small\nversion: 1.0.0\n")
    template = (
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {word: {{ .Values.word }}}\n"
    )
    (chart / "templates" / "map.yaml").write_text(template)

    apiserver.helm("-n", namespace, "install", "it", str(chart), "--set", "word=hello")
    got = apiserver.request("GET", f"/api/v1/namespaces/{namespace}/configmaps/it")
    assert got["data"] == {"word": "hello"}

    apiserver.helm("-n", namespace, "uninstall", "it")
    with pytest.raises(ApiError) as gone:
        apiserver.request("GET", f"/api/v1/namespaces/{namespace}/configmaps/it")
    assert gone.value.status == 404


def test_a_failed_command_says_why(apiserver: ApiServer) -> None:
    with pytest.raises(CommandFailed, match="the server doesn't have a resource type") as failed:
        apiserver.kubectl("get", "unicorns")
    assert failed.value.code == 1
    assert "doesn't have a resource type" in apiserver.kubectl("get", "unicorns", check=False)


def test_two_run_side_by_side_and_end_without_a_trace(apiserver: ApiServer, namespace: str, tmp_path: Path) -> None:
    other = ApiServer(tmp_path)
    try:
        assert other.url != apiserver.url
        assert namespace not in other.kubectl("get", "namespaces", "-o", "name")
        with pytest.raises(ApiError) as unknown:
            Api.at(other.url, other.ca, token=apiserver.token(namespace, "default")).call("GET", "/api/v1/namespaces")
        assert unknown.value.status == 401
    finally:
        other.close()

    left = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [command for command in left if str(tmp_path).encode() in command]


def test_an_old_kubernetes_is_refused(apiserver: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert apiserver.require_version() >= (1, 29)

    monkeypatch.setattr("e2e.harness.tools.OLDEST", (9, 0))
    with pytest.raises(HarnessError, match=r"runs Kubernetes v1\.\d+\.\d+; the suites need 9\.0 or later"):
        apiserver.require_version()
