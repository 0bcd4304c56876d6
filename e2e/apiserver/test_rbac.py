"""The controller does its work under exactly the roles that the chart gives it, and uses all that they grant.

What it did is told by the API server itself: its audit log has who asked for what, and what the answer was.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from certs.keys import make_csr, new_key
from controller.injection.webhook_configuration import NAME as WEBHOOK
from controller.injection.webhook_configuration import webhook_configuration
from controller.kube import rbac
from controller.kube.settings import KubernetesSettings
from controller.kube.webhook_certificate import SECRET
from e2e.apiserver.auditing import refused
from e2e.apiserver.custom_resources import install_crds
from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError
from graph.model import Mode, WorkloadRef
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from tests.controller.running import Running, running

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
#: Everything that a controller does, once, on a busy machine.
pytestmark = pytest.mark.timeout(900)

WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
SPEC = {
    "containers": [{"name": "app", "image": "none.example/none:1", "ports": [{"containerPort": 8080}]}],
    "initContainers": [{"name": "hedgerow-sidecar", "image": "none.example/sidecar:1", "restartPolicy": "Always"}],
}


async def until[T](met: Callable[[], T], what: str, seconds: float = 120.0) -> T:
    deadline = time.monotonic() + seconds
    while not (found := await asyncio.to_thread(met)):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.1)
    return found


class Installed:
    """What the chart installs of the controller's, and one meshed namespace with two pods."""

    def __init__(
        self, api: ApiServer, rules: Callable[[dict[str, Any]], bool] = lambda rule: True, *, certificate: bool = True
    ) -> None:
        self.api = api
        self.own = api.create_namespace()
        install_crds(api)
        self.role = f"hedgerow-controller-{self.own}"
        for manifest in rbac.manifests(self.own, certificate=certificate):
            if "Cluster" in manifest["kind"]:  # one for each test of the session
                manifest["metadata"]["name"] = self.role
            if "roleRef" in manifest and "Cluster" in manifest["kind"]:
                manifest["roleRef"]["name"] = self.role
            if "rules" in manifest:
                manifest["rules"] = [rule for rule in manifest["rules"] if rules(rule)]
            api.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
        self.user = f"system:serviceaccount:{self.own}:{rbac.ACCOUNT}"
        self.space = api.create_namespace({"hedgerow.dev/injection": "enabled"})
        for number, name in enumerate(("front", "cart"), 1):
            self.pod(name, f"10.245.{number}.1")

    def pod(self, name: str, address: str) -> None:
        path = f"/api/v1/namespaces/{self.space}/pods"
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": SPEC}
        self.api.request("POST", path, body)
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        self.api.request("PATCH", f"{path}/{name}/status", {"status": status}, content_type=STRATEGIC)

    def names(self, resource: str) -> list[str]:
        return self.api.kubectl("-n", self.space, "get", resource, "-o", "name").split()

    def object(self, path: str) -> dict[str, Any]:
        """An object; empty when it is not there."""
        try:
            return self.api.request("GET", path)
        except ApiError as error:
            if error.status != 404:
                raise
            return {}

    def remove(self) -> None:
        for kind in ("clusterrole", "clusterrolebinding"):
            self.api.kubectl("delete", kind, self.role)
        for name in (self.own, self.space):
            self.api.delete_namespace(name)

    def done(self) -> list[dict[str, Any]]:
        """Every request of the controller, from the audit log."""
        return [event for event in self.api.audited() if event["user"].get("username") == self.user]


@contextmanager
def webhook(api: ApiServer, namespace: str) -> Iterator[None]:
    """The injector's webhook without an injector; pods are admitted all the same."""
    api.request("POST", WEBHOOKS, webhook_configuration(namespace, "Ignore"))
    try:
        yield
    finally:
        api.request("DELETE", f"{WEBHOOKS}/{WEBHOOK}")


@asynccontextmanager
async def controller(installed: Installed, folder: Path, **changes: Any) -> AsyncIterator[Running]:
    config = installed.api.kubeconfig_of(installed.own, rbac.ACCOUNT)
    kubernetes = KubernetesSettings(
        kubeconfig=config, namespace=installed.own, cluster_networks=("10.0.0.0/8",), **changes
    )
    async with running(folder, inventory=None, kubernetes=kubernetes) as made:
        yield made


async def attest(run: Running, installed: Installed, pod: str) -> str:
    token = installed.api.token(installed.space, "default", "hedgerow-controller", pod=pod)
    request = pb.SignRequest(csr_der=make_csr(new_key()), service_account_token=token, instance=pod)
    answer: pb.SignResponse = await rpc.IssuerStub(run.attesting()).Sign(request, timeout=120)
    return answer.workload


