"""What the other suites take for granted: our images run, names resolve, NetworkPolicies are enforced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.cluster.installed import STORAGE_VARIABLE, Hedgerow
from e2e.harness import pki
from e2e.harness.cluster import Cluster, GivenCluster
from e2e.harness.errors import HarnessError
from e2e.harness.pods import IDLE, RESTRICTED, SERVER, apply, execute, get, logs, python_pod, service, wait_ready
from e2e.harness.programs import until


def one_shot(name: str, image: str, *command: str) -> dict[str, object]:
    container = {"name": "app", "image": image, "securityContext": RESTRICTED, "command": list(command)}
    spec = {"restartPolicy": "Never", "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def said(cluster: Cluster, namespace: str, name: str) -> str:
    """What a pod wrote that ran to a good end."""
    pod = f"/api/v1/namespaces/{namespace}/pods/{name}"

    def phase() -> str:
        return str(cluster.request("GET", pod)["status"]["phase"])

    until(lambda: phase() in ("Succeeded", "Failed"), f"{name} at its end")
    written = logs(cluster, namespace, name)
    assert phase() == "Succeeded", written
    return written


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> str:
    """A namespace with a server, its Service, and a client that the server's policies may name or not."""
    name = cluster.create_namespace()
    apply(
        cluster,
        name,
        python_pod("server", SERVER, cluster.sidecar_image, port=8080),
        service("server", 80, 8080),
        python_pod("friend", IDLE, cluster.sidecar_image),
        python_pod("stranger", IDLE, cluster.sidecar_image),
    )
    wait_ready(cluster, name, "server", "friend", "stranger")
    return name


def test_the_sidecar_runs_without_root_or_capabilities(cluster: Cluster, namespace: str) -> None:
    apply(cluster, namespace, one_shot("sidecar", cluster.sidecar_image, "python", "-m", "sidecar", "--help"))

    assert "usage: sidecar" in said(cluster, namespace, "sidecar")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("python", "-m", "controller", "--help"), "--config"),
        (("hedgerow", "--help"), "Usage: hedgerow"),
        (("hedgerow", "injector", "--help"), "--config"),
    ],
    ids=lambda value: "-".join(value).strip("-") if isinstance(value, tuple) else "",
)
def test_the_controllers_image_holds_the_injector_and_the_command(
    cluster: Cluster, namespace: str, command: tuple[str, ...], expected: str
) -> None:
    apply(cluster, namespace, one_shot("command", cluster.controller_image, *command))

    assert expected in said(cluster, namespace, "command")


@pytest.mark.parametrize("which", ["sidecar_image", "controller_image"])
def test_an_image_says_what_it_holds_and_holds_no_more(cluster: Cluster, namespace: str, which: str) -> None:
    program = """
import json, os, shutil
found = [name for name in ("gcc", "cc", "ld", "make", "pip", "pip3", "apt-get", "curl", "ssh") if shutil.which(name)]
bill = json.load(open("/usr/share/hedgerow/sbom.cdx.json"))
print(json.dumps({"uid": os.getuid(), "found": found, "listed": [part["name"] for part in bill["components"]]}))
"""
    apply(cluster, namespace, one_shot("look", getattr(cluster, which), "python", "-c", program))

    seen = json.loads(said(cluster, namespace, "look"))
    assert seen["uid"] == 1337
    assert set(seen["found"]) <= {"apt-get"}  # Debian's own, without lists and without a right to write
    assert {"hedgerow", "cryptography", "python3.13", "libc6", "nftables"} <= set(seen["listed"])


def test_names_resolve_and_services_lead_to_pods(cluster: Cluster, place: str) -> None:
    for name in ("server", f"server.{place}", f"server.{place}.svc.cluster.local"):
        until(lambda name=name: get(cluster, place, "stranger", f"http://{name}/") == "server", f"{name} answering")


