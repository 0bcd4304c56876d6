"""The trust bundle is in every meshed namespace of a real API server, whatever becomes of it there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from certs.ca import CertificateAuthority
from controller.kube.client import Client
from controller.kube.settings import KubernetesSettings
from controller.kube.supervision import Supervision
from controller.kube.trust import TrustDistributor
from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError
from tests.controller.running import eventually

MESHED = {"hedgerow.dev/injection": "enabled"}
OURS = {"app.kubernetes.io/managed-by": "hedgerow", "hedgerow.dev/owned-by": "controller"}
MERGE = "application/merge-patch+json"


def bundle() -> str:
    return CertificateAuthority.create("hedgerow.test", time.time()).bundle().to_pem()


class Roots:
    """The authority's, and whether namespaces are in use."""

    def __init__(self) -> None:
        self.text = bundle()
        self.in_use: set[str] = set()


@asynccontextmanager
async def distributing(kubeconfig: Path, roots: Roots) -> AsyncIterator[TrustDistributor]:
    sockets = asyncio.get_running_loop()._selector.get_map()  # asyncio's own loop
    before = len(sockets)
    async with Client(KubernetesSettings(kubeconfig=kubeconfig)) as client:
        made = TrustDistributor(client, lambda: roots.text, roots.in_use.__contains__, time.monotonic)
        supervision = Supervision((*made.watches, made), time.monotonic)
        task = asyncio.create_task(supervision.run())
        try:
            await eventually(lambda: supervision.synced or task.done(), 90)  # the first one imports a lot
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: len(sockets) <= before)  # TLS says good-bye before it lets go


@pytest.fixture
def roots() -> Roots:
    return Roots()


@pytest.fixture
async def distributor(apiserver: ApiServer, roots: Roots) -> AsyncIterator[TrustDistributor]:
    async with distributing(apiserver.kubeconfig, roots) as made:
        yield made


def path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/hedgerow-trust"


def found(apiserver: ApiServer, namespace: str) -> dict[str, Any] | None:
    try:
        return apiserver.request("GET", path(namespace))
    except ApiError as error:
        if error.status != 404:
            raise
        return None


def right(apiserver: ApiServer, namespace: str, text: str) -> Callable[[], bool]:
    def check() -> bool:
        held = found(apiserver, namespace)
        return (
            held is not None
            and held.get("data", {}).get("trust-bundle.pem") == text
            and OURS.items() <= held["metadata"].get("labels", {}).items()
        )

    return check


def label(apiserver: ApiServer, namespace: str, value: str | None) -> None:
    body = {"metadata": {"labels": {"hedgerow.dev/injection": value}}}
    apiserver.request("PATCH", f"/api/v1/namespaces/{namespace}", body, content_type=MERGE)


async def test_it_comes_with_the_label_and_goes_with_it(
    apiserver: ApiServer, namespace: str, roots: Roots, distributor: TrustDistributor
) -> None:
    other = apiserver.create_namespace()
    label(apiserver, namespace, "enabled")
    await eventually(right(apiserver, namespace, roots.text))
    held = found(apiserver, namespace)
    assert held is not None
    assert [each["manager"] for each in held["metadata"]["managedFields"]] == ["hedgerow-controller"]
    assert found(apiserver, other) is None

    # while pods are left that mount it, it stays
    roots.in_use.add(namespace)
    label(apiserver, namespace, None)
    await eventually(lambda: ("", namespace) not in distributor.watches[0].ledger.items)
    label(apiserver, other, "enabled")
    await eventually(right(apiserver, other, roots.text))  # so a whole round has passed since
    assert right(apiserver, namespace, roots.text)()
    roots.in_use.clear()
    await eventually(lambda: found(apiserver, namespace) is None)
    assert right(apiserver, other, roots.text)()
    apiserver.delete_namespace(other)


async def test_whoever_edits_or_deletes_it_gets_it_back(
    apiserver: ApiServer, namespace: str, roots: Roots, distributor: TrustDistributor
) -> None:
    changes = (
        {"data": {"trust-bundle.pem": bundle()}},
        {"data": {"trust-bundle.pem": None}},
        {"data": None},
        {"metadata": {"labels": None}},
        {"data": {"trust-bundle.pem": "x"}, "immutable": True},
    )
    names = [apiserver.create_namespace(MESHED) for _ in changes]
    label(apiserver, namespace, "enabled")
    for name in (*names, namespace):
        await eventually(right(apiserver, name, roots.text))
    for name, change in zip(names, changes, strict=True):
        apiserver.request("PATCH", path(name), change, content_type=MERGE)
    apiserver.request("DELETE", path(namespace))
    for name in (*names, namespace):
        await eventually(right(apiserver, name, roots.text))
    for name in names:
        apiserver.delete_namespace(name)
    # what others add is theirs
    apiserver.request("PATCH", path(namespace), {"data": {"more": "1"}}, content_type=MERGE)
    roots.text = bundle()
    await eventually(right(apiserver, namespace, roots.text))
    held = found(apiserver, namespace)
    assert held is not None
    assert held["data"]["more"] == "1"


