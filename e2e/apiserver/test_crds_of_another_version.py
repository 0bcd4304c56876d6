"""Custom resources of another version than the controller speaks: said with the remedy, and nothing half-done."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.errors import NotReady
from controller.kube.client import Client
from e2e.apiserver.custom_resources import CRDS, access_override, install_crds, put, serves
from e2e.apiserver.meshes import eventually, inventory, running
from e2e.apiserver.simulated import settings
from e2e.harness.apiserver import ApiServer
from e2e.harness.programs import until
from hedgerow.checking.finding import Outcome
from hedgerow.checking.health import resources

OTHER = "v1beta9"


def serve(server: ApiServer, documents: list[dict[str, Any]], served: str) -> None:
    """Let the API server know our kinds in one version alone, and wait until it does."""
    for document in documents:
        server.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=yaml.safe_dump(document))

    def known(version: str) -> bool:
        return serves(server, version, "accessoverrides")

    unserved = {"v1alpha1", OTHER} - {served}
    until(lambda: known(served) and not any(known(each) for each in unserved), f"{served} alone to be served")


@contextmanager
def another_version(server: ApiServer) -> Iterator[None]:
    """As a later chart might leave it: what was stored is there, under a version that we do not speak."""
    install_crds(server)
    ours = [yaml.safe_load(path.read_text()) for path in sorted(CRDS.glob("*.yaml"))]
    theirs = copy.deepcopy(ours)
    for document in theirs:
        (stored,) = document["spec"]["versions"]
        document["spec"]["versions"] = [{**stored, "name": OTHER, "storage": False}, {**stored, "served": False}]
    try:
        serve(server, theirs, OTHER)
        yield
    finally:
        serve(server, ours, "v1alpha1")


async def test_the_check_names_both_versions(apiserver: ApiServer) -> None:
    with another_version(apiserver):
        async with Client(settings(apiserver.kubeconfig)) as client:
            found = await resources(client)
    assert found.outcome is Outcome.FAILED
    assert f"is served as {OTHER}, not v1alpha1" in found.text
    assert "helm upgrade" in found.hint


async def test_what_is_in_force_stays_and_nothing_is_written_until_they_are_ours_again(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        await asyncio.to_thread(put, server, access_override(namespace))
        await mesh.told("AccessOverride", "one", "Active")
    with ExitStack() as meanwhile:
        await asyncio.to_thread(meanwhile.enter_context, another_version(server))
        async with running(server, namespace, tmp_path, fencing=True) as mesh:
            await eventually(lambda: "install the CRDs of this version" in str(mesh.supervision.waiting()))
            (override,) = mesh.active()
            assert override.id in mesh.engine.view.rules, "as it was stored"
            with pytest.raises(NotReady):
                await mesh.author.create_override(mesh.asked(port=9))
            assert [each.id for each in mesh.active()] == [override.id]
            await asyncio.to_thread(meanwhile.close)
            await eventually(lambda: mesh.sync.synced)
            assert [each.id for each in mesh.active()] == [override.id]
            (found,) = mesh.listed("AccessOverride")
            assert found["metadata"]["name"] == "one", "nothing was half-done"
            made = await mesh.author.create_override(mesh.asked(port=9))
            assert {each.id for each in mesh.active()} == {override.id, made.id}
