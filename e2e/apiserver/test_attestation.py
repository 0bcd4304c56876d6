"""Pods prove who they are to a real controller, by real tokens of a real API server, over real gRPC.

No kubelet runs: what it would do (tell a pod's address and phase) is done here, by the same requests.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from certs.svid import instance_of
from certs.verify import verify_peer
from controller.kube.settings import KubernetesSettings
from e2e.harness.apiserver import ApiServer
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from sidecar.certificate_agent import CertificateAgent
from sidecar.settings import Address
from sidecar.settings import Settings as SidecarSettings
from sidecar.state import StateDirectory
from tests.controller.mesh import TRUST_DOMAIN
from tests.controller.running import Identity, Running, eventually, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

AUDIENCE = "hedgerow-controller"
MESHED = {"hedgerow.dev/injection": "enabled"}
SIDECAR = {"name": "hedgerow-sidecar", "image": "none.example/sidecar:1", "restartPolicy": "Always"}

_hosts = itertools.count(10)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def run(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """A controller on the cluster."""
    kubernetes = KubernetesSettings(kubeconfig=apiserver.kubeconfig)
    async with running(tmp_path_factory.mktemp("controller"), inventory=None, kubernetes=kubernetes) as made:
        yield made


@pytest.fixture
def meshed(apiserver: ApiServer) -> Iterator[str]:
    """A fresh namespace whose pods are meshed."""
    name = apiserver.create_namespace(MESHED)
    yield name
    apiserver.delete_namespace(name)


def pod_spec(*, injected: bool = True, **changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": [{"name": "app", "image": "none.example/none:1"}]}
    return spec | ({"initContainers": [SIDECAR]} if injected else {}) | changes


@dataclass(frozen=True)
class Cluster:
    """What a kubelet and people do, in one namespace."""

    api: ApiServer
    namespace: str

    def path(self, name: str = "") -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods" + (f"/{name}" if name else "")

    def pod(self, name: str, spec: dict[str, Any] | None = None, **metadata: Any) -> str:
        """A new pod, running at an address of its own; its uid."""
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, **metadata},
            "spec": spec or pod_spec(),
        }
        uid = str(self.api.request("POST", self.path(), body)["metadata"]["uid"])
        self.runs(name)
        return uid

    def runs(self, name: str) -> None:
        """Say what a kubelet would say of it."""
        number = next(_hosts)
        address = f"10.244.{number // 250}.{number % 250}"
        ready = [{"type": "Ready", "status": "True"}]
        self.report(name, {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready})

    def report(self, name: str, status: dict[str, Any]) -> None:
        content_type = "application/strategic-merge-patch+json"
        self.api.request("PATCH", f"{self.path(name)}/status", {"status": status}, content_type=content_type)

    def token(self, pod: str, audience: str = AUDIENCE, account: str = "default") -> str:
        return self.api.token(self.namespace, account, audience, pod=pod)

    def delete(self, name: str) -> None:
        self.api.request("DELETE", self.path(name), {"gracePeriodSeconds": 0})


@pytest.fixture
def cluster(apiserver: ApiServer, meshed: str) -> Cluster:
    return Cluster(apiserver, meshed)


async def sign(run: Running, token: str, instance: str) -> pb.SignResponse:
    request = pb.SignRequest(csr_der=make_csr(new_key()), service_account_token=token, instance=instance)
    answer: pb.SignResponse = await rpc.IssuerStub(run.attesting()).Sign(request, timeout=20)
    return answer


async def refused(run: Running, token: str, instance: str) -> str:
    """The code of the refusal; its message has a remedy, and no token."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sign(run, token, instance)
    message = caught.value.details() or ""
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, message
    assert message.startswith("service_account_token: ")
    assert "; " in message, "a remedy"
    parts = [token, *token.split(".")]
    assert not [each for each in parts if len(each) > 10 and each in message]
    return message.rpartition("[")[2].rstrip("]")


async def audited(run: Running, pod: str) -> list[dict[str, Any]]:
    page = await run.get("/audit", limit=1000)
    assert page["intact"] is True
    return [entry for entry in page["entries"] if entry["actor"] == f"sidecar:{pod}"]


