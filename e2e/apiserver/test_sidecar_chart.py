"""The library chart: a chart that includes it makes the pods that the injector would have made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.injection.injecting import Injected, Namespace, inject
from controller.injection.roots import VARIABLES
from controller.injection.settings import PASSED, InjectionSettings, Resources, resources
from controller.kube.inventory.said import said_of
from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import CommandFailed
from sidecar.settings import Settings

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "charts" / "hedgerow-sidecar"
GOLDEN = Path(__file__).parent / "golden" / "sidecar.yaml"
HOSTS = ["pay.example.com:8443", "api.example.com", "pay.example.com", "api.example.com.example.org"]
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: cart
spec:
  selector: {matchLabels: {app: cart}}
  template:
    metadata:
      labels:
        app: cart
        {{- include "hedgerow-sidecar.labels" . | nindent 8 }}
      annotations: {{- include "hedgerow-sidecar.annotations" . | nindent 8 }}
    spec:
      initContainers: {{- include "hedgerow-sidecar.initContainers" . | nindent 8 }}
        - name: own
          image: own:1
          env: {{- include "hedgerow-sidecar.env" . | nindent 12 }}
          volumeMounts: {{- include "hedgerow-sidecar.volumeMounts" . | nindent 12 }}
      containers:
        - name: cart
          image: cart:1
          env: {{- include "hedgerow-sidecar.env" . | nindent 12 }}
            - {name: OWN, value: "1"}
          volumeMounts: {{- include "hedgerow-sidecar.volumeMounts" . | nindent 12 }}
            - {name: own, mountPath: /own}
      volumes: {{- include "hedgerow-sidecar.volumes" . | nindent 8 }}
        - {name: own, emptyDir: {}}
"""


@pytest.fixture(scope="module")
def apiserver(apiserver: ApiServer, helm: int) -> Iterator[ApiServer]:
    """The API server, with that Helm."""
    with apiserver.with_helm(helm):
        yield apiserver


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    """An ordinary chart that includes the library."""
    folder = tmp_path / "cart"
    (folder / "templates").mkdir(parents=True)
    (folder / "templates" / "deployment.yaml").write_text(DEPLOYMENT)
    dependency = {"name": "hedgerow-sidecar", "version": "0.1.0", "repository": LIBRARY.as_uri()}
    described = {"apiVersion": "v2", "name": "cart", "version": "1.0.0", "dependencies": [dependency]}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(described))
    shutil.copytree(LIBRARY, folder / "charts" / "hedgerow-sidecar")
    return folder


def rendered(apiserver: ApiServer, chart: Path, **values: Any) -> dict[str, Any]:
    given = yaml.safe_dump({"hedgerow-sidecar": values})
    text = apiserver.helm("template", "cart", str(chart), "--kube-version", "1.36.3", "--values", "-", stdin=given)
    return dict(yaml.safe_load(text))


def injected(settings: InjectionSettings, annotations: dict[str, str] | None = None, **env: str) -> dict[str, Any]:
    own = [{"name": name, "value": value} for name, value in {"OWN": "1", **env}.items()]
    mounted = [{"name": "own", "mountPath": "/own"}]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": {"team": "green"}, "annotations": annotations or {}},
        "spec": {
            "initContainers": [{"name": "own", "image": "own:1"}],
            "containers": [{"name": "cart", "image": "cart:1", "env": own, "volumeMounts": mounted}],
            "volumes": [{"name": "own", "emptyDir": {}}],
        },
    }
    found = inject(pod, Namespace("shop"), settings)
    assert isinstance(found, Injected)
    return dict(found.pod)


def alike(container: dict[str, Any]) -> dict[str, Any]:
    """A container without an order among its variables and mounts, and without what is empty."""
    orderly = {key: value for key, value in container.items() if value is not None}
    for part in ("env", "volumeMounts"):
        if part in orderly:
            orderly[part] = sorted(orderly[part], key=lambda each: json.dumps(each, sort_keys=True))
    return orderly


def by_name(items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in items}


def assert_same(made: dict[str, Any], wanted: dict[str, Any]) -> None:
    """That the chart makes what the injector made, every container in its place."""
    for part in ("initContainers", "containers"):
        assert [alike(each) for each in made[part]] == [alike(each) for each in wanted[part]]
    assert by_name(made["volumes"]) == by_name(wanted["volumes"])


