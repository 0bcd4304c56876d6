"""The chart: what it renders and what it refuses, and that an API server takes it in and lets it go without a trace.

The golden files show reviewers what a change of the chart changes; ``HEDGEROW_GOLDEN=write`` writes them anew.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.injection.program_settings import InjectorSettings
from controller.injection.webhook_configuration import webhook_configuration
from controller.learner import Gate
from controller.settings import Settings
from e2e.apiserver.custom_resources import remove_crds
from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import CommandFailed
from e2e.harness.programs import until
from graph.version import VERSION as PACKAGE

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "hedgerow"
GOLDEN = Path(__file__).parent / "golden"
SYSTEM = "hedgerow-system"
#: Helm renders for a version when it is not connected.
VERSION = "1.36.3"

EVERYTHING: dict[str, Any] = {
    "trustDomain": "mesh.example",
    "tokenAudience": "https://mesh.example/controller",
    "clusterName": "blue",
    "clusterNetworks": ["10.0.0.0/8", "fd00::/8"],
    "imagePullSecrets": [{"name": "registry"}],
    "controller": {
        "image": {"repository": "registry.example/hedgerow/controller", "digest": "sha256:" + "a" * 64},
        "listenHost": "[::]",
        "logLevel": "debug",
        "svidLifetime": 1800,
        "learning": {"minConnections": 10, "minSeconds": 60.5, "quietSeconds": 0},
        "persistence": {"storageClass": "fast", "size": "10Gi"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "infra", "operator": "Exists"}],
        "podAnnotations": {"example.com/owner": "platform"},
        "podLabels": {"team": "platform"},
    },
    "injector": {
        "replicas": 3,
        "failurePolicy": "Ignore",
        "excludedNamespaces": ["legacy", "another"],
        "allowAnnotations": ["exclude-cidrs"],
        "certificate": "external",
        "certManager": {"enabled": True, "issuerRef": {"kind": "ClusterIssuer", "name": "internal"}},
    },
    "sidecar": {"image": {"tag": "1.2.3"}, "native": False, "settings": {"log_level": "debug", "drain_seconds": 30}},
    "crds": {"keep": True},
    "networkPolicies": {"apiServer": {"ports": [443, 16443], "networks": ["10.96.0.1/32", "fd00::1/128"]}},
    "monitoring": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True, "interval": "15s"},
        "prometheusRules": {"enabled": True},
        "grafanaDashboards": {"enabled": True},
    },
}


@pytest.fixture(scope="module")
def apiserver(apiserver: ApiServer, helm: int) -> Iterator[ApiServer]:
    """The API server, with that Helm."""
    with apiserver.with_helm(helm):
        yield apiserver


def render(apiserver: ApiServer, values: dict[str, Any] | None = None, *options: str) -> str:
    flags = ["--namespace", SYSTEM, "--kube-version", VERSION, "--values", "-", *options]
    return apiserver.helm("template", "hedgerow", str(CHART), *flags, stdin=yaml.safe_dump(values or {}))


def objects(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    """By kind and name; of every object there is one."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for each in yaml.safe_load_all(text):
        if each is not None:
            key = (each["kind"], each["metadata"]["name"])
            assert key not in found, f"{key} twice"
            found[key] = each
    return found


def test_helm_finds_nothing_wrong_with_it(apiserver):
    said = apiserver.helm("lint", str(CHART), "--namespace", SYSTEM, "--kube-version", VERSION, "--strict")
    assert "0 chart(s) failed" in said
    assert "WARNING" not in said


