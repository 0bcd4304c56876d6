"""A cluster for the session with Hedgerow on it, a namespace for each test.

Modules come in the order of their names: the last one takes Hedgerow away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from e2e.cluster.installed import Hedgerow, hedgerow
from e2e.cluster.restarts import Restarts
from e2e.harness import cluster as clusters
from e2e.harness.cluster import Cluster
from e2e.harness.errors import HarnessError


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose pods run, with DNS, enforced NetworkPolicies and the images of this checkout."""
    made = clusters.cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def restarts(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarts]:
    """What was started again; at the end of the session that is nothing of ours but what tests have killed."""
    followed = Restarts(cluster, tmp_path_factory.mktemp("restarts"))
    yield followed
    followed.stop()
    assert not followed.found()


@pytest.fixture(scope="session")
def installed(cluster: Cluster, restarts: Restarts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hedgerow]:
    """Hedgerow, as ``helm install`` makes it."""
    with hedgerow(cluster, tmp_path_factory.mktemp("hedgerow")) as made:
        yield made


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace with its ``default`` ServiceAccount; its deletion is asked for afterwards, not awaited."""
    name = cluster.create_namespace()
    yield name
    with contextlib.suppress(HarnessError):
        cluster.delete_namespace(name)