async def everything(run: Running, installed: Installed) -> None:
    """Whatever a controller does on a cluster, once."""
    api, space, own = installed.api, installed.space, installed.own
    who = {"owner": "anna", "reason": "a try"}
    cluster = run.controller.cluster
    assert cluster is not None
    try:
        await until(lambda: cluster.synced, "synced", 240)
    except AssertionError:
        raise AssertionError(cluster.supervision.waiting()) from None
    # attestation and the trust bundle
    assert await attest(run, installed, "cart") == f"{space}/cart"
    trust = f"/api/v1/namespaces/{space}/configmaps/hedgerow-trust"
    await until(lambda: installed.object(trust), "the trust bundle")
    # the injector's certificate, and somebody who breaks it
    secret = f"/api/v1/namespaces/{own}/secrets/{SECRET}"
    await until(lambda: installed.object(secret), "the injector's certificate")

    def announced() -> bool:
        return all(
            hook["clientConfig"].get("caBundle") for hook in api.request("GET", f"{WEBHOOKS}/{WEBHOOK}")["webhooks"]
        )

    await until(announced, "its authority in the webhook")
    api.request("PATCH", secret, {"data": {"tls.crt": "AAAA"}}, content_type=MERGE)
    await until(lambda: api.request("GET", secret)["data"]["tls.crt"] != "AAAA", "its repair")
    # what people decide
    asked = {"effect": "allow", "from": f"{space}/front", "to": f"{space}/cart", "port": 8080, "expires_in": 600, **who}
    made = await run.post("/overrides", asked, 201)
    await until(lambda: installed.names("accessoverrides"), "an override")
    identifier = made.get("id") or made["override"]["id"]
    async with run.http.delete(f"/api/v1/overrides/{identifier}", params=who) as answered:
        assert answered.status == 200, await answered.text()
    await until(lambda: not installed.names("accessoverrides"), "no override")
    await run.post("/modes", {"namespace": space, "mode": "audit", **who})
    await run.post("/modes", {"namespace": space, "mode": "enforce", **who})
    await run.post("/modes", {"namespace": space, "network_policy": "apply", **who})
    await until(lambda: installed.names("networkpolicies"), "NetworkPolicies")
    await until(lambda: len(installed.names("learnedpolicies")) == 2, "LearnedPolicies")

    def said() -> bool:
        (mode,) = api.request("GET", f"/apis/hedgerow.dev/v1alpha1/namespaces/{space}/segmentationmodes")["items"]
        return bool(mode.get("status"))

    await until(said, "the mode's status")
    # and everything back
    await run.post("/modes", {"namespace": space, "network_policy": "off", **who})
    await until(lambda: not installed.names("networkpolicies"), "no NetworkPolicies")
    (mode,) = installed.names("segmentationmodes")
    api.kubectl("-n", space, "delete", mode)
    engine = run.controller.engine
    await until(lambda: engine.view.modes[WorkloadRef(space, "cart")].inbound is not Mode.ENFORCE, "the mode's end")
    for name in ("front", "cart"):
        api.request("DELETE", f"/api/v1/namespaces/{space}/pods/{name}", {"gracePeriodSeconds": 0})
    await until(lambda: not installed.names("learnedpolicies"), "no LearnedPolicies", 240)
    label = {"metadata": {"labels": {"hedgerow.dev/injection": None}}}
    api.request("PATCH", f"/api/v1/namespaces/{space}", label, content_type=MERGE)
    await until(lambda: not installed.object(trust), "no trust bundle", 240)


def plural(event: dict[str, Any]) -> tuple[str, str]:
    """API group and resource, as RBAC names them."""
    about = event["objectRef"]
    name = f"{about['resource']}/{about['subresource']}" if about.get("subresource") else about["resource"]
    return about.get("apiGroup", ""), name


def granted() -> set[tuple[str, str, str]]:
    return {(rule.resource.group, rule.plural, verb) for rule in rbac.RULES for verb in rule.verbs}


async def test_the_controller_uses_what_it_is_granted_and_nothing_else(apiserver: ApiServer, tmp_path: Path) -> None:
    installed = Installed(apiserver)
    with webhook(apiserver, installed.own):
        async with controller(installed, tmp_path) as run:
            await everything(run, installed)
    events = [event for event in installed.done() if "objectRef" in event]
    assert refused(events) == []
    used = {(*plural(event), event["verb"]) for event in events}
    # what is made by server-side apply has to be allowed as a creation as well, and the log calls it a patch
    used |= {(*plural(event), "create") for event in events if event["responseStatus"]["code"] == 201}
    assert sorted(granted() - used) == [], "granted and not used"
    assert sorted(used - granted()) == [], "used and not granted"
    # objects that a rule names are the only ones that were asked for under it
    for rule in rbac.RULES:
        touched = {
            event["objectRef"].get("name", "")
            for event in events
            if rule.names and plural(event) == (rule.resource.group, rule.plural) and event["verb"] in rule.verbs
        }
        assert touched <= {*rule.names, ""}, rule.plural
    installed.remove()


async def test_where_somebody_else_makes_the_injector_s_certificate_it_needs_and_has_less(
    apiserver: ApiServer, tmp_path: Path
) -> None:
    installed = Installed(apiserver, certificate=False)
    with webhook(apiserver, installed.own):
        async with controller(installed, tmp_path, injector_certificate="external") as run:
            cluster = run.controller.cluster
            assert cluster is not None
            await until(lambda: cluster.synced, "synced", 240)
            assert await attest(run, installed, "cart") == f"{installed.space}/cart"
            trust = f"/api/v1/namespaces/{installed.space}/configmaps/hedgerow-trust"
            await until(lambda: installed.object(trust), "the trust bundle")
            assert {each["name"] for each in installed.object(trust)["metadata"]["ownerReferences"]} == {WEBHOOK}
    assert refused(installed.done()) == []
    installed.remove()


async def test_a_missing_rule_is_named_with_its_remedy_and_harms_nothing_else(
    apiserver: ApiServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installed = Installed(apiserver, lambda rule: not {"tokenreviews", "configmaps"} & {*rule["resources"]})
    async with controller(installed, tmp_path) as run:
        key = f"{installed.space}/cart"
        await until(lambda: key in run.controller.engine.view.inventory.instances, "the inventory", 240)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await attest(run, installed, "cart")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "kubernetes-forbidden" in (caught.value.details() or "")
        remedy = 'add {apiGroups: ["authentication.k8s.io"], resources: ["tokenreviews"], verbs: ["create"]}'
        assert remedy in caplog.text
        assert f"ServiceAccount {rbac.ACCOUNT} in {installed.own}" in caplog.text
        await until(lambda: 'resources: ["configmaps"], verbs: ["list"]' in caplog.text, "the other one")
    installed.remove()
