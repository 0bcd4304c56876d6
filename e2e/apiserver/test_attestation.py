"""Pods prove who they are to a real controller, by real tokens of a real API server, over real gRPC.

No kubelet runs: what it would do (tell a pod's address and phase) is done here, by the same requests.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import grpc
import grpc.aio
import pytest

from certs.keys import make_csr, new_key
from certs.spiffe import SpiffeId
from certs.svid import instance_of
from certs.verify import verify_peer
from e2e.apiserver.proving import MESHED, Cluster, audited, pod_spec, refused, sign
from e2e.harness.apiserver import ApiServer
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from sidecar.certificate_agent import CertificateAgent
from sidecar.settings import Address
from sidecar.settings import Settings as SidecarSettings
from sidecar.state import StateDirectory
from tests.controller.mesh import TRUST_DOMAIN
from tests.controller.running import Identity, Running, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
