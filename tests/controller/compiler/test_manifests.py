"""The inventory as Kubernetes manifests."""

from __future__ import annotations

from dataclasses import replace

import kubernetes_validate
import pytest
import yaml

from controller.compiler import inventory_files
from controller.compiler.manifests import namespace_manifest, pod_manifest
from graph.model import Port, Protocol
from tests.controller.compiler.meshes import instance, shop, workload

VERSION = kubernetes_validate.latest_version()
PORTS = (
    Port(8080, name="http"),
    Port(8080, name="again"),
    Port(9090, name="http"),
    Port(9091, name="Not A Name"),
    Port(9092, name="much-too-long-a-name"),
    Port(8080, Protocol.UDP, name="quic"),
)


def test_a_pod_says_who_is_where():
    owner = workload(
        "shop/cart", service_account="cart", ports=(Port(8080, name="http"),), labels={"app": "cart", "v": "1"}
    )
    assert pod_manifest(owner, instance("shop/cart", "10.0.0.3")) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "cart-1",
            "namespace": "shop",
            "labels": {"app": "cart", "v": "1"},
            "annotations": {"hedgerow.dev/workload": "shop/cart"},
        },
        "spec": {
            "serviceAccountName": "cart",
            "containers": [
                {
                    "name": "app",
                    "image": "placeholder",
                    "ports": [{"containerPort": 8080, "protocol": "TCP", "name": "http"}],
                }
            ],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.3", "podIPs": [{"ip": "10.0.0.3"}]},
    }


@pytest.mark.parametrize("address", ["10.0.0.3", "fd00::3", ""])
@pytest.mark.parametrize("ports", [(), PORTS])
def test_every_manifest_is_what_kubernetes_takes(ports, address):
    kubernetes_validate.validate(
        pod_manifest(workload("shop/cart", ports=ports, labels={}), instance("shop/cart", address)),
        VERSION,
        strict=True,
    )
    kubernetes_validate.validate(namespace_manifest("shop", [("team", "yes")]), VERSION, strict=True)


def test_a_port_is_listed_once_and_a_name_only_where_it_can_be():
    [container] = pod_manifest(workload("shop/cart", ports=PORTS), instance("shop/cart", "10.0.0.3"))["spec"][
        "containers"
    ]
    assert [(port["containerPort"], port["protocol"], port.get("name")) for port in container["ports"]] == [
        (8080, "TCP", "http"),
        (8080, "UDP", "quic"),
        (9090, "TCP", None),
        (9091, "TCP", None),
        (9092, "TCP", None),
    ]


def test_files_of_an_inventory():
    policy = shop()
    files = inventory_files(policy.workloads, policy.instances, {"empty": [("team", "on")]})
    assert sorted(files) == ["namespaces.yaml", "pods.legacy.yaml", "pods.shop.yaml"]
    namespaces = list(yaml.safe_load_all(files["namespaces.yaml"]))
    assert [each["metadata"]["name"] for each in namespaces] == ["empty", "legacy", "shop"]
    assert namespaces[0]["metadata"]["labels"] == {"kubernetes.io/metadata.name": "empty", "team": "on"}
    assert [each["metadata"]["name"] for each in yaml.safe_load_all(files["pods.shop.yaml"])] == [
        "cart-1",
        "db-1",
        "front-1",
        "front-2",
    ]
    turned = replace(policy, workloads=policy.workloads[::-1], instances=policy.instances[::-1])
    assert inventory_files(turned.workloads, turned.instances, {"empty": [("team", "on")]}) == files


def test_no_label_can_give_a_namespace_another_name():
    labels = namespace_manifest("shop", [("kubernetes.io/metadata.name", "ops")])["metadata"]["labels"]
    assert labels == {"kubernetes.io/metadata.name": "shop"}
