"""The library chart: a chart that includes it makes the pods that the injector would have made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.injection.injecting import Injected, Namespace, inject
from controller.injection.settings import InjectionSettings, Resources
from e2e.harness.apiserver import ApiServer
from sidecar.settings import Settings

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "charts" / "hedgerow-sidecar"
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
    spec:
      initContainers: {{- include "hedgerow-sidecar.initContainers" . | nindent 8 }}
        - {name: own, image: "own:1"}
      containers:
        - {name: cart, image: "cart:1"}
      volumes: {{- include "hedgerow-sidecar.volumes" . | nindent 8 }}
        - {name: own, emptyDir: {}}
"""


@pytest.fixture(scope="module", params=[3, 4], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest) -> int:
    """Each version that there is. Were it a parameter of the API server, each would start another one."""
    return int(request.param)


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


def injected(settings: InjectionSettings) -> dict[str, Any]:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": {"team": "green"}},
        "spec": {
            "initContainers": [{"name": "own", "image": "own:1"}],
            "containers": [{"name": "cart", "image": "cart:1"}],
            "volumes": [{"name": "own", "emptyDir": {}}],
        },
    }
    found = inject(pod, Namespace("shop"), settings)
    assert isinstance(found, Injected)
    return dict(found.pod)


def by_name(items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in items}


@pytest.mark.parametrize(
    "settings", [{}, {"log_level": "debug", "drain_seconds": 30, "metrics": {"version": "$5 <&>"}}]
)
@pytest.mark.parametrize("validation", [True, False])
def test_it_makes_what_the_injector_makes(apiserver, chart, settings, validation):
    wanted = injected(
        InjectionSettings(
            image="registry.example/sidecar:7",
            validation=validation,
            trust_domain="mesh.example",
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
        resources={"requests": {"cpu": "1", "memory": None}, "limits": {"memory": "1Gi"}},
        settings=settings,
    )["spec"]["template"]["spec"]
    assert [each["name"] for each in made["initContainers"]] == [each["name"] for each in wanted["initContainers"]]
    assert by_name(made["initContainers"]) == by_name(wanted["initContainers"])
    assert by_name(made["volumes"]) == by_name(wanted["volumes"])
    assert made["containers"] == [{"name": "cart", "image": "cart:1"}]


def test_the_sidecar_takes_the_settings_that_it_writes(apiserver, chart):
    probe = {"container": "cart", "kind": "readyz", "http": {"port": 8080, "path": "/ok"}}
    made = rendered(apiserver, chart, settings={"probes": [probe]})["spec"]["template"]
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
        assert settings.addresses == frozenset({"10.0.0.7"}) or list(settings.addresses) == ["10.0.0.7"]


def test_the_api_server_takes_such_a_deployment(apiserver, chart, namespace):
    apiserver.helm("install", "cart", str(chart), "--namespace", namespace)
    found = apiserver.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/cart")
    assert len(found["spec"]["template"]["spec"]["initContainers"]) == 4
    apiserver.helm("uninstall", "cart", "--namespace", namespace)
