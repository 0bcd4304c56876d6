"""Whose token is refused by a real controller, whatever else is right about it."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from e2e.apiserver.proving import AUDIENCE, Cluster, audited, pod_spec, refused, sign
from e2e.harness.apiserver import ApiServer
from tests.controller.running import Running

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
