"""What the tests of this suite share: parts that ask an API server again soon after it was away, our custom resources,
and what attestation is tried with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from controller.kube import supervision
from controller.kube.client import Client
from controller.kube.settings import KubernetesSettings
from e2e.apiserver.custom_resources import install_crds
from e2e.apiserver.injector import RunningInjector
from e2e.apiserver.proving import MESHED, Cluster
from e2e.apiserver.simulated import Kubelet, settings
from e2e.harness.apiserver import ApiServer
from tests.controller.running import Running, running


@pytest.fixture(autouse=True, scope="session")
def soon() -> None:
    """Waits between two tries grow to a second here and to ten elsewhere: tests take API servers away for seconds."""
    supervision.LONGEST = 1.0


@pytest.fixture(scope="module")
def server(apiserver: ApiServer) -> ApiServer:
    """The API server, with our custom resources."""
    install_crds(apiserver)
    return apiserver


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A controller on the cluster. Without the custom resources one that knows nothing yet takes no inventory."""
    kubernetes = KubernetesSettings(kubeconfig=server.kubeconfig)
    async with running(tmp_path_factory.mktemp("controller"), inventory=None, kubernetes=kubernetes) as made:
        yield made


@pytest.fixture(scope="module", params=[3, 4], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest) -> int:
    """Each version of Helm that there is. Were it a parameter of the API server, each would start another one."""
    return int(request.param)


@pytest.fixture(scope="module")
def injector(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningInjector]:
    """The injector, and webhooks that lead to it."""
    with RunningInjector(apiserver, tmp_path_factory.mktemp("injector")) as running:
        running.install_hooks()
        running.mount()
        running.start()
        yield running


@pytest.fixture
async def client(apiserver: ApiServer) -> AsyncIterator[Client]:
    """The controller's client, as the administrator."""
    async with Client(settings(apiserver.kubeconfig)) as made:
        yield made


@pytest.fixture
async def kubelet(client: Client) -> Kubelet:
    """Of a node that is there and ready."""
    made = Kubelet(client)
    await made.heartbeat()
    return made


@pytest.fixture
def meshed(apiserver: ApiServer) -> Iterator[str]:
    """A fresh namespace whose pods are meshed."""
    name = apiserver.create_namespace(MESHED)
    yield name
    apiserver.delete_namespace(name)


@pytest.fixture
def cluster(apiserver: ApiServer, meshed: str) -> Cluster:
    return Cluster(apiserver, meshed)