async def test_a_pod_s_own_token_buys_the_identity_of_its_workload(run: Running, cluster: Cluster) -> None:
    cluster.pod("cart-1")
    token = cluster.token("cart-1")
    key = new_key()
    request = pb.SignRequest(csr_der=make_csr(key), service_account_token=token, instance="cart-1")
    answer = await rpc.IssuerStub(run.attesting()).Sign(request, timeout=20)

    leaf, *others = answer.chain_der
    assert verify_peer(leaf, others, run.bundle, time.time()) == SpiffeId.for_workload(
        TRUST_DOMAIN, cluster.namespace, "default", "cart-1"
    )
    assert instance_of(leaf) == answer.instance == "cart-1"
    assert answer.workload == f"{cluster.namespace}/cart-1"
    # it is renewed by itself, without the token
    identity = Identity(key, tuple(answer.chain_der))
    renewed = await rpc.IssuerStub(run.mutual(identity)).Sign(pb.SignRequest(csr_der=make_csr(new_key())), timeout=20)
    assert renewed.spiffe_id == answer.spiffe_id

    (entry,) = [each for each in await audited(run, f"{cluster.namespace}/cart-1") if "attest" in each["action"]]
    assert entry["action"] == "certificate.attest"
    detail = entry["detail"]
    assert detail["pod_uid"] == cluster.api.request("GET", cluster.path("cart-1"))["metadata"]["uid"]
    assert (detail["account"], detail["from"], detail["token_keys"]) == ("default", "127.0.0.1", 1)
    assert detail["credential"].startswith("JTI=")
    assert token not in json.dumps(await run.get("/audit", limit=1000))


async def test_a_deployment_s_pod_is_of_the_deployment(run: Running, cluster: Cluster) -> None:
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": pod_spec()}
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
    }
    cluster.api.request("POST", f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments", body)

    def made() -> list[str]:
        found = [each["metadata"]["name"] for each in cluster.api.request("GET", cluster.path())["items"]]
        return found if len(found) == 2 else []

    one, other = await eventually(made)
    for name in (one, other):
        cluster.runs(name)
    answer = await sign(run, cluster.token(one), one)
    assert (answer.workload, answer.instance) == (f"{cluster.namespace}/web", one)
    # the same workload and account is not the same instance
    assert await refused(run, cluster.token(one), other) == "attestation-another-pod"


async def test_who_makes_a_pod_with_an_owner_of_somebody_else_s_gets_nothing(run: Running, cluster: Cluster) -> None:
    labels = {"app": "web"}
    body = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec()},
        },
    }
    path = f"/apis/apps/v1/namespaces/{cluster.namespace}/replicasets"
    uid = cluster.api.request("POST", path, body)["metadata"]["uid"]
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": uid, "controller": True}
    cluster.pod("intruder", ownerReferences=[owner], labels={"app": "other"})

    def released() -> bool:
        return not cluster.api.request("GET", cluster.path("intruder"))["metadata"].get("ownerReferences")

    await eventually(released)  # by the controller of the owner, which does not select it
    key = f"{cluster.namespace}/intruder"
    inventory = run.controller.engine
    await eventually(lambda: (at := inventory.view.inventory.instances.get(key)) and at.workload.name == "intruder")
    assert (await sign(run, cluster.token("intruder"), "intruder")).workload == key, "it is itself, and not web"


# --- refusals


async def test_a_token_for_somebody_else_is_refused(run: Running, cluster: Cluster) -> None:
    cluster.pod("cart-1")
    for audience in ("https://kubernetes.default.svc", "vault", "Hedgerow-Controller"):
        assert await refused(run, cluster.token("cart-1", audience), "cart-1") == "attestation-wrong-audience"


async def test_a_token_that_is_bound_to_no_pod_is_refused(run: Running, cluster: Cluster) -> None:
    cluster.pod("cart-1")
    assert (
        await refused(run, cluster.api.token(cluster.namespace, "default", AUDIENCE), "cart-1") == "attestation-unbound"
    )


def bound_token(cluster: Cluster, kind: str, name: str, uid: str) -> str:
    spec = {
        "audiences": [AUDIENCE],
        "expirationSeconds": 600,
        "boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid},
    }
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = f"/api/v1/namespaces/{cluster.namespace}/serviceaccounts/default/token"
    return str(cluster.api.request("POST", path, body)["status"]["token"])


async def test_a_token_of_a_node_or_a_secret_is_refused(run: Running, cluster: Cluster) -> None:
    cluster.pod("cart-1")
    node = f"node-{secrets.token_hex(4)}"
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}
    uid = cluster.api.request("POST", "/api/v1/nodes", body)["metadata"]["uid"]
    try:
        assert await refused(run, bound_token(cluster, "Node", node, uid), "cart-1") == "attestation-unbound"
    finally:
        cluster.api.request("DELETE", f"/api/v1/nodes/{node}")
    path = f"/api/v1/namespaces/{cluster.namespace}/secrets"
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kept"}}
    uid = cluster.api.request("POST", path, body)["metadata"]["uid"]
    assert await refused(run, bound_token(cluster, "Secret", "kept", uid), "cart-1") == "attestation-unbound"


