"""What people hear when the controller and its API server do not get along: the cause, and what to do about it."""

from __future__ import annotations

import asyncio
import base64
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.ca import CertificateAuthority
from certs.certificate import pem_text
from controller.kube.client import Client
from controller.kube.errors import (
    Forbidden,
    KubernetesError,
    NoSuchResource,
    Refused,
    Unauthorized,
    Unreachable,
    Untrusted,
)
from controller.kube.inventory.following import WATCHED
from controller.kube.kinds import CONFIG_MAPS, NAMESPACES, NODES, PODS, Resource
from e2e.apiserver.simulated import PATIENCE, settings, watching
from e2e.harness.apiserver import ApiServer


def kubeconfig(apiserver: ApiServer, path: Path, **changes: Any) -> Path:
    """A kubeconfig with a token, and whatever is wrong with it."""
    cluster = {"server": apiserver.url, "certificate-authority": str(apiserver.ca)} | changes.pop("cluster", {})
    user = {"token": changes.pop("token", "")}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "clusters": [{"name": "one", "cluster": cluster}],
        "users": [{"name": "one", "user": user}],
        "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
    }
    path.write_text(yaml.safe_dump(document | changes))
    return path


async def error_of(path: Path, **more: Any) -> KubernetesError:
    async with Client(settings(path, **more)) as client:
        with pytest.raises(KubernetesError) as caught:
            await client.every(NAMESPACES)
    return caught.value


async def test_an_api_server_that_is_not_there(apiserver: ApiServer, tmp_path: Path) -> None:
    nobody = {"server": "https://127.0.0.1:1"}
    error = await error_of(kubeconfig(apiserver, tmp_path / "config", cluster=nobody, token="x"))
    assert isinstance(error, Unreachable)
    assert error.passing
    assert "https://127.0.0.1:1" in str(error)
    assert "what is in force stays" in error.remedy


async def test_an_api_server_of_another_authority(apiserver: ApiServer, tmp_path: Path) -> None:
    """A server that does not prove who it is could say who is who in the mesh: nothing of it is believed."""
    other = CertificateAuthority.create("hedgerow.test", time.time())
    (tmp_path / "ca.pem").write_text(pem_text(tuple(other.bundle().roots_der)))
    wrong = {"certificate-authority": str(tmp_path / "ca.pem")}
    error = await error_of(kubeconfig(apiserver, tmp_path / "config", cluster=wrong, token="x"))
    assert isinstance(error, Untrusted)
    assert "certificate-authority" in error.remedy


@pytest.mark.parametrize("token", ["nonsense", "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl"])
async def test_a_token_that_is_not_good_any_more(apiserver: ApiServer, tmp_path: Path, token: str) -> None:
    error = await error_of(kubeconfig(apiserver, tmp_path / "config", token=token))
    assert isinstance(error, Unauthorized)
    assert "make a new kubeconfig" in error.remedy
    assert token not in str(error), "no message holds a token"