@pytest.mark.parametrize(("name", "values"), [("default", {}), ("everything", EVERYTHING)])
def test_what_it_renders_is_what_was_reviewed(apiserver, name, values):
    text = render(apiserver, values)
    path = GOLDEN / f"{name}.yaml"
    if apiserver.helm_major != 3:  # which has another order, and empty lines; what counts is the same
        assert objects(text) == objects(path.read_text())
        return
    if os.environ.get("HEDGEROW_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text(), "the chart renders something else: look at it, then HEDGEROW_GOLDEN=write"


def test_its_version_is_that_of_the_package():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (PACKAGE, PACKAGE)


@pytest.mark.parametrize("values", [{}, EVERYTHING])
def test_the_programs_take_the_settings_that_it_writes(apiserver, tmp_path, values):
    found = objects(render(apiserver, values))
    text = found["ConfigMap", "hedgerow-controller"]["data"]["controller.yaml"]
    controller = Settings.parse(yaml.safe_load(text), tmp_path)
    assert controller.trust_domain == values.get("trustDomain", "hedgerow.local")
    assert controller.kubernetes is not None
    assert controller.kubernetes.namespace == SYSTEM
    assert list(controller.kubernetes.cluster_networks) == values.get("clusterNetworks", [])
    path = tmp_path / "injector.yaml"
    path.write_text(found["ConfigMap", "hedgerow-injector"]["data"]["injector.yaml"])
    injector = InjectorSettings.load(path)
    assert injector.injection.trust_domain == controller.trust_domain
    wanted = values.get("tokenAudience", "hedgerow-controller")
    assert injector.injection.token_audience == controller.kubernetes.token_audience == wanted
    assert injector.injection.kubernetes_version == (1, 36)
    assert injector.injection.native_sidecar is values.get("sidecar", {}).get("native", True)
    mounts = found["Deployment", "hedgerow-injector"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert str(injector.certificate.parent) in {mount["mountPath"] for mount in mounts}
    listeners = {"webhook": injector.listen.port, "monitoring": injector.health_listen.port}
    ports = found["Deployment", "hedgerow-injector"]["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert {port["name"]: port["containerPort"] for port in ports} == listeners


def test_numbers_of_any_size_reach_the_programs(apiserver, tmp_path):
    """Helm reads numbers as floating point and writes a million as 1e+06, which YAML takes for a text."""
    learning = {"minSeconds": 1_000_000, "quietSeconds": 2_000_000.5, "staleAfter": 100_000_000, "retireAfter": 3e8}
    values = {
        "controller": {"learning": {"minConnections": 1_000_000, **learning}, "svidLifetime": 80_000},
        "sidecar": {
            "startSeconds": 80_000,
            "resources": {"requests": {"cpu": 0.5}, "limits": {"cpu": 2, "memory": 1_000_000_000}},
            "settings": {"limits": {"connections": 1_000_000, "buffered_bytes": 1_000_000_000}},
        },
    }
    found = objects(render(apiserver, values))
    text = found["ConfigMap", "hedgerow-controller"]["data"]["controller.yaml"]
    controller = Settings.parse(yaml.safe_load(text), tmp_path)
    assert controller.learning == Gate(1_000_000, 1e6, 2_000_000.5, 1e8, 3e8)
    assert controller.svid_lifetime == 80_000
    text = found["ConfigMap", "hedgerow-injector"]["data"]["injector.yaml"]
    injection = InjectorSettings.parse(yaml.safe_load(text), tmp_path).injection
    assert injection.start_seconds == 80_000
    assert injection.sidecar == values["sidecar"]["settings"]
    assert injection.resources.requests == {"cpu": "0.5", "memory": "96Mi"}
    assert injection.resources.limits == {"cpu": "2", "memory": "1000000000"}


@pytest.mark.parametrize("values", [{}, EVERYTHING])
def test_its_webhook_is_the_one_that_the_injector_is_tested_with(apiserver, values):
    found = objects(render(apiserver, values))["MutatingWebhookConfiguration", "hedgerow-injector"]
    said = values.get("injector", {})
    wanted = webhook_configuration(SYSTEM, said.get("failurePolicy", "Fail"), said.get("excludedNamespaces", ()))
    assert found["webhooks"] == wanted["webhooks"]


def test_a_change_of_settings_starts_pods_anew(apiserver):
    def checksum(values: dict[str, Any], name: str) -> str:
        template = objects(render(apiserver, values))["Deployment", name]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/settings"])

    assert checksum({}, "hedgerow-controller") != checksum({"trustDomain": "other.example"}, "hedgerow-controller")
    sidecar = {"sidecar": {"settings": {"log_level": "debug"}}}
    assert checksum({}, "hedgerow-injector") != checksum(sidecar, "hedgerow-injector")
    assert checksum({}, "hedgerow-controller") == checksum(sidecar, "hedgerow-controller")


REFUSED = [
    ({"surprise": 1}, "surprise"),
    ({"trustDomain": "Not A Domain"}, "/trustDomain"),
    ({"trustDomain": 7}, "/trustDomain"),
    ({"tokenAudience": "with space"}, "/tokenAudience"),
    ({"tokenAudience": ""}, "/tokenAudience"),
    ({"tokenAudience": ["a", "b"]}, "/tokenAudience"),
    ({"tokenAudience": "https://kubernetes.default.svc"}, 'tokenAudience: "https://kubernetes.default.svc" is the API'),
    ({"clusterName": "with space"}, "/clusterName"),
    ({"clusterNetworks": "10.0.0.0/8"}, "/clusterNetworks"),
    ({"clusterNetworks": ["10.0.0.0"]}, "/clusterNetworks/0"),
    ({"clusterNetworks": [f"10.{number}.0.0/16" for number in range(17)]}, "/clusterNetworks"),
    ({"imagePullSecrets": ["registry"]}, "/imagePullSecrets/0"),
    ({"controller": {"image": {"digest": "sha256:short"}}}, "/controller/image/digest"),
    ({"controller": {"image": {"pullPolicy": "Sometimes"}}}, "/controller/image/pullPolicy"),
    ({"controller": {"logLevel": "loud"}}, "/controller/logLevel"),
    ({"controller": {"svidLifetime": 1}}, "/controller/svidLifetime"),
    ({"controller": {"replicas": 2}}, "replicas"),
    ({"controller": {"learning": {"minConnections": 0}}}, "/controller/learning/minConnections"),
    ({"controller": {"persistence": {"size": "a lot"}}}, "/controller/persistence/size"),
    ({"controller": {"listenHost": "::"}}, "/controller/listenHost"),
    ({"injector": {"replicas": 0}}, "/injector/replicas"),
    ({"injector": {"failurePolicy": "Maybe"}}, "/injector/failurePolicy"),
    ({"injector": {"certificate": "mine"}}, "/injector/certificate"),
    ({"injector": {"certManager": {"enabled": True}}}, "/injector/certificate"),
    ({"injector": {"excludedNamespaces": ["UPPER"]}}, "/injector/excludedNamespaces/0"),
    ({"injector": {"allowAnnotations": ["everything"]}}, "/injector/allowAnnotations/0"),
    ({"sidecar": {"native": "yes"}}, "/sidecar/native"),
    ({"sidecar": {"resources": {"requests": {"cpu": "many"}}}}, "/sidecar/resources/requests/cpu"),
    ({"sidecar": {"resources": {"requests": {"gpu": "1"}}}}, "gpu"),
    ({"sidecar": {"startSeconds": 1}}, "/sidecar/startSeconds"),
    (
        {"sidecar": {"settings": {"drain_secnds": 30}}},
        "'/sidecar/settings': additional properties 'drain_secnds' not allowed",
    ),
    ({"sidecar": {"settings": {"uid": 0}}}, "'/sidecar/settings': additional properties 'uid' not allowed"),
    ({"sidecar": {"settings": {"probes": []}}}, "'/sidecar/settings': additional properties 'probes' not allowed"),
    (
        {"sidecar": {"settings": {"limits": {"connection": 5}}}},
        "'/sidecar/settings/limits': additional properties 'connection' not allowed",
    ),
    (
        {"sidecar": {"settings": {"drain_seconds": "30"}}},
        "'/sidecar/settings/drain_seconds': got string, want number",
    ),
    (
        {"sidecar": {"settings": {"drain_seconds": 4000}}},
        "'/sidecar/settings/drain_seconds': maximum: got 4,000, want 3,600",
    ),
    ({"sidecar": {"settings": {"opaque_ports": ["3306"]}}}, "/opaque_ports/0': got string, want integer"),
    ({"sidecar": {"settings": {"unsynced": "lern"}}}, "/unsynced': value must be one of 'deny', 'learn'"),
    ({"sidecar": {"settings": {"dns": None}}}, "'/sidecar/settings/dns': got null, want object"),
    ({"networkPolicies": {"apiServer": {"ports": [0]}}}, "/networkPolicies/apiServer/ports/0"),
    ({"networkPolicies": {"apiServer": {"ports": []}}}, "/networkPolicies/apiServer/ports"),
    ({"networkPolicies": {"apiServer": {"networks": ["10.0.0.1"]}}}, "/networkPolicies/apiServer/networks/0"),
    ({"crds": {"install": "no"}}, "/crds/install"),
    ({"sidecar": {"resources": {"limits": {"cpu": True}}}}, "got boolean, want number or string"),
    (
        {"controller": {"persistence": {"existingClaim": "mine", "enabled": False}}},
        "controller.persistence.existingClaim: without effect beside persistence.enabled: false",
    ),
    (
        {"controller": {"persistence": {"existingClaim": "mine", "storageClass": "fast"}}},
        "controller.persistence.storageClass: a claim that exists has its own",
    ),
    (
        {"injector": {"certManager": {"issuerRef": {"name": "internal"}}}},
        "injector.certManager.issuerRef.name: asked by nobody beside certManager.enabled: false",
    ),
    ({"crds": {"install": False, "keep": True}}, "crds.keep: beside crds.install: false"),
    (
        {"networkPolicies": {"enabled": False, "apiServer": {"networks": ["10.96.0.1/32"]}}},
        "networkPolicies.apiServer.networks: nothing is narrowed",
    ),
    ({"monitoring": {"podMonitor": {"interval": "often"}}}, "/monitoring/podMonitor/interval"),
]


@pytest.mark.parametrize(("values", "named"), REFUSED, ids=[json.dumps(values) for values, _ in REFUSED])
def test_a_wrong_value_is_refused_by_name(apiserver, values, named):
    with pytest.raises(CommandFailed) as refusal:
        render(apiserver, values)
    assert named in str(refusal.value)


def test_a_file_that_is_no_yaml_is_refused(apiserver):
    with pytest.raises(CommandFailed, match="YAML"):
        apiserver.helm("template", "hedgerow", str(CHART), "-n", SYSTEM, "--values", "-", stdin="controller: [")


def test_it_goes_into_its_own_namespace_alone(apiserver):
    with pytest.raises(CommandFailed, match="hedgerow-system"):
        apiserver.helm("template", "hedgerow", str(CHART), "--namespace", "default", "--kube-version", VERSION)


def test_a_cluster_that_is_too_old_is_refused(apiserver):
    with pytest.raises(CommandFailed, match="kubeVersion"):
        apiserver.helm("template", "hedgerow", str(CHART), "--namespace", SYSTEM, "--kube-version", "1.28.0")


# --- on a cluster


def everything_there(apiserver: ApiServer) -> set[str]:
    """Every object of the cluster that somebody made, by resource and name."""
    ignored = ("events", "events.events.k8s.io", "leases.coordination.k8s.io", "componentstatuses")
    kinds = apiserver.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    asked = ",".join(kind for kind in kinds if kind not in ignored)
    return set(apiserver.kubectl("get", asked, "--all-namespaces", "-o", "name", "--ignore-not-found").split())


@pytest.fixture
def system(apiserver: ApiServer) -> Any:
    """Our namespace, in which only restricted pods may run, on a cluster that has nothing of ours."""
    remove_crds(apiserver)
    name = apiserver.create_namespace({"pod-security.kubernetes.io/enforce": "restricted"}, name=SYSTEM)
    yield name
    apiserver.kubectl("delete", "namespace", name, "--wait=true")


def test_install_upgrade_rollback_and_uninstall_leave_nothing(apiserver, system):
    before = everything_there(apiserver)
    values = {"controller": {"persistence": {"enabled": False}}}

    def helm(action: str, *flags: str, stdin: str = "") -> str:
        return apiserver.helm(action, "hedgerow", *flags, "--namespace", system, stdin=stdin)

    helm("install", str(CHART), "--values", "-", stdin=yaml.safe_dump(values))
    installed = everything_there(apiserver)
    assert {
        "deployment.apps/hedgerow-controller",
        "deployment.apps/hedgerow-injector",
        "mutatingwebhookconfiguration.admissionregistration.k8s.io/hedgerow-injector",
        "customresourcedefinition.apiextensions.k8s.io/accessoverrides.hedgerow.dev",
        "poddisruptionbudget.policy/hedgerow-injector",
        "networkpolicy.networking.k8s.io/hedgerow-default-deny",
    } <= installed
    # what the controller writes into the webhook stays through upgrades
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hedgerow-injector"
    bundle = base64.b64encode(apiserver.ca.read_bytes()).decode()
    operations = [{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]
    apiserver.request("PATCH", path, operations, content_type="application/json-patch+json")

    def webhook() -> dict[str, Any]:
        return apiserver.request("GET", path)["webhooks"][0]

    changed = {**values, "injector": {"replicas": 3}, "sidecar": {"settings": {"log_level": "debug"}}}
    helm("upgrade", str(CHART), "--values", "-", stdin=yaml.safe_dump(changed))
    deployment = json.loads(apiserver.kubectl("-n", system, "get", "deployment/hedgerow-injector", "-o", "json"))
    assert deployment["spec"]["replicas"] == 3
    assert webhook()["clientConfig"]["caBundle"] == bundle
    helm("rollback", "1")
    deployment = json.loads(apiserver.kubectl("-n", system, "get", "deployment/hedgerow-injector", "-o", "json"))
    assert deployment["spec"]["replicas"] == 2
    assert webhook()["clientConfig"]["caBundle"] == bundle
    helm("uninstall", "--wait", "--cascade", "foreground")

    def left() -> set[str]:
        return {
            each
            for each in everything_there(apiserver) - before
            if not each.startswith(("pod/", "replicaset.apps/", "endpointslice"))
        }

    # What is deleted "in the foreground" goes when the garbage collector comes to it; Helm 4 may not wait so long
    until(lambda: not left(), "everything of ours gone")


def test_custom_resources_can_be_kept(apiserver, system):
    values = {"controller": {"persistence": {"enabled": False}}, "crds": {"keep": True}}
    apiserver.helm("install", "hedgerow", str(CHART), "-n", system, "--values", "-", stdin=yaml.safe_dump(values))
    try:
        said = apiserver.helm("uninstall", "hedgerow", "-n", system)
        assert "accessoverrides.hedgerow.dev" in said
        assert "accessoverrides" in apiserver.kubectl("get", "crd", "-o", "name")
    finally:
        remove_crds(apiserver)


def pods(apiserver: ApiServer) -> dict[str, dict[str, Any]]:
    """What runs in Hedgerow's own pods, by name: of Deployments, and of ``helm test``."""
    found = {}
    for (kind, name), one in objects(render(apiserver)).items():
        if kind in ("Deployment", "Pod"):
            found[name] = one["spec"]["template"] if kind == "Deployment" else one
    assert set(found) == {"hedgerow-controller", "hedgerow-injector", "hedgerow-check"}
    return found


def test_its_own_pods_are_restricted_ones(apiserver, system):
    """Judged by the API server's own admission: the namespace enforces the profile."""
    for name, found in pods(apiserver).items():
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": system, "labels": found["metadata"]["labels"]},
            "spec": {**found["spec"], "serviceAccountName": "default"},
        }
        apiserver.request("POST", f"/api/v1/namespaces/{system}/pods?dryRun=All&fieldValidation=Strict", pod)


def test_only_who_asks_the_api_server_has_a_token_for_it(apiserver):
    asking = {"hedgerow-controller", "hedgerow-check"}
    for name, found in pods(apiserver).items():
        assert found["spec"]["automountServiceAccountToken"] is (name in asking)
        assert found["spec"]["serviceAccountName"] == name
        assert found["spec"]["enableServiceLinks"] is False
    accounts = {name: one for (kind, name), one in objects(render(apiserver)).items() if kind == "ServiceAccount"}
    assert set(accounts) == asking | {"hedgerow-injector"}
    assert not any(one["automountServiceAccountToken"] for one in accounts.values())


def test_only_pods_that_may_have_a_certificate_reach_whom_it_is_had_from(apiserver):
    found = objects(render(apiserver))
    ingress = found["NetworkPolicy", "hedgerow-controller"]["spec"]["ingress"]
    asking = [rule["from"] for rule in ingress if "issuer" in [port["port"] for port in rule["ports"]]]
    assert asking == [[{"namespaceSelector": {"matchLabels": {"hedgerow.dev/injection": "enabled"}}}]]
    ports = found["Deployment", "hedgerow-controller"]["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert {port["port"] for rule in ingress for port in rule["ports"]} == {port["name"] for port in ports}


def test_its_way_to_the_api_server_can_be_narrowed(apiserver):
    older = {"networkPolicies": {"apiServer": None}}  # as after an upgrade with --reuse-values
    for values in ({}, older, EVERYTHING):
        said = values.get("networkPolicies", {}).get("apiServer") or {"ports": [443, 6443]}
        wanted: dict[str, Any] = {"ports": [{"port": port, "protocol": "TCP"} for port in said["ports"]]}
        if "networks" in said:
            wanted["to"] = [{"ipBlock": {"cidr": network}} for network in said["networks"]]
        found = objects(render(apiserver, values))
        for name in ("hedgerow-controller", "hedgerow-check"):
            egress = found["NetworkPolicy", name]["spec"]["egress"]
            assert wanted in egress
            beside = [port["port"] for rule in egress if rule != wanted for port in rule.get("ports", [])]
            assert beside == [53, 53]


def test_the_api_server_knows_every_field_of_it(apiserver, system):
    for (kind, name), found in objects(render(apiserver, {}, "--no-hooks")).items():
        apiserver.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(found))
        assert found["metadata"].get("labels", {}).get("app.kubernetes.io/part-of") == "hedgerow", (kind, name)