async def test_new_roots_are_everywhere(
    apiserver: ApiServer, namespace: str, roots: Roots, distributor: TrustDistributor
) -> None:
    names = [namespace, *(apiserver.create_namespace() for _ in range(3))]
    for name in names:
        label(apiserver, name, "enabled")
    for name in names:
        await eventually(right(apiserver, name, roots.text))
    roots.text = bundle()
    for name in names:
        await eventually(right(apiserver, name, roots.text))
    for name in names[1:]:
        apiserver.delete_namespace(name)


async def test_one_that_is_not_ours_is_never_deleted(apiserver: ApiServer, namespace: str, roots: Roots) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hedgerow-trust"}, "data": {"a": "b"}}
    apiserver.request("POST", f"/api/v1/namespaces/{namespace}/configmaps", body)
    pretender = apiserver.create_namespace()
    labelled = body | {"metadata": {"name": "hedgerow-trust", "labels": OURS}}
    apiserver.request("POST", f"/api/v1/namespaces/{pretender}/configmaps", labelled)
    third = apiserver.create_namespace(MESHED)
    async with distributing(apiserver.kubeconfig, roots) as made:
        await eventually(right(apiserver, third, roots.text))
        label(apiserver, third, None)
        await eventually(lambda: found(apiserver, third) is None)  # what is ours and of no use goes
        assert len([key for key in made.watches[1].ledger.items if key[0] in (namespace, pretender)]) == 2
        assert found(apiserver, namespace) is not None
        assert found(apiserver, pretender) is not None
        # in a meshed namespace its key becomes ours, and the rest stays
        label(apiserver, namespace, "enabled")
        await eventually(right(apiserver, namespace, roots.text))
        held = found(apiserver, namespace)
        assert held is not None
        assert held["data"]["a"] == "b"
    for name in (pretender, third):
        apiserver.delete_namespace(name)


async def test_it_outlives_an_api_server_that_is_away_and_a_namespace_that_ends(
    apiserver: ApiServer, namespace: str, roots: Roots, distributor: TrustDistributor, caplog: pytest.LogCaptureFixture
) -> None:
    label(apiserver, namespace, "enabled")
    await eventually(right(apiserver, namespace, roots.text))
    apiserver.stop()
    roots.text = bundle()
    try:
        await eventually(lambda: "does not answer" in caplog.text)
    finally:
        apiserver.start()
    await eventually(right(apiserver, namespace, roots.text), 60)
    ending = apiserver.create_namespace(MESHED)
    await eventually(right(apiserver, ending, roots.text))
    apiserver.delete_namespace(ending)
    await eventually(lambda: ("", ending) not in distributor.watches[0].ledger.items, 60)
    apiserver.request("DELETE", path(namespace))
    await eventually(right(apiserver, namespace, roots.text), 60)
    assert "a fault:" not in caplog.text


HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


def hooks(apiserver: ApiServer) -> str:
    """A webhook configuration of our name, without a webhook; its uid."""
    body = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "hedgerow-injector"},
    }
    return str(apiserver.request("POST", HOOKS, body)["metadata"]["uid"])


def owners(apiserver: ApiServer, namespace: str) -> list[str]:
    held = found(apiserver, namespace)
    return [each["uid"] for each in (held or {}).get("metadata", {}).get("ownerReferences", [])]


async def test_it_goes_with_the_webhook_configuration_and_comes_back_with_the_next_one(
    apiserver: ApiServer, namespace: str, roots: Roots
) -> None:
    uid = hooks(apiserver)
    try:
        async with distributing(apiserver.kubeconfig, roots) as distributor:
            label(apiserver, namespace, "enabled")
            await eventually(right(apiserver, namespace, roots.text))
            assert owners(apiserver, namespace) == [uid]

            # as an uninstall begins: Kubernetes takes it away, and we do not put it back behind its back
            apiserver.request("DELETE", f"{HOOKS}/hedgerow-injector")
            await eventually(lambda: found(apiserver, namespace) is None, 60)
            ledger = distributor.watches[1].ledger.items
            await eventually(lambda: (namespace, "hedgerow-trust") not in ledger)
            other = apiserver.create_namespace(MESHED)
            await eventually(lambda: ("", other) in distributor.watches[0].ledger.items)
            looks = 0
            looked = distributor._owner.look

            async def counted(*, now_if_ever: bool) -> None:
                nonlocal looks
                await looked(now_if_ever=now_if_ever)
                looks += 1

            distributor._owner.look = counted  # counts, and looks all the same
            await eventually(lambda: looks >= 2)
            assert found(apiserver, namespace) is None
            assert found(apiserver, other) is None

            uid = hooks(apiserver)  # it was no uninstall
            for name in (namespace, other):
                await eventually(right(apiserver, name, roots.text))
                assert owners(apiserver, name) == [uid]
            apiserver.delete_namespace(other)
    finally:
        apiserver.request("DELETE", f"{HOOKS}/hedgerow-injector")