def administrator(apiserver: ApiServer, path: Path, begins: datetime, ends: datetime) -> Path:
    """A kubeconfig with an administrator's certificate, signed by the cluster's own authority."""
    authority = x509.load_pem_x509_certificate(apiserver.ca.read_bytes())
    signer = load_pem_private_key(apiserver.ca.with_name("kubernetes-ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    names = [(NameOID.ORGANIZATION_NAME, "system:masters"), (NameOID.COMMON_NAME, "anna")]
    certificate = (
        x509.CertificateBuilder(authority.subject, x509.Name([x509.NameAttribute(*each) for each in names]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    document = yaml.safe_load(kubeconfig(apiserver, path).read_text())
    document["users"][0]["user"] = {
        "client-certificate-data": base64.b64encode(certificate.public_bytes(Encoding.PEM)).decode(),
        "client-key-data": base64.b64encode(pem).decode(),
    }
    path.write_text(yaml.safe_dump(document))
    return path


async def test_a_kubeconfig_whose_certificate_has_expired(apiserver: ApiServer, tmp_path: Path) -> None:
    """As those of administrators do after a year. It is the time alone: renewed in place, it is good at once."""
    now = datetime.now(UTC)
    path = administrator(apiserver, tmp_path / "config", now - timedelta(days=366), now - timedelta(days=1))
    async with Client(settings(path)) as client:
        with pytest.raises(Unauthorized, match="does not know us") as caught:
            await client.every(NAMESPACES)
        assert "make a new kubeconfig" in caught.value.remedy
        administrator(apiserver, path, now - timedelta(days=1), now + timedelta(days=1))
        assert await client.every(NAMESPACES)


async def test_a_kubeconfig_that_is_renewed_in_place_is_read_again(
    apiserver: ApiServer, namespace: str, tmp_path: Path
) -> None:
    path = kubeconfig(apiserver, tmp_path / "config", token="expired")
    async with Client(settings(path)) as client:
        with pytest.raises(Unauthorized):
            await client.get(NAMESPACES, namespace)
        good = yaml.safe_load(apiserver.kubeconfig_of(namespace, "default").read_text())["users"][0]["user"]["token"]
        kubeconfig(apiserver, path, token=good)
        with pytest.raises(Forbidden):  # known by now, and not allowed
            await client.get(NAMESPACES, namespace)


async def test_a_forbidden_verb_names_the_line_that_is_missing_in_rbac(apiserver: ApiServer, namespace: str) -> None:
    path = apiserver.kubeconfig_of(namespace, "default")
    async with Client(settings(path)) as client:
        with pytest.raises(Forbidden) as listed:
            await client.every(PODS)
        with pytest.raises(Forbidden) as patched:
            await client.patch(NODES, "x", {}, subresource="status")
    rule = 'add {apiGroups: [""], resources: ["pods"], verbs: ["list"]} to a role of ServiceAccount default in '
    assert rule + namespace in listed.value.remedy
    assert 'resources: ["nodes/status"], verbs: ["patch"]' in patched.value.remedy
    assert listed.value.status == 403


async def test_what_admission_refuses_is_no_question_of_rbac(apiserver: ApiServer, namespace: str) -> None:
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": []}}
    async with Client(settings(apiserver.kubeconfig)) as client:
        with pytest.raises(Refused) as caught:
            await client.create(PODS, body, namespace)
        assert "spec.containers" in str(caught.value)
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "none"},
            "spec": {"hard": {"configmaps": "0"}},
        }
        quotas = Resource("", "v1", "resourcequotas", "ResourceQuota")
        await client.create(quotas, quota, namespace)
        async with asyncio.timeout(PATIENCE):
            # until its controller has counted, a quota refuses nothing
            while not (await client.get(quotas, "none", namespace)).get("status", {}).get("hard"):  # noqa: ASYNC110  # asks
                await asyncio.sleep(0.1)
        with pytest.raises(Refused) as caught:
            await client.create(
                CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}, namespace
            )
        assert "quota" in str(caught.value)


async def test_a_resource_or_version_that_the_server_does_not_have(apiserver: ApiServer) -> None:
    async with Client(settings(apiserver.kubeconfig)) as client:
        with pytest.raises(NoSuchResource) as caught:
            await client.every(Resource("hedgerow.dev", "v9", "accessoverrides", "AccessOverride"))
    assert "install the CRDs of this version" in caught.value.remedy


async def test_an_inventory_without_one_permission_waits_for_it_and_says_which(
    apiserver: ApiServer, namespace: str
) -> None:
    """Half a cluster is no inventory: nothing is taken until everything can be listed; then it goes on by itself."""

    def grant(*left_out: str) -> None:
        rules = [
            {"apiGroups": [each.group], "resources": [each.plural], "verbs": ["list", "watch"]}
            for each in WATCHED
            if each.plural not in left_out
        ]
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": namespace}}
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": namespace},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
        }
        apiserver.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([role | {"rules": rules}, binding]))

    grant("endpointslices")
    try:
        async with watching(apiserver.kubeconfig_of(namespace, "default")) as watcher:
            parts = {each.part.name: each for each in watcher.supervision.parts}
            slices = parts["watch endpointslices.discovery.k8s.io"]
            others = [each for name, each in parts.items() if name.startswith("watch") and each is not slices]
            await watcher.until_true(lambda: slices.problem and all(each.part.synced for each in others))
            assert watcher.taken == 0
            rule = 'apiGroups: ["discovery.k8s.io"], resources: ["endpointslices"], verbs: ["list"]'
            assert rule in slices.problem
            assert set(watcher.supervision.waiting()) == {slices.part.name, "inventory"}
            grant()
            await watcher.until(lambda now: namespace in now.namespaces)
            assert watcher.supervision.synced
    finally:
        for kind in ("clusterrole", "clusterrolebinding"):
            apiserver.kubectl("delete", kind, namespace)
