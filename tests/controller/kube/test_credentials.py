"""Which kubeconfigs are used and which are refused, before anything is asked of anybody."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from controller.errors import ConfigError
from controller.kube.client import Client
from controller.kube.settings import KubernetesSettings
from controller.settings import Settings


def kubeconfig(path: Path, **cluster) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "one",
        "clusters": [{"name": "one", "cluster": {"server": "https://192.0.2.1:6443"} | cluster}],
        "users": [{"name": "one", "user": {"token": "secret-token"}}],
        "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


async def refused(path: Path, **more) -> ConfigError:
    async with Client(KubernetesSettings(kubeconfig=path, **more)) as client:
        with pytest.raises(ConfigError) as caught:
            await client.open()
    assert caught.value.field.startswith("kubernetes")
    assert caught.value.remedy
    assert "secret-token" not in str(caught.value)
    return caught.value


async def test_a_good_one_is_used(tmp_path):
    async with Client(KubernetesSettings(kubeconfig=kubeconfig(tmp_path / "config"))) as client:
        await client.open()


@pytest.mark.parametrize(
    ("cluster", "problem"),
    [
        ({"insecure-skip-tls-verify": True}, "anybody could say who is who"),
        ({"server": "http://192.0.2.1:8080"}, "is not HTTPS"),
        ({"certificate-authority": "nowhere.pem"}, "does not exist"),
        ({"certificate-authority-data": "bm8gY2VydGlmaWNhdGU="}, "can not be used"),
    ],
)
async def test_one_that_would_believe_anybody_or_nobody_is_refused(tmp_path, cluster, problem):
    assert problem in str(await refused(kubeconfig(tmp_path / "config", **cluster))).replace("exists", "exist")


async def test_plain_http_on_loopback_is_a_proxy_of_ones_own(tmp_path):
    proxy = kubeconfig(tmp_path / "config", server="http://127.0.0.1:8001")
    async with Client(KubernetesSettings(kubeconfig=proxy)) as client:
        await client.open()


@pytest.mark.parametrize("content", ["", "{", "- 1", "a: b", "clusters: 3\ncurrent-context: x"])
async def test_what_is_no_kubeconfig_is_refused(tmp_path, content):
    (tmp_path / "config").write_text(content)
    await refused(tmp_path / "config")


async def test_a_context_that_is_not_there_is_refused(tmp_path):
    assert "other" in str(await refused(kubeconfig(tmp_path / "config"), context="other"))


async def test_outside_a_pod_a_kubeconfig_is_needed(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    async with Client(KubernetesSettings()) as client:
        with pytest.raises(ConfigError) as caught:
            await client.open()
    assert "set kubernetes.kubeconfig" in caught.value.remedy


# --- the section in controller.yaml


def parse(tmp_path, **document):
    return Settings.parse({"state_dir": "state"} | document, tmp_path)


def test_the_section_may_be_empty_and_there_is_no_inventory_file_then(tmp_path):
    settings = parse(tmp_path, kubernetes=None)
    assert settings.kubernetes == KubernetesSettings()
    assert settings.inventory is None
    assert parse(tmp_path, inventory="x.yaml").kubernetes is None


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [
        ({}, "inventory", "add a `kubernetes:` section"),
        ({"inventory": "x", "kubernetes": {}}, "inventory", "remove one"),
        ({"kubernetes": []}, "kubernetes", "mapping"),
        ({"kubernetes": {"kubeconfg": "x"}}, "kubernetes.kubeconfg", "did you mean 'kubeconfig'"),
        ({"kubernetes": {"kubeconfig": "nowhere"}}, "kubernetes.kubeconfig", "can read"),
        ({"kubernetes": {"context": "x"}}, "kubernetes.context", "set kubeconfig too"),
        ({"kubernetes": {"namespace": "X"}}, "kubernetes.namespace", "lower-case"),
        ({"kubernetes": {"cluster_networks": ["0.0.0.0/0"]}}, "kubernetes.cluster_networks[0]", "pods, services"),
        ({"kubernetes": {"coalesce": 0}}, "kubernetes.coalesce", "seconds"),
        ({"kubernetes": {"request_timeout": "1m"}}, "kubernetes.request_timeout", "seconds"),
    ],
)
def test_settings_that_are_not_understood_are_refused_with_the_remedy(tmp_path, document, field, words):
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, **document)
    assert caught.value.field == field
    assert words in str(caught.value)