PRICED = {"ports": [8080], "request": {"set": {"X-Price": "$5 <&>"}}}


@pytest.mark.parametrize(
    "settings", [{}, {"log_level": "debug", "drain_seconds": 30, "inspect": {"headers": [PRICED]}}]
)
@pytest.mark.parametrize("validation", [True, False])
def test_it_makes_what_the_injector_makes(apiserver, chart, settings, validation):
    wanted = injected(
        InjectionSettings(
            image="registry.example/sidecar:7",
            validation=validation,
            trust_domain="mesh.example",
            token_audience='mesh.example/"blue"',
            resources=Resources({"cpu": "1"}, {"memory": "1Gi"}),
            sidecar=settings,
        )
    )["spec"]
    made = rendered(
        apiserver,
        chart,
        image={"repository": "registry.example/sidecar", "tag": "7"},
        validation=validation,
        trustDomain="mesh.example",
        tokenAudience='mesh.example/"blue"',
        resources={"requests": {"cpu": "1", "memory": None}, "limits": {"memory": "1Gi"}},
        settings=settings,
    )["spec"]["template"]
    assert_same(made["spec"], wanted)
    assert made["metadata"]["annotations"] is None
    assert alike(made["spec"]["containers"][0])["env"] == [{"name": "OWN", "value": "1"}]


QUANTITIES: list[dict[str, Any]] = [
    {"requests": {"cpu": 1, "memory": 1073741824}, "limits": {"cpu": 1, "memory": 1073741824}},
    {"requests": {"cpu": 0.25, "memory": "128Mi"}, "limits": {"cpu": 2.0, "memory": 10**12, "ephemeral-storage": 5}},
    {"requests": {"cpu": "1500m", "memory": "0.5Gi"}, "limits": {"cpu": 1.5, "memory": "524288Ki"}},
    {"requests": {"cpu": 0, "memory": "96Mi"}, "limits": {"memory": "1G"}},
]


@pytest.mark.parametrize("amounts", QUANTITIES, ids=json.dumps)
def test_quantities_may_be_plain_numbers(apiserver, chart, amounts):
    image = "hedgerow/sidecar:0.1.0"
    wanted = injected(InjectionSettings(image, resources=resources(amounts), capture_resources=resources(amounts)))
    made = rendered(apiserver, chart, resources=amounts, captureResources=amounts)
    assert_same(made["spec"]["template"]["spec"], wanted["spec"])


NONE = {"requests": {"cpu": None, "memory": None}, "limits": {"memory": None}}


def test_what_is_left_empty_has_no_resources(apiserver, chart):
    wanted = injected(InjectionSettings("hedgerow/sidecar:0.1.0", resources=Resources(), capture_resources=Resources()))
    made = rendered(apiserver, chart, resources=NONE, captureResources=NONE)
    assert_same(made["spec"]["template"]["spec"], wanted["spec"])