async def test_another_pod_s_token_is_refused(run: Running, cluster: Cluster) -> None:
    cluster.pod("cart-1")
    cluster.pod("cart-2")
    assert await refused(run, cluster.token("cart-2"), "cart-1") == "attestation-another-pod"
    assert await refused(run, cluster.token("cart-1"), "") == "attestation-another-pod"
    (entry,) = await audited(run, f"{cluster.namespace}/cart-2")
    assert (entry["action"], entry["detail"]["code"]) == ("certificate.refused", "attestation-another-pod")


async def test_a_deleted_pod_s_token_is_refused_also_when_another_has_its_name(run: Running, cluster: Cluster) -> None:
    cluster.pod("db-0")
    token = cluster.token("db-0")
    assert (await sign(run, token, "db-0")).instance == "db-0"
    cluster.delete("db-0")
    assert await refused(run, token, "db-0") == "attestation-pod-gone"
    cluster.pod("db-0")
    assert await refused(run, token, "db-0") == "attestation-pod-gone"
    assert (await sign(run, cluster.token("db-0"), "db-0")).instance == "db-0"


async def test_a_pod_that_is_ending_or_has_ended_is_refused(run: Running, cluster: Cluster) -> None:
    cluster.pod("kept", finalizers=["hedgerow.test/kept"])
    token = cluster.token("kept")
    cluster.delete("kept")
    try:
        # the API server itself gives up a deleted pod's tokens a minute later; until then it is for us to say
        assert await refused(run, token, "kept") == "attestation-pod-ending"
    finally:
        unfinalized = {"metadata": {"finalizers": None}}
        cluster.api.request("PATCH", cluster.path("kept"), unfinalized, content_type="application/merge-patch+json")
    cluster.pod("done")
    token = cluster.token("done")
    cluster.report("done", {"phase": "Succeeded"})
    assert await refused(run, token, "done") == "attestation-pod-ended"


async def test_a_pod_without_our_sidecar_is_refused(run: Running, cluster: Cluster) -> None:
    cluster.pod("plain", pod_spec(injected=False))
    assert await refused(run, cluster.token("plain"), "plain") == "attestation-not-injected"


@pytest.mark.parametrize("injected", [True, False])
async def test_a_pod_with_the_node_s_network_is_refused(run: Running, cluster: Cluster, injected: bool) -> None:
    cluster.pod("agent", pod_spec(injected=injected, hostNetwork=True))
    assert await refused(run, cluster.token("agent"), "agent") == "attestation-host-network"


async def test_pods_outside_the_meshed_namespaces_are_refused(
    run: Running, apiserver: ApiServer, namespace: str
) -> None:
    plain = Cluster(apiserver, namespace)
    plain.pod("cart-1")
    assert await refused(run, plain.token("cart-1"), "cart-1") == "attestation-namespace"
    system = Cluster(apiserver, "kube-system")
    name = f"cart-{secrets.token_hex(4)}"
    system.pod(name)
    try:
        assert await refused(run, system.token(name), name) == "attestation-namespace"
    finally:
        system.delete(name)


