"""One value of the chart says whom tokens are for: what the injector projects the controller takes, and no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
import yaml

from controller.injection.injecting import Injected, Namespace, inject
from controller.injection.program_settings import InjectorSettings
from controller.injection.settings import InjectionSettings
from controller.settings import Settings
from e2e.apiserver.proving import Cluster, pod_spec, refused, sign
from e2e.harness import control_plane
from e2e.harness.apiserver import ApiServer
from tests.controller.running import Running, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHART = Path(__file__).parents[2] / "charts" / "hedgerow"
DEFAULT = "hedgerow-controller"
SET = "mesh.example/blue"


@pytest.fixture(scope="module")
def programs(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, InjectionSettings]:
    """The settings of both programs, as the chart writes them for one value."""
    flags = ["--namespace", "hedgerow-system", "--kube-version", "1.36.3", "--values", "-"]
    text = apiserver.helm("template", "hedgerow", str(CHART), *flags, stdin=yaml.safe_dump({"tokenAudience": SET}))
    files = {
        name: content
        for each in yaml.safe_load_all(text)
        if each and each["kind"] == "ConfigMap"
        for name, content in each["data"].items()
    }
    base = tmp_path_factory.mktemp("settings")
    controller = Settings.parse(yaml.safe_load(files["controller.yaml"]), base)
    return controller, InjectorSettings.parse(yaml.safe_load(files["injector.yaml"]), base).injection


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(
    server: ApiServer, programs: tuple[Settings, InjectionSettings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """A controller on the cluster, with the chart's section of it."""
    said = programs[0].kubernetes
    assert said is not None
    kubernetes = replace(said, kubeconfig=server.kubeconfig)
    folder = tmp_path_factory.mktemp("controller")
    async with running(folder, inventory=None, kubernetes=kubernetes, web_hosts=("mesh.example",)) as made:
        yield made


def projected(pod: dict[str, Any]) -> str:
    """Whom the token is for that the kubelet would put into the sidecar's container."""
    sources = [
        source["serviceAccountToken"]["audience"]
        for volume in pod["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        if volume["name"] == "hedgerow-token"
    ]
    (audience,) = sources
    return str(audience)


async def test_what_the_injector_projects_is_what_the_controller_takes(
    run: Running, cluster: Cluster, programs: tuple[Settings, InjectionSettings]
) -> None:
    plain = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "cart-1"}, "spec": pod_spec(injected=False)}
    made = inject(plain, Namespace(cluster.namespace), programs[1])
    assert isinstance(made, Injected)
    cluster.pod("cart-1", made.pod["spec"])
    assert projected(cluster.api.request("GET", cluster.path("cart-1"))) == SET
    assert (await sign(run, cluster.token("cart-1", SET), "cart-1")).workload == f"{cluster.namespace}/cart-1"
    for other in (DEFAULT, SET + "/", "mesh.example", control_plane.AUDIENCE):
        assert await refused(run, cluster.token("cart-1", other), "cart-1") == "attestation-wrong-audience"


async def test_who_shows_another_is_told_which_setting_it_is(run: Running, cluster: Cluster) -> None:
    """As where an injector of one's own is told another audience than the controller."""
    cluster.pod("cart-1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sign(run, cluster.token("cart-1", DEFAULT), "cart-1")
    said = caught.value.details() or ""
    assert said.startswith("service_account_token: ")
    assert f"`audience: {SET}`" in said
    assert "its `token_audience` is not the controller's: set both alike" in said


async def test_a_token_that_the_api_server_takes_too_proves_nothing(run: Running, cluster: Cluster) -> None:
    uid = cluster.pod("cart-1")
    spec = {
        "audiences": [SET, control_plane.AUDIENCE],
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "cart-1", "uid": uid},
    }
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/default/token"
    both = str(cluster.api.request("POST", path, body)["status"]["token"])
    assert await refused(run, both, "cart-1") == "attestation-not-ours-alone"
    # nobody's tokens are worse for it
    assert (await sign(run, cluster.token("cart-1", SET), "cart-1")).instance == "cart-1"


async def test_an_audience_of_the_api_server_s_lets_nobody_in(
    apiserver: ApiServer, programs: tuple[Settings, InjectionSettings], cluster: Cluster, tmp_path: Path
) -> None:
    """Every container has a token for it. Names of its that the settings do not know are found out here."""
    said = programs[0].kubernetes
    assert said is not None
    kubernetes = replace(said, kubeconfig=apiserver.kubeconfig, token_audience=control_plane.AUDIENCE)
    cluster.pod("cart-1")
    async with running(tmp_path, inventory=None, kubernetes=kubernetes) as run:
        token = cluster.token("cart-1", control_plane.AUDIENCE)
        assert await refused(run, token, "cart-1") == "attestation-not-ours-alone"


async def test_on_a_cluster_the_page_has_the_names_that_it_was_given(run: Running) -> None:
    for host, status in (("mesh.example:8443", 200), ("localhost", 200), ("other.example", 403)):
        async with run.http.get("/api/v1/status", headers={"Host": host}) as answer:
            assert (host, answer.status) == (host, status)