def test_network_policies_are_enforced(cluster: Cluster, place: str) -> None:
    address = cluster.request("GET", f"/api/v1/namespaces/{place}/pods/server")["status"]["podIP"]
    urls = ("http://server/", f"http://{address}:8080/")
    for url in urls:
        until(lambda url=url: get(cluster, place, "stranger", url) == "server", f"{url} answering")

    friends = {"podSelector": {"matchLabels": {"app": "friend"}}}
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "friends"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [friends], "ports": [{"port": 8080}]}],
        },
    }
    apply(cluster, place, policy)
    for url in urls:
        until(lambda url=url: get(cluster, place, "stranger", url, seconds=1).startswith("failed:"), f"{url} denied")
    assert [get(cluster, place, "friend", url) for url in urls] == ["server"] * 2

    cluster.kubectl("-n", place, "delete", "networkpolicy", "friends")
    for url in urls:
        until(lambda url=url: get(cluster, place, "stranger", url, seconds=1) == "server", f"{url} allowed again")


def test_a_new_policy_cuts_connections_that_are_open(cluster: Cluster, place: str) -> None:
    if not cluster.ours:
        pytest.skip("the API leaves open connections to whoever enforces it; ours are judged packet by packet")
    program = """
import http.client, time
connection = http.client.HTTPConnection("server", timeout=2)
def ask():
    connection.request("GET", "/")
    return connection.getresponse().read()
ask()
print("open", flush=True)
try:
    while True:
        ask()
        time.sleep(0.1)
except OSError as error:
    print("cut", flush=True)
import signal
signal.sigwait({signal.SIGTERM})
"""
    apply(cluster, place, python_pod("talker", program, cluster.sidecar_image))
    until(lambda: "open" in execute_logs(cluster, place), "a connection open")

    deny = {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"]}
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "nobody"},
        "spec": deny,
    }
    apply(cluster, place, policy)
    try:
        until(lambda: "cut" in execute_logs(cluster, place), "the open connection cut")
    finally:
        cluster.kubectl("-n", place, "delete", "networkpolicy", "nobody")


def execute_logs(cluster: Cluster, place: str) -> str:
    return cluster.kubectl("-n", place, "logs", "talker", check=False)


def test_programs_in_pods_can_be_looked_into(cluster: Cluster, place: str) -> None:
    assert execute(cluster, place, "friend", "python", "-c", "print(6 * 7)") == "42\n"


def storage_class(hedgerow: Hedgerow) -> str:
    return str(hedgerow.values()["controller"]["persistence"]["storageClass"])


def test_the_suite_runs_on_a_cluster_of_somebody_else(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SIDECAR", "CONTROLLER"):
        monkeypatch.delenv(f"HEDGEROW_E2E_{name}_IMAGE", raising=False)
    with pytest.raises(HarnessError, match="HEDGEROW_E2E_SIDECAR_IMAGE is not set") as unnamed:
        GivenCluster(tmp_path, cluster.kubeconfig)
    assert "python -m e2e.images --out" in unnamed.value.remedy

    monkeypatch.setenv("HEDGEROW_E2E_SIDECAR_IMAGE", cluster.sidecar_image)
    monkeypatch.setenv("HEDGEROW_E2E_CONTROLLER_IMAGE", cluster.controller_image)
    given = GivenCluster(tmp_path, cluster.kubeconfig)
    try:
        assert (given.url, given.ours) == (cluster.url, False)
        monkeypatch.delenv(STORAGE_VARIABLE, raising=False)
        assert storage_class(Hedgerow(given, tmp_path)) == "", "whatever that cluster gives, not a directory of ours"
        monkeypatch.setenv(STORAGE_VARIABLE, "fast")
        assert storage_class(Hedgerow(given, tmp_path)) == "fast"
        name = given.create_namespace()
        apply(given, name, python_pod("idle", IDLE, given.sidecar_image))
        wait_ready(given, name, "idle")
        assert execute(given, name, "idle", "hostname") == "idle\n"
        config = str(given.kubeconfig_of(name, "default"))
        assert f"serviceaccount:{name}:default" in given.kubectl("--kubeconfig", config, "auth", "whoami")
        given.delete_namespace(name)
    finally:
        given.close()


def test_a_cluster_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIDECAR", "CONTROLLER"):
        monkeypatch.setenv(f"HEDGEROW_E2E_{name}_IMAGE", "none.example/none:1")
    authority = pki.Authority(tmp_path / "pki", "nobody")
    config = pki.kubeconfig(tmp_path / "config", url="https://127.0.0.1:1", authority=authority.certificate, token="t")

    with pytest.raises(HarnessError, match=r"the cluster of \S+/config \(https://127\.0\.0\.1:1\): .*refused"):
        GivenCluster(tmp_path, config)