def part(data: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()


def resigned(api: ApiServer, token: str, change: Callable[[dict[str, Any]], None], *, key: Any = None) -> str:
    """The same token with other claims, signed with the cluster's own key (or with ``key``)."""
    header, payload, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    change(claims)
    signed = f"{header}.{part(claims)}"
    if key is None:
        (path,) = api.ca.parent.glob("service-accounts.key")
        key = load_pem_private_key(path.read_bytes(), None)
    signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


async def test_an_expired_token_is_refused(run: Running, cluster: Cluster) -> None:
    cluster.pod("cart-1")
    token = cluster.token("cart-1")

    def an_hour_ago(claims: dict[str, Any]) -> None:
        for name in ("exp", "iat", "nbf"):
            claims[name] -= 3600

    assert await refused(run, resigned(cluster.api, token, an_hour_ago), "cart-1") == "attestation-expired"
    # it was the time and nothing else
    assert (await sign(run, resigned(cluster.api, token, lambda claims: None), "cart-1")).instance == "cart-1"


async def test_what_nobody_or_somebody_else_signed_is_refused(run: Running, cluster: Cluster) -> None:
    cluster.pod("cart-1")
    token = cluster.token("cart-1")
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    header, payload, signature = token.split(".")
    none = part({"alg": "none", "typ": "JWT"})
    for forged in (
        resigned(cluster.api, token, lambda claims: None, key=stranger),
        f"{header}.{payload}.{signature[:-6]}AAAAAA",
        f"{none}.{payload}.{signature}",
        "a.b.c",
        "hedgerow-join.0123456789abcdef." + "A" * 43,
        token + "x" * 20_000,
    ):
        assert await refused(run, forged, "cart-1") == "attestation-invalid"


# --- the same token again


async def test_a_token_signs_a_few_keys_and_each_is_written_down(
    run: Running, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.pod("cart-1")
    token = cluster.token("cart-1")
    for _ in range(3):
        assert (await sign(run, token, "cart-1")).instance == "cart-1"
    assert await refused(run, token, "cart-1") == "attestation-replayed"
    entries = await audited(run, f"{cluster.namespace}/cart-1")
    assert sorted(each["detail"].get("token_keys", 0) for each in entries) == [0, 1, 2, 3]
    assert "signs key number 3" in caplog.text
    # the kubelet's next token is another chance; it ends when the pod had too many
    for _ in range(3):
        await sign(run, cluster.token("cart-1"), "cart-1")
    assert await refused(run, cluster.token("cart-1"), "cart-1") == "attestation-too-often"
    assert token not in caplog.text


# --- the API server is away


async def test_an_api_server_that_is_away_is_no_refusal(run: Running, cluster: Cluster) -> None:
    cluster.pod("cart-1")
    token = cluster.token("cart-1")
    cluster.api.stop()
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sign(run, token, "cart-1")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "kubernetes-unreachable" in (caught.value.details() or "")
    finally:
        cluster.api.start()
    assert (await sign(run, token, "cart-1")).instance == "cart-1"


# --- the sidecar's own side


async def test_a_sidecar_gets_its_certificate_as_soon_as_its_pod_is_what_it_should_be(
    run: Running, apiserver: ApiServer, namespace: str, tmp_path: Path
) -> None:
    cluster = Cluster(apiserver, namespace)
    token = tmp_path / "token"
    settings = SidecarSettings(
        instance="cart-1",
        controller=run.controller.grpc_server.bound,
        issuer=run.controller.issuer_server.bound,
        trust_domain=TRUST_DOMAIN,
        trust_bundle=tmp_path / "trust-bundle.pem",
        state_dir=tmp_path / "state",
        addresses=("10.0.0.1",),
        service_account_token_file=token,
    )
    state = StateDirectory(settings.state_dir)
    agent = CertificateAgent(settings, state, Random(1), time.time)
    obtaining = asyncio.ensure_future(agent.obtain())
    await eventually(lambda: "trust_bundle" in agent.problem)
    settings.trust_bundle.write_text(run.bundle.to_pem())
    await eventually(lambda: "service_account_token_file" in agent.problem)
    cluster.pod("cart-1")
    token.write_text(cluster.token("cart-1"))
    await eventually(lambda: "[attestation-namespace]" in agent.problem)
    assert f"kubectl label namespace {namespace}" in agent.problem
    apiserver.request(
        "PATCH",
        f"/api/v1/namespaces/{namespace}",
        {"metadata": {"labels": MESHED}},
        content_type="application/merge-patch+json",
    )
    credentials = await asyncio.wait_for(obtaining, 60)
    assert str(credentials.identity) == f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/default/wl/cart-1"
    state.close()


async def test_a_sidecar_whose_certificate_expired_goes_back_to_its_token(
    run: Running, cluster: Cluster, tmp_path: Path
) -> None:
    cluster.pod("cart-1")
    bundle, token = tmp_path / "trust-bundle.pem", tmp_path / "token"
    bundle.write_text(run.bundle.to_pem())
    token.write_text(cluster.token("cart-1"))
    settings = SidecarSettings(
        instance="cart-1",
        controller=Address("127.0.0.1", 9),  # nobody is there to renew it
        issuer=run.controller.issuer_server.bound,
        trust_domain=TRUST_DOMAIN,
        trust_bundle=bundle,
        state_dir=tmp_path / "state",
        addresses=("10.0.0.1",),
        service_account_token_file=token,
    )
    state = StateDirectory(settings.state_dir)
    credentials = await CertificateAgent(settings, state, Random(1), time.time).obtain()
    first = credentials.svid
    # a day later, as far as the sidecar can tell, its certificate has expired; a minute before that it has not
    late = CertificateAgent(replace(settings), state, Random(1), lambda: first.not_after - 60.0)
    assert late._stored()[0] is not None
    expired = CertificateAgent(settings, state, Random(1), lambda: first.not_after + 1.0)
    assert expired._stored()[0] is None
    state.close()
    restarted = StateDirectory(settings.state_dir)
    (settings.state_dir / "svid.pem").unlink()
    second = await CertificateAgent(settings, restarted, Random(1), time.time).obtain()
    assert second.svid.chain_der != first.chain_der
    assert second.identity == first.identity
    restarted.close()
