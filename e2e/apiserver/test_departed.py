"""Resources that go with their definition or their namespace: what they said stays, and nothing is opened."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from e2e.apiserver.custom_resources import access_override, install_crds, put, remove_crds, segmentation_mode
from e2e.apiserver.meshes import Mesh, eventually, eventually_async, inventory, running
from e2e.harness.apiserver import ApiServer
from e2e.harness.programs import until
from graph.model import Mode

#: Seconds, longer than any test.
LONG = 1e6
KINDS = ("accessoverrides", "segmentationmodes")


@contextmanager
def without_definitions(server: ApiServer) -> Iterator[None]:
    """All of ours are taken away, and what was there of them with them; then they are there again, with nothing."""
    at = int(time.time())
    remove_crds(server)
    # the API server's times are whole seconds: what is older than a definition has to be of another one
    until(lambda: int(time.time()) > at, "the next second")
    try:
        yield
    finally:
        install_crds(server)


@contextmanager
def ending_definitions(server: ApiServer) -> Iterator[None]:
    """They are deleted and stay, without a resource in them, until somebody lets them go."""
    names = [f"crd/{kind}.hedgerow.dev" for kind in KINDS]

    def finalizers(change: str) -> None:
        server.kubectl("patch", *names, "--type=json", "-p", f"[{change}]")

    finalizers('{"op": "add", "path": "/metadata/finalizers", "value": ["example.com/never"]}')
    try:
        server.kubectl("delete", *names, "--wait=false")
        yield
    finally:
        finalizers('{"op": "remove", "path": "/metadata/finalizers/0"}')
        remove_crds(server)
        install_crds(server)


@contextmanager
def ending_namespace(server: ApiServer, namespace: str) -> Iterator[None]:
    """Everything in it is deleted but one object, which holds the namespace until somebody lets it go."""
    held = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "held", "namespace": namespace, "finalizers": ["example.com/never"]},
    }
    server.kubectl("create", "-f", "-", stdin=json.dumps(held))
    server.kubectl("delete", "namespace", namespace, "--wait=false")
    try:
        yield
    finally:
        free = '{"metadata": {"finalizers": null}}'
        server.kubectl("-n", namespace, "patch", "configmap", "held", "--type=merge", "-p", free)
        server.kubectl("wait", "--for=delete", f"namespace/{namespace}", "--timeout=120s")


@asynccontextmanager
async def closed(server: ApiServer, namespace: str, path: Path, gone: float = LONG) -> AsyncIterator[Mesh]:
    """A mesh in which a namespace enforces, one connection is allowed and one denied."""
    async with running(server, namespace, path, known=inventory(namespace), gone=gone) as mesh:
        await write(mesh)
        yield mesh


async def write(mesh: Mesh) -> None:
    documents = [
        segmentation_mode(mesh.namespace, ingress="enforce"),
        access_override(mesh.namespace),
        access_override(mesh.namespace, "two", effect="deny", port=9090),
    ]
    for document in documents:
        await asyncio.to_thread(put, mesh.server, document)
    for document in documents:
        await mesh.told(document["kind"], document["metadata"]["name"], "Active")


def is_closed(mesh: Mesh) -> bool:
    return mesh.engine.view.modes[mesh.ref("cart")].inbound is Mode.ENFORCE


def ports(mesh: Mesh) -> set[int | None]:
    """Of the overrides in force, by which they are known here."""
    held = mesh.active()
    assert all(each.id in mesh.engine.view.rules for each in held)
    return {each.port for each in held}


def is_empty(mesh: Mesh) -> bool:
    """Whether the controller has heard that every resource of the namespace is gone."""
    return not any(mesh.sync.document(key) for key in mesh.engine.view.declarations)


async def taken_again(mesh: Mesh) -> None:
    """Wait until the engine was given whatever is known by now."""
    for _ in range(2):  # one may be under way
        async with asyncio.timeout(60):
            await mesh.sync.taken()


async def test_definitions_that_are_taken_away_open_nothing(
    server: ApiServer, namespace: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as meanwhile, caplog.at_level(logging.WARNING):
        async with closed(server, namespace, tmp_path) as mesh:
            rules = dict(mesh.engine.view.rules)
            await asyncio.to_thread(meanwhile.enter_context, without_definitions(server))
            await eventually(lambda: is_empty(mesh))
            await eventually(lambda: "of segmentationmodes.hedgerow.dev went with their definition" in caplog.text)
            await eventually(lambda: "of accessoverrides.hedgerow.dev went with their definition" in caplog.text)
            assert is_closed(mesh)
            assert ports(mesh) == {8080, 9090}
            assert dict(mesh.engine.view.rules) == rules
        async with running(server, namespace, tmp_path) as mesh:  # a controller that begins in that time
            await eventually(lambda: "install the CRDs of this version" in str(mesh.supervision.waiting()))
            assert is_closed(mesh)
            assert ports(mesh) == {8080, 9090}


async def test_a_controller_that_starts_while_definitions_end_opens_nothing(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with closed(server, namespace, tmp_path):
        pass
    with ExitStack() as meanwhile:
        await asyncio.to_thread(meanwhile.enter_context, ending_definitions(server))
        async with running(server, namespace, tmp_path) as mesh:
            await eventually(lambda: mesh.sync.synced, 60)
            await eventually_async(lambda: asyncio.to_thread(lambda: not mesh.listed("SegmentationMode")))
            await eventually(lambda: is_empty(mesh))
            await taken_again(mesh)
            assert is_closed(mesh)
            assert ports(mesh) == {8080, 9090}
        await asyncio.to_thread(meanwhile.close)


async def test_who_replaces_the_definitions_has_time_to_put_the_resources_back(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with closed(server, namespace, tmp_path) as mesh:
        before = {each.id for each in mesh.active()}
        with ExitStack() as meanwhile:
            await asyncio.to_thread(meanwhile.enter_context, without_definitions(server))
            await asyncio.to_thread(meanwhile.close)
        await taken_again(mesh)
        assert is_closed(mesh)
        assert {each.id for each in mesh.active()} == before
        await write(mesh)
        assert is_closed(mesh)
        assert ports(mesh) == {8080, 9090}
        assert not before & {each.id for each in mesh.active()}, "they are others by now"
        # whoever deletes one of these has decided so
        await mesh.deleted("AccessOverride", "one")
        await mesh.deleted("SegmentationMode", "default")
        await eventually(lambda: not is_closed(mesh))
        assert ports(mesh) == {9090}


async def test_what_is_not_put_back_into_a_new_definition_ends(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with closed(server, namespace, tmp_path, gone=0.0) as mesh:
        with ExitStack() as meanwhile:
            await asyncio.to_thread(meanwhile.enter_context, without_definitions(server))
            await eventually(lambda: is_empty(mesh))
            assert is_closed(mesh)
            await asyncio.to_thread(meanwhile.close)
        await eventually(lambda: not is_closed(mesh))
        await eventually(lambda: not mesh.active())


async def test_a_namespace_that_ends_keeps_what_closes_it(server: ApiServer, tmp_path: Path) -> None:
    namespace = await asyncio.to_thread(server.create_namespace)
    async with closed(server, namespace, tmp_path) as mesh:
        with ExitStack() as meanwhile:
            await asyncio.to_thread(meanwhile.enter_context, ending_namespace(server, namespace))
            await eventually(lambda: is_empty(mesh) or not mesh.engine.view.declarations)
            await eventually(lambda: 8080 not in ports(mesh))
            await taken_again(mesh)
            assert is_closed(mesh)
            assert ports(mesh) == {9090}
            await asyncio.to_thread(meanwhile.close)
        # it is gone; so is who was in it
        await mesh.engine.set_inventory(inventory("elsewhere"), "test")
        await eventually(lambda: not mesh.engine.view.declarations)
        assert ports(mesh) == set()


async def test_what_a_person_ends_in_a_namespace_that_ends_is_ended(server: ApiServer, tmp_path: Path) -> None:
    namespace = await asyncio.to_thread(server.create_namespace)
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        held = access_override(namespace, effect="deny")
        held["metadata"]["finalizers"] = ["example.com/never"]
        await asyncio.to_thread(put, server, held)
        await mesh.told("AccessOverride", "one", "Active")
        (override,) = mesh.active()
        with ExitStack() as meanwhile:
            await asyncio.to_thread(meanwhile.enter_context, ending_namespace(server, namespace))
            try:
                await eventually(lambda: is_marked(mesh))
                assert [each.id for each in mesh.active()] == [override.id]
                revoked = await mesh.author.revoke_override(override.id, "anna", "it may")
                assert revoked.override.revoked_by == "anna"
                assert not mesh.active()
            finally:
                free = '{"metadata": {"finalizers": null}}'
                patch = ("patch", "hao", "one", "-n", namespace, "--type=merge", "-p", free)
                await asyncio.to_thread(server.kubectl, *patch)


def is_marked(mesh: Mesh) -> bool:
    document = mesh.sync.document(f"AccessOverride/{mesh.namespace}/one")
    return document is not None and "deletionTimestamp" in document["metadata"]
