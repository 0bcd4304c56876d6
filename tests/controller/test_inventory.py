"""The inventory is read as a whole or not at all, and every mistake names its place and its remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.errors import InventoryError
from controller.inventory import MAX_INVENTORY_BYTES, Inventory, inventory_of, load_inventory, read_inventory
from graph.directory import Endpoint
from graph.errors import InvalidValue
from graph.model import Protocol, Transport, WorkloadRef
from tests.controller.mesh import CART, FRONT, INVENTORY, LEGACY, TRUST_DOMAIN, inventory


def test_a_file_is_read_with_its_indexes(tmp_path: Path) -> None:
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY)
    found = load_inventory(path, TRUST_DOMAIN)
    assert [each.name for each in found.instances_of(CART)] == ["cart-0", "cart-1"]
    assert found.instances_of(WorkloadRef("shop", "none")) == ()
    at = found.instance_at("::ffff:10.0.0.2")
    assert at is not None
    assert at.name == "cart-0"
    service = found.service_at("10.1.0.1")
    assert service is not None
    assert service.ports[0].target_port == 8080
    assert found.namespaces["shop"].labels == (("team", "green"),)
    assert found.identity_of(FRONT) == "spiffe://hedgerow.test/ns/shop/sa/front/wl/front"
    assert found.identity_of(LEGACY) == ""


def test_its_dictionary_form_reads_back_as_itself() -> None:
    found = inventory()
    assert inventory_of(json.loads(json.dumps(found.to_dict())), TRUST_DOMAIN) == found


def test_namespaces_may_be_left_out_altogether() -> None:
    document = yaml.safe_load(INVENTORY)
    del document["namespaces"]
    assert set(inventory_of(document, TRUST_DOMAIN).namespaces) == {"shop", "data"}


# --- resolving


def test_a_service_address_leads_to_its_instances_on_the_target_port() -> None:
    answer = inventory().resolve("10.1.0.1", 80)
    assert (answer.workload, answer.service, answer.meshed) == (CART, "shop/cart", True)
    identity = "spiffe://hedgerow.test/ns/shop/sa/default/wl/cart"
    assert answer.endpoints == (
        Endpoint("10.0.0.2", 8080, "cart-0", identity),
        Endpoint("10.0.0.3", 8080, "cart-1", identity),
    )


@pytest.mark.parametrize(("port", "protocol"), [(81, Protocol.TCP), (80, Protocol.UDP)])
def test_a_port_that_a_service_does_not_have_leads_to_nobody(port: int, protocol: Protocol) -> None:
    answer = inventory().resolve("10.1.0.1", port, protocol)
    assert answer.workload == CART
    assert answer.endpoints == ()


def test_an_instance_address_leads_to_that_instance_alone() -> None:
    answer = inventory().resolve("10.0.0.3", 9999)
    assert [(each.instance, each.port) for each in answer.endpoints] == [("cart-1", 9999)]


def test_an_instance_without_a_sidecar_has_no_identity() -> None:
    answer = inventory().resolve("10.0.0.5", 25)
    assert answer.meshed is False
    assert answer.endpoints[0].identity == ""


def test_any_other_address_is_not_ours() -> None:
    answer = inventory().resolve("192.0.2.1", 443)
    assert answer.workload is None
    assert answer.endpoints == ()


@pytest.mark.parametrize(("address", "port"), [("nonsense", 80), ("10.1.0.1", 0), ("10.1.0.1", 65536)])
def test_what_is_no_address_or_port_is_refused(address: str, port: int) -> None:
    with pytest.raises(InvalidValue):
        inventory().resolve(address, port)


def test_addresses_are_attributed_to_instances_and_services() -> None:
    found = inventory()
    assert found.attributed(WorkloadRef.external("10.0.0.1")) == FRONT
    assert found.attributed(WorkloadRef.external("10.1.0.1")) == CART
    outside = WorkloadRef.external("192.0.2.1")
    assert found.attributed(outside) is outside


def test_a_name_inside_the_cluster_leads_to_its_service() -> None:
    found = inventory()
    for name in ("cart.shop", "cart.shop.svc", "cart.shop.svc.cluster.local", "cart.shop.svc.my.zone"):
        assert found.service_named(name) == CART, name
    for name in ("cart", "redis.data", "cart.shop.example.com", "shop.cart", "www.cart.shop.svc", ""):
        assert found.service_named(name) is None, name


# --- another mesh, and ports that are nobody's business


def with_foreign(**changes: Any) -> Inventory:
    document = yaml.safe_load(INVENTORY)
    document["workloads"][0] |= {"transport": "mtls", **changes}
    return inventory_of(document, TRUST_DOMAIN)


def test_another_meshs_workload_is_reached_by_plain_mutual_tls() -> None:
    found = with_foreign()
    workload = found.workloads[FRONT]
    assert (workload.meshed, workload.has_sidecar, workload.account_identity) == (True, False, True)
    answer = found.resolve("10.0.0.1", 8080)
    assert (answer.workload, answer.meshed) == (FRONT, True)
    identity = "spiffe://hedgerow.test/ns/shop/sa/front"
    assert answer.endpoints == (Endpoint("10.0.0.1", 8080, "front-0", identity, transport=Transport.MTLS),)
    assert found.resolve("10.0.0.2", 8080).endpoints[0].transport is Transport.TUNNEL


def test_its_certificates_may_name_the_workload() -> None:
    found = with_foreign(identity="workload", serviceAccount="default")
    assert found.identity_of(FRONT) == "spiffe://hedgerow.test/ns/shop/sa/default/wl/front"
    assert not found.workloads[FRONT].account_identity


@pytest.mark.parametrize("which", [0, 1])
def test_an_account_that_is_all_the_proof_there_is_is_nobody_elses(which: int) -> None:
    document = yaml.safe_load(INVENTORY)
    document["workloads"][which] |= {"transport": "mtls", "serviceAccount": "both"}
    document["workloads"][1 - which]["serviceAccount"] = "both"
    with pytest.raises(InventoryError, match="shop/front") as caught:
        inventory_of(document, TRUST_DOMAIN)
    assert caught.value.field == "workloads[1].serviceAccount"
    assert "identity: workload" in caught.value.remedy
    document["workloads"][1 - which]["meshed"] = False  # proves nothing, so nobody takes it for the other
    assert inventory_of(document, TRUST_DOMAIN).workloads


def test_opaque_ports_are_said_to_be_plain_tcp() -> None:
    document = yaml.safe_load(INVENTORY)
    document["workloads"][0]["opaquePorts"] = [8080, 5432, 5432]
    ports = inventory_of(document, TRUST_DOMAIN).workloads[FRONT].ports
    assert [(port.number, port.name, port.app_protocol) for port in ports] == [(8080, "http", "tcp"), (5432, "", "tcp")]


def test_the_clusters_networks_are_kept_once_and_in_order() -> None:
    document = {**yaml.safe_load(INVENTORY), "clusterNetworks": ["fd00::/8", "10.0.0.0/8", "10.0.0.0/8"]}
    assert inventory_of(document, TRUST_DOMAIN).networks == ("10.0.0.0/8", "fd00::/8")


def test_all_of_it_reads_back_from_its_dictionary_form() -> None:
    document = yaml.safe_load(INVENTORY)
    document["clusterNetworks"] = ["10.0.0.0/8"]
    document["workloads"][0] |= {"transport": "mtls", "opaquePorts": [5432]}
    document["workloads"][1] |= {"transport": "mtls", "identity": "workload"}
    found = inventory_of(document, TRUST_DOMAIN)
    assert inventory_of(json.loads(json.dumps(found.to_dict())), TRUST_DOMAIN) == found


# --- mistakes


def changed(path: str, value: Any) -> dict[str, Any]:
    """The inventory with one thing set, or deleted when ``value`` is ``...``."""
    document: Any = yaml.safe_load(INVENTORY)
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = document
    for part in way:
        place = place[part]
    if value is ...:
        del place[last]
    elif isinstance(last, int) and last == len(place):
        place.append(value)
    else:
        place[last] = value
    return document


CASES: list[tuple[str, Any, str, str]] = [
    # what to change, to what, the field that has to be named, a part of the remedy
    ("apiVersion", "hedgerow.dev/v9", "apiVersion", "hedgerow.dev/v1alpha1"),
    ("apiVersion", ..., "apiVersion", "add the key 'apiVersion'"),
    ("kind", "Mesh", "kind", "kind: Inventory"),
    ("workload", [], "workload", "workloads"),
    ("workloads", {}, "workloads", "list"),
    ("workloads.0", "front", "workloads[0]", "name: value"),
    ("workloads.0", None, "workloads[0]", "name: value"),
    ("workloads.0.nmae", "x", "workloads[0].nmae", "name"),
    ("workloads.0.name", ..., "workloads[0].name", "add the key 'name'"),
    ("workloads.0.name", 7, "workloads[0].name", "quotes"),
    ("workloads.0.name", "", "workloads[0].name", "lower-case"),
    ("workloads.0.name", "Front", "workloads[0].name", "lower-case"),
    ("workloads.0.name", "a/b", "workloads[0].name", "lower-case"),
    ("workloads.0.namespace", "-", "workloads[0].namespace", "Kubernetes"),
    ("workloads.0.namespace", "shp", "workloads[0].namespace", "namespaces"),
    ("workloads.1.name", "front", "workloads[1].name", "once"),
    ("workloads.0.kind", "deployment", "workloads[0].kind", "Deployment"),
    ("workloads.0.meshed", "yes", "workloads[0].meshed", "true or false"),
    ("workloads.0.schedule", "* * * * *", "workloads[0].schedule", "CronJob"),
    ("workloads.0.serviceAccount", "Not_Ok", "workloads[0].serviceAccount", "Kubernetes"),
    ("workloads.0.labels", {"a b": "c"}, "workloads[0].labels.a b", "Kubernetes"),
    ("workloads.0.labels", {"a": 1}, "workloads[0].labels.a", "quote"),
    ("workloads.0.labels", {"a": "x" * 64}, "workloads[0].labels.a", "63"),
    ("workloads.0.labels", [], "workloads[0].labels", "name: value"),
    ("workloads.0.ports.0.port", 0, "workloads[0].ports[0].port", "65535"),
    ("workloads.0.ports.0.port", 65536, "workloads[0].ports[0].port", "65535"),
    ("workloads.0.ports.0.port", True, "workloads[0].ports[0].port", "65535"),
    ("workloads.0.ports.0.port", "80", "workloads[0].ports[0].port", "65535"),
    ("workloads.0.ports.0.port", ..., "workloads[0].ports[0].port", "add the key 'port'"),
    ("workloads.0.ports.0.protocol", "tcp", "workloads[0].ports[0].protocol", "TCP"),
    ("workloads.0.ports.0.appProtocol", "a b", "workloads[0].ports[0].appProtocol", "http"),
    ("workloads.0.ports.0.name", "Web!", "workloads[0].ports[0].name", "lower-case"),
    ("workloads.0.ports.1", {"port": 8080}, "workloads[0].ports[1].port", "once"),
    ("workloads.0.ports.1", {"port": 81, "name": "http"}, "workloads[0].ports[1].name", "own"),
    ("workloads.0.opaquePorts", 8080, "workloads[0].opaquePorts", "list"),
    ("workloads.0.opaquePorts", [0], "workloads[0].opaquePorts[0]", "65535"),
    ("workloads.1.opaquePorts", [5432, 8080], "workloads[1].opaquePorts[1]", "one of the two"),
    ("workloads.0.ports", [{"port": n, "appProtocol": "http"} for n in range(1, 258)], "workloads[0].ports", "256"),
    ("workloads.0.transport", "tunnel", "workloads[0].transport", "mtls"),
    ("workloads.3.transport", "mtls", "workloads[3].transport", "one of the two"),
    ("workloads.0.identity", "account", "workloads[0].identity", "leave it out"),
    ("workloads.0.identity", "none", "workloads[0].identity", "account, workload"),
    ("clusterNetworks", "10.0.0.0/8", "clusterNetworks", "list"),
    ("clusterNetworks", ["10.0.0.1/8"], "clusterNetworks[0]", "10.0.0.0/8"),
    ("clusterNetworks", ["10.0.0.0/8", "0.0.0.0/0"], "clusterNetworks[1]", "pods"),
    ("clusterNetworks", [""], "clusterNetworks[0]", "pods"),
    ("clusterNetworks", [f"10.{n}.0.0/16" for n in range(17)], "clusterNetworks", "16"),
    ("namespaces.1.name", "shop", "namespaces[1].name", "once"),
    ("namespaces.0.name", "UPPER", "namespaces[0].name", "lower-case"),
    ("instances.3.address", "10.0.0.999", "instances[3].address", "10.0.0.7"),
    ("instances.3.address", "10.0.0.1", "instances[3].address", "one of them"),
    ("instances.3.address", "0.0.0.0", "instances[3].address", "instance"),
    ("instances.3.address", "224.0.0.1", "instances[3].address", "instance"),
    ("instances.3.address", "::ffff:10.0.0.1", "instances[3].address", "plain"),
    ("instances.3.address", "fe80::1%eth0", "instances[3].address", "plain"),
    ("instances.3.address", ..., "instances[3].address", "add the key 'address'"),
    ("instances.0.workload", "shop/frnt", "instances[0].workload", "shop/front"),
    ("instances.0.workload", "front", "instances[0].workload", "namespace/name"),
    ("instances.0.name", "cart-0", "instances[1].name", "own"),
    ("instances.0.ready", 1, "instances[0].ready", "true or false"),
    ("services.0.address", "10.0.0.1", "services[0].address", "one of them"),
    ("services.0.workload", "data/redis", "services[0].workload", "namespace"),
    ("services.0.workload", "else/zzzzz", "services[0].workload", "workloads"),
    ("services.0.ports", [], "services[0].ports", "list"),
    ("services.0.ports", ..., "services[0].ports", "add the key 'ports'"),
    ("services.0.ports.0.targetPort", "web", "services[0].ports[0].targetPort", "name one"),
    ("services.0.ports.0.targetPort", 0, "services[0].ports[0].targetPort", "65535"),
    ("services.0.ports.1", {"port": 80}, "services[0].ports[1].port", "once"),
    (
        "services.1",
        {"namespace": "shop", "name": "cart", "address": "10.1.0.2", "workload": "shop/cart", "ports": [{"port": 1}]},
        "services[1].name",
        "once",
    ),
    (
        "services.1",
        {"namespace": "shop", "name": "c", "address": "10.1.0.1", "workload": "shop/cart", "ports": [{"port": 1}]},
        "services[1].address",
        "one of them",
    ),
]


@pytest.mark.parametrize(("path", "value", "field", "remedy"), CASES, ids=[f"{c[0]}={c[1]!r:.30}" for c in CASES])
def test_a_mistake_names_its_place_and_its_remedy(path: str, value: Any, field: str, remedy: str) -> None:
    with pytest.raises(InventoryError) as caught:
        inventory_of(changed(path, value), TRUST_DOMAIN)
    assert caught.value.field == field
    assert remedy in caught.value.remedy
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"kind: [", "line 2"),
        (b"kind: a\nkind: b\n", "line 2"),
        (b"a: {b: 1, b: 2}", "twice"),
        (b"? [a]\n: b", "not text but a list"),
        (b"!!python/object/apply:os.system ['true']", "not YAML"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 100_000, "not YAML"),
        (b"", "the document"),
        (b"- a", "the document"),
        (b"1: 2", "not text"),
        (b"at: 2020-99-99", "not YAML"),
        (b"x" * (MAX_INVENTORY_BYTES + 1), "bytes"),
    ],
)
def test_what_is_not_a_document_of_ours_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(InventoryError) as caught:
        read_inventory(content, TRUST_DOMAIN)
    assert said in str(caught.value)
    assert caught.value.remedy


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"none\.yaml can not be read.*`inventory`"):
        load_inventory(tmp_path / "none.yaml", TRUST_DOMAIN)


def test_a_bad_trust_domain_is_named() -> None:
    with pytest.raises(InventoryError, match="trust_domain"):
        read_inventory(INVENTORY.encode(), "Not A Domain")


def test_an_inventory_does_not_change() -> None:
    found = inventory()
    with pytest.raises(TypeError):
        found.workloads[CART] = found.workloads[FRONT]
    assert found == inventory()
    assert found != Inventory(TRUST_DOMAIN)