@pytest.mark.parametrize("settings", [{}, {"inspect": {"ports": [8080], "egress": {"roots": "/own.pem"}}, "dns": {}}])
@pytest.mark.parametrize("roots", ["", "company-roots/ca.crt"])
@pytest.mark.parametrize("own", [[], ["SSL_CERT_FILE"], sorted(VARIABLES)])
def test_hosts_outside_are_inspected_as_the_injector_has_it(apiserver, chart, settings, roots, own):
    asked = {"hedgerow.dev/inspect-egress": ", ".join(HOSTS)}
    if roots:
        asked["hedgerow.dev/egress-roots"] = roots
    everywhere = InjectionSettings(image="hedgerow/sidecar:0.1.0", sidecar=settings)
    wanted = injected(everywhere, asked, **dict.fromkeys(own, "/own/roots.pem"))["spec"]
    for container in (*wanted["initContainers"], *wanted["containers"]):  # those that a container sets are its own
        container["env"] = [each for each in container["env"] if each["name"] not in own]
    made = rendered(apiserver, chart, inspectEgress=HOSTS, egressRoots=roots, ownVariables=own, settings=settings)
    template = made["spec"]["template"]
    spec = template["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        container["env"] = container["env"] or []
    assert_same(spec, wanted)
    assert said_of(template["metadata"]) == said_of({"annotations": asked})
    assert template["metadata"]["annotations"].get("hedgerow.dev/egress-roots", "") == roots
    assert inject(template, Namespace("shop"), everywhere).reason == "disabled"


PROBE: dict[str, Any] = {"container": "cart", "kind": "readyz", "http": {"port": 8080, "path": "/ok"}}
REFUSED = [
    ({"surprise": 1}, "surprise"),
    ({"image": {"digest": "sha256:short"}}, "/image/digest"),
    ({"trustDomain": "Not A Domain"}, "/trustDomain"),
    ({"controllerHost": "controller:15012"}, "/controllerHost"),
    ({"validation": "no"}, "'/validation': got string, want boolean"),
    ({"validation": None}, "missing property 'validation'"),
    ({"resources": None}, "missing property 'resources'"),
    ({"image": {"tag": 1.1}}, "'/image/tag': got number, want string"),
    ({"tokenAudience": "with space"}, "/tokenAudience"),
    ({"tokenAudience": "https://kubernetes.default.svc"}, "write the controller's tokenAudience"),
    ({"startSeconds": 1}, "/startSeconds"),
    ({"resources": {"limits": {"memory": "much"}}}, "/resources/limits/memory"),
    ({"resources": {"limits": {"memory": True}}}, "'/resources/limits/memory': got boolean, want number or string"),
    ({"resources": {"limits": {"cpu": -1}}}, "'/resources/limits/cpu': minimum: got -1, want 0"),
    ({"resources": {"requests": {"cpu": 0.0000001}}}, " is no quantity; write one such as 100m"),
    ({"resources": {"requests": {"memory": "1Gi"}}}, "resources.requests.memory: 1Gi is more than the limit, 512Mi"),
    ({"captureResources": {"limits": {"cpu": 0.009}}}, "captureResources.requests.cpu: 10m is more than the limit"),
    ({"captureResources": {"requests": {"gpu": "1"}}}, "gpu"),
    ({"settings": {"drain_second": 5}}, "drain_second"),
    ({"settings": {"capture": "explicit"}}, "capture"),
    ({"inspectEgress": "api.example.com"}, "/inspectEgress"),
    ({"inspectEgress": ["*.example.com"]}, "/inspectEgress/0"),
    ({"inspectEgress": ["api.example.com", "API.example.com"]}, "/inspectEgress/1"),
    ({"inspectEgress": ["localhost"]}, "/inspectEgress/0"),
    ({"inspectEgress": ["192.0.2.7"]}, "/inspectEgress/0"),
    ({"inspectEgress": ["api.example.com:0"]}, "/inspectEgress/0"),
    ({"inspectEgress": ["api.example.com:65536"]}, "/inspectEgress/0"),
    ({"inspectEgress": ["api.example.com\nevil: true"]}, "/inspectEgress/0"),
    ({"inspectEgress": [f"h{number}.example.com" for number in range(65)]}, "/inspectEgress"),
    ({"inspectEgress": [".".join(["a" * 60] * 4 + ["b" * 3, "example"])]}, "253 characters"),
    ({"inspectEgress": [".".join(["a" * 50, "b" * 50, "c" * 50, f"d{n}", "com"]) for n in range(40)]}, "4096"),
    ({"inspectEgress": ["api.example.com"], "egressRoots": "company-roots"}, "/egressRoots"),
    ({"inspectEgress": ["api.example.com"], "egressRoots": "company-roots/.."}, "/egressRoots"),
    ({"inspectEgress": ["api.example.com"], "ownVariables": ["PATH"]}, "/ownVariables/0"),
    ({"inspectEgress": ["api.example.com"], "settings": {"dns": {"proxy": False}}}, "answers of DNS"),
    ({"egressRoots": "company-roots/ca.crt"}, "there is no host"),
    ({"ownVariables": ["SSL_CERT_FILE"]}, "ownVariables: no variable is set where no host outside is inspected"),
    ({"settings": {"probes": [{**PROBE, "http": {"port": 1, "path": "/" + "x" * 120_000}}]}}, "120000"),
    ({"settings": {"drain_seconds": "30"}}, "'/settings/drain_seconds': got string, want number"),
    ({"settings": {"drain_seconds": 4000}}, "'/settings/drain_seconds': maximum: got 4,000, want 3,600"),
    ({"settings": {"opaque_ports": ["3306"]}}, "'/settings/opaque_ports/0': got string, want integer"),
    ({"settings": {"exit_with_application": "yes"}}, "'/settings/exit_with_application': got string, want boolean"),
    ({"settings": {"metrics": {"version": 1.2}}}, "'/settings/metrics/version': got number, want string"),
    ({"settings": {"limits": {"connection": 5}}}, "'/settings/limits': additional properties 'connection' not allowed"),
    ({"settings": {"unsynced": "lern"}}, "'/settings/unsynced': value must be one of 'deny', 'learn'"),
    ({"settings": {"dns": None}}, "'/settings/dns': got null, want object"),
    ({"settings": {"probes": [{**PROBE, "http": {"port": "8080"}}]}}, "http/port': got string, want integer"),
]


@pytest.mark.parametrize(("values", "named"), REFUSED, ids=[json.dumps(values)[:80] for values, _ in REFUSED])
def test_a_wrong_value_is_refused_by_name(apiserver, chart, values, named):
    with pytest.raises(CommandFailed) as refusal:
        rendered(apiserver, chart, **values)
    assert named in str(refusal.value)


def test_the_settings_that_it_knows_are_those_that_the_injector_passes_on():
    schema = json.loads((LIBRARY / "values.schema.json").read_text())["properties"]
    assert schema["settings"]["properties"].keys() == PASSED | {"probes", "merge_metrics"}
    assert schema["ownVariables"]["items"]["enum"] == sorted(VARIABLES)
    assert schema.keys() - {"global"} == yaml.safe_load((LIBRARY / "values.yaml").read_text()).keys()


def test_what_it_renders_is_what_was_reviewed(apiserver, chart):
    made = rendered(apiserver, chart, inspectEgress=HOSTS, egressRoots="company-roots/ca.crt")
    if os.environ.get("HEDGEROW_GOLDEN") == "write":
        GOLDEN.write_text(yaml.safe_dump(made, width=110))
    reviewed = yaml.safe_load(GOLDEN.read_text())
    assert made == reviewed, "the chart renders something else: look at it, then HEDGEROW_GOLDEN=write"


def test_the_sidecar_takes_the_settings_that_it_writes(apiserver, chart):
    plain = {"access_log": False, "telemetry": True, "http": {"trace_flags": 0}, "limits": {"connections": 1_000_000}}
    made = rendered(apiserver, chart, settings={"probes": [PROBE], **plain})["spec"]["template"]
    assert made["metadata"]["labels"]["hedgerow.dev/injection"] == "disabled"
    containers = by_name(made["spec"]["initContainers"])
    documents = {
        name: next(each["value"] for each in containers[name]["env"] if each["name"] == "HEDGEROW_SIDECAR")
        for name in ("hedgerow-capture", "hedgerow-sidecar")
    }
    for name, document in documents.items():
        filled = document.replace("$(POD_NAME)", "cart-0").replace("$(POD_IPS)", "10.0.0.7")
        settings = Settings.parse(yaml.safe_load(filled))
        assert len(settings.probes) == (name == "hedgerow-sidecar")
        assert (settings.access_log, settings.telemetry, settings.http.trace_flags) == ("off", True, "00")
        assert settings.limits.get("connections", 1_000_000) == 1_000_000
        assert settings.addresses == frozenset({"10.0.0.7"}) or list(settings.addresses) == ["10.0.0.7"]


def test_the_api_server_takes_such_a_deployment(apiserver, chart, namespace):
    values = {"hedgerow-sidecar": {"inspectEgress": HOSTS, "egressRoots": "company-roots/ca.crt"}}
    options = ["--namespace", namespace, "--values", "-"]
    apiserver.helm("install", "cart", str(chart), *options, stdin=yaml.safe_dump(values))
    found = apiserver.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/cart")["spec"]["template"]
    assert len(found["spec"]["initContainers"]) == 4
    assert {str(one) for one in said_of(found["metadata"]).inspects} >= {"api.example.com:443", "pay.example.com:8443"}
    assert {each["name"] for each in found["spec"]["containers"][0]["env"]} == {*VARIABLES, "OWN"}
    apiserver.helm("upgrade", "cart", str(chart), "--namespace", namespace, "--reset-values")
    found = apiserver.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/cart")["spec"]["template"]
    assert [each["name"] for each in found["spec"]["containers"][0]["env"]] == ["OWN"]
    assert "annotations" not in found["metadata"]
    apiserver.helm("uninstall", "cart", "--namespace", namespace)
