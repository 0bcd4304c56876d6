"""The controller's part that keeps the injector's certificate, against a real API server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.injection.webhook_configuration import NAME
from controller.kube.client import Client
from controller.kube.errors import Forbidden
from controller.kube.settings import KubernetesSettings
from controller.kube.webhook_certificate import SECRET, WebhookCertificate
from controller.kube.webhook_keys import Held, Times
from e2e.apiserver.injector import HOOKS, RunningInjector
from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError
from e2e.harness.programs import until

MERGE = "application/merge-patch+json"


@pytest.fixture
def installed(apiserver: ApiServer, tmp_path: Path) -> Iterator[RunningInjector]:
    """A webhook configuration and a namespace for the Secret; the program does not run."""
    with RunningInjector(apiserver, tmp_path) as running:
        running.install_hooks()
        yield running


def bundles(apiserver: ApiServer) -> set[str]:
    found = apiserver.request("GET", f"{HOOKS}/{NAME}")
    return {hook["clientConfig"].get("caBundle", "") for hook in found["webhooks"]}


def held(installed: RunningInjector) -> Held:
    data = installed.secret()["data"]
    return Held.read(data, "", f"hedgerow-injector.{installed.namespace}.svc", time.time() + installed.offset)


@contextlib.asynccontextmanager
async def keeping(installed: RunningInjector, kubeconfig: Path | None = None) -> AsyncIterator[WebhookCertificate]:
    async with Client(KubernetesSettings(kubeconfig=kubeconfig or installed.apiserver.kubeconfig)) as client:
        part = installed.part(client)
        task = asyncio.create_task(part.run())
        try:
            await eventually(lambda: part.synced or task.done(), "a first round")
            if task.done():
                task.result()
            yield part
            assert not task.done(), "it ended by itself"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def eventually(condition: Callable[[], Any], what: str) -> None:
    await asyncio.to_thread(until, condition, what)


def test_it_is_made_and_every_webhook_told(apiserver: ApiServer, installed: RunningInjector) -> None:
    now = held(installed)
    assert now.serving is not None
    assert bundles(apiserver) == {base64.b64encode(now.bundle()).decode()}
    secret = installed.secret()
    assert secret["type"] == "kubernetes.io/tls"
    assert secret["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "hedgerow"


def test_a_second_round_changes_nothing(apiserver: ApiServer, installed: RunningInjector) -> None:
    def versions() -> tuple[str, str]:
        hooks = apiserver.request("GET", f"{HOOKS}/{NAME}")
        return hooks["metadata"]["resourceVersion"], installed.secret()["metadata"]["resourceVersion"]

    before = versions()
    installed.keep_certificate()
    assert versions() == before


async def test_whoever_edits_it_sees_it_repaired(apiserver: ApiServer, installed: RunningInjector) -> None:
    async with keeping(installed):
        (right,) = bundles(apiserver)
        found = apiserver.request("GET", f"{HOOKS}/{NAME}")
        found["webhooks"][1]["clientConfig"]["caBundle"] = ""
        apiserver.request("PUT", f"{HOOKS}/{NAME}", found)
        await eventually(lambda: bundles(apiserver) == {right}, "caBundle repaired")

        path = f"/api/v1/namespaces/{installed.namespace}/secrets/{SECRET}"
        damaged = {"data": {"tls.key": base64.b64encode(b"damaged").decode()}}
        apiserver.request("PATCH", path, damaged, content_type=MERGE)
        await eventually(lambda: held(installed).serving is not None, "another pair made")
        await eventually(lambda: agreed(apiserver, installed), "API servers told")
        (both,) = bundles(apiserver)
        assert base64.b64decode(right) in base64.b64decode(both), "injectors still serve the pair that was there"

        apiserver.request("DELETE", path)
        await eventually(
            lambda: exists(apiserver, path) and held(installed).serving is not None, "the Secret made again"
        )
        await eventually(lambda: agreed(apiserver, installed), "API servers told")


def agreed(apiserver: ApiServer, installed: RunningInjector) -> bool:
    """Whether API servers know what the Secret holds; it may be collected and made anew under way."""
    path = f"/api/v1/namespaces/{installed.namespace}/secrets/{SECRET}"
    try:
        return exists(apiserver, path) and bundles(apiserver) == {bundle_of(installed)}
    except ApiError as error:
        if error.status == 404:
            return False
        raise


def bundle_of(installed: RunningInjector) -> str:
    return base64.b64encode(held(installed).bundle()).decode()


def exists(apiserver: ApiServer, path: str) -> bool:
    try:
        apiserver.request("GET", path)
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True


async def test_a_configuration_that_comes_later_or_again_is_told(
    apiserver: ApiServer, installed: RunningInjector
) -> None:
    body = apiserver.request("GET", f"{HOOKS}/{NAME}")
    installed.remove_hooks()
    for hook in body["webhooks"]:
        del hook["clientConfig"]["caBundle"]
    for name in ("resourceVersion", "uid", "creationTimestamp", "generation", "managedFields"):
        body["metadata"].pop(name, None)
    async with keeping(installed):
        apiserver.request("POST", HOOKS, body)
        await eventually(lambda: agreed(apiserver, installed), "API servers told")


def test_the_secret_goes_with_the_webhook_configuration(apiserver: ApiServer, installed: RunningInjector) -> None:
    path = f"/api/v1/namespaces/{installed.namespace}/secrets/{SECRET}"
    assert exists(apiserver, path)
    installed.remove_hooks()
    until(lambda: not exists(apiserver, path), "the Secret collected")


async def test_what_is_taken_away_in_the_middle_of_a_round_is_made_anew(
    apiserver: ApiServer, installed: RunningInjector
) -> None:
    """As when somebody installs again: the Secret of the old configuration is collected when that is gone."""
    path = f"/api/v1/namespaces/{installed.namespace}/secrets/{SECRET}"
    old = installed.secret()

    class Overtaken(Client):
        async def replace(self, *arguments: Any, **options: Any) -> Any:
            if exists(apiserver, path):
                apiserver.request("DELETE", path)
            return await super().replace(*arguments, **options)

    damaged = {"data": {"tls.key": base64.b64encode(b"damaged").decode()}}
    apiserver.request("PATCH", path, damaged, content_type=MERGE)
    async with Overtaken(KubernetesSettings(kubeconfig=apiserver.kubeconfig)) as client:
        await installed.part(client).reconcile()
    assert installed.secret()["metadata"]["uid"] != old["metadata"]["uid"]
    assert held(installed).serving is not None
    assert agreed(apiserver, installed)


def test_a_rotation_overlaps(apiserver: ApiServer, installed: RunningInjector) -> None:
    times = Times(lifetime=90 * 86400.0)
    first = held(installed)
    installed.offset = 61 * 86400.0
    installed.keep_certificate(times)
    second = held(installed)
    assert second.serving == first.serving
    assert second.coming is not None
    assert bundles(apiserver) == {bundle_of(installed)}
    installed.offset += 61
    installed.keep_certificate(times)
    third = held(installed)
    assert third.serving == second.coming
    assert third.previous == first.serving.authority
    assert bundles(apiserver) == {bundle_of(installed)}
    installed.offset += 4000
    installed.keep_certificate(times)
    assert held(installed).previous == b""
    assert bundles(apiserver) == {bundle_of(installed)}


@pytest.mark.parametrize("where", ["hooks", "secret"])
def test_cert_manager_is_not_fought(apiserver: ApiServer, installed: RunningInjector, where: str) -> None:
    annotation = {"hooks": "cert-manager.io/inject-ca-from", "secret": "cert-manager.io/certificate-name"}[where]
    path = f"{HOOKS}/{NAME}" if where == "hooks" else f"/api/v1/namespaces/{installed.namespace}/secrets/{SECRET}"
    apiserver.request("PATCH", path, {"metadata": {"annotations": {annotation: "x/y"}}}, content_type=MERGE)
    found = apiserver.request("GET", f"{HOOKS}/{NAME}")
    for hook in found["webhooks"]:
        hook["clientConfig"]["caBundle"] = ""
    apiserver.request("PUT", f"{HOOKS}/{NAME}", found)
    before = installed.secret()["data"]
    installed.offset = 80 * 86400.0
    installed.keep_certificate()
    assert bundles(apiserver) == {""}
    assert installed.secret()["data"] == before


HOOK_RULE = {
    "apiGroups": ["admissionregistration.k8s.io"],
    "resources": ["mutatingwebhookconfigurations"],
    "resourceNames": [NAME],
    "verbs": ["get", "patch", "watch"],
}


async def test_it_needs_few_rights_and_says_which_are_missing(apiserver: ApiServer, installed: RunningInjector) -> None:
    space = installed.namespace
    kubeconfig = apiserver.kubeconfig_of(space, "default")
    with pytest.raises(Forbidden) as refused:
        async with keeping(installed, kubeconfig):
            pass
    assert "mutatingwebhookconfigurations" in refused.value.remedy or "secrets" in refused.value.remedy
    group = "/apis/rbac.authorization.k8s.io/v1"
    subject = [{"kind": "ServiceAccount", "name": "default", "namespace": space}]
    ours = [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET], "verbs": ["get", "update", "watch"]},
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    ]
    apiserver.request("POST", f"{group}/clusterroles", {"metadata": {"name": space}, "rules": [HOOK_RULE]})
    apiserver.request("POST", f"{group}/namespaces/{space}/roles", {"metadata": {"name": "c"}, "rules": ours})
    cluster = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": space}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "c"}
    try:
        for path, ref in (
            (f"{group}/clusterrolebindings", cluster),
            (f"{group}/namespaces/{space}/rolebindings", role),
        ):
            apiserver.request("POST", path, {"metadata": {"name": space}, "roleRef": ref, "subjects": subject})
        path = f"/api/v1/namespaces/{space}/secrets/{SECRET}"
        apiserver.request("DELETE", path)
        async with keeping(installed, kubeconfig):
            await eventually(lambda: exists(apiserver, path), "the Secret made")
            await eventually(lambda: agreed(apiserver, installed), "API servers told")
    finally:
        apiserver.request("DELETE", f"{group}/clusterrolebindings/{space}")
        apiserver.request("DELETE", f"{group}/clusterroles/{space}")
