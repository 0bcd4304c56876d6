"""A cluster for the session, a namespace for each test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from e2e.harness import cluster as clusters
from e2e.harness.cluster import Cluster
from e2e.harness.errors import HarnessError


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose pods run, with DNS, enforced NetworkPolicies and the images of this checkout."""
    made = clusters.cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace with its ``default`` ServiceAccount; its deletion is asked for afterwards, not awaited."""
    name = cluster.create_namespace()
    yield name
    with contextlib.suppress(HarnessError):
        cluster.delete_namespace(name)
