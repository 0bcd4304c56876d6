"""Objects of a cluster become an inventory: by owners, by slices, by addresses; and change by change the same as at
once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.inventory import inventory_of
from controller.kube.inventory import objects
from controller.kube.inventory.assembly import Assembly
from controller.kube.reflector import Changed, Unreadable
from graph.model import Protocol, WorkloadRef

TRUST_DOMAIN = "hedgerow.test"
CART = WorkloadRef("shop", "cart")
METHODS = {
    "Pod": ("pods", objects.pod),
    "Deployment": ("owners", objects.owner_of_kind("Deployment")),
    "StatefulSet": ("owners", objects.owner_of_kind("StatefulSet")),
    "ReplicaSet": ("owners", objects.bare_owner_of_kind("ReplicaSet")),
    "Job": ("owners", objects.bare_owner_of_kind("Job")),
    "CronJob": ("owners", objects.owner_of_kind("CronJob")),
    "Service": ("services", objects.service),
    "EndpointSlice": ("slices", objects.endpoint_slice),
    "Namespace": ("namespaces", objects.namespace),
    "Node": ("nodes", objects.node),
}
GROUPS = {
    "Deployment": "apps/v1",
    "ReplicaSet": "apps/v1",
    "StatefulSet": "apps/v1",
    "Job": "batch/v1",
    "CronJob": "batch/v1",
}


def owned_by(kind, name, uid="", api=""):
    return {
        "apiVersion": api or GROUPS[kind],
        "kind": kind,
        "name": name,
        "uid": uid or f"{kind}-{name}",
        "controller": True,
    }


def made(kind, name, namespace="shop", owner=None, labels=None, uid="", created="2026-01-01T00:00:00Z", **parts):
    metadata = {"namespace": namespace, "name": name, "uid": uid or f"{kind}-{name}", "creationTimestamp": created}
    if kind in ("Namespace", "Node"):
        del metadata["namespace"]
    return {
        "kind": kind,
        "metadata": metadata | {"labels": labels or {}} | ({"ownerReferences": [owner]} if owner else {}),
        **parts,
    }


def spec(*, sidecar=True, account="default", ports=(("http", 8080),), **more):
    declared = [{"name": name, "containerPort": number} for name, number in ports]
    containers = [{"name": "app", "ports": declared}]
    if sidecar:
        containers.append({"name": "hedgerow-sidecar", "ports": [{"name": "metrics", "containerPort": 15020}]})
    return {"containers": containers, "serviceAccountName": account, **more}


def pod(
    name,
    address="",
    owner=None,
    labels=None,
    *,
    ready=True,
    created="2026-01-02T00:00:00Z",
    ending=False,
    also=(),
    **more,
):
    ips = [{"ip": each} for each in (address, *also) if each]
    status = {"podIPs": ips, "phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]}
    document = made("Pod", name, owner=owner, labels={"app": "cart"} if labels is None else labels, created=created)
    if ending:
        document["metadata"]["deletionTimestamp"] = "2026-01-03T00:00:00Z"
    return document | {"spec": spec(**more), "status": status}


def deployment(name="cart", labels=None, **more):
    mine = labels or {"app": name}
    template = {"metadata": {"labels": mine}, "spec": spec(**more)}
    return made("Deployment", name, spec={"selector": {"matchLabels": mine}, "template": template})


def replica_set(name="cart-1", of="cart"):
    return made("ReplicaSet", name, owner=owned_by("Deployment", of))


def service(name="cart", address="10.96.0.1", selector=None, **port):
    ports = [{"name": "web", "port": 80, "targetPort": "http", "protocol": "TCP"} | port]
    given = {"clusterIP": address, "clusterIPs": [address], "ports": ports, "selector": selector or {"app": "cart"}}
    return made("Service", name, spec=given)


def endpoint_slice(name, of, *endpoints, port=8080, app_protocol=""):
    listed = [{"addresses": [at], "conditions": conditions} for at, conditions in endpoints]
    ports = [{"name": "web", "port": port, "protocol": "TCP", "appProtocol": app_protocol}]
    labels = {"kubernetes.io/service-name": of}
    return made("EndpointSlice", name, labels=labels, addressType="IPv4", ports=ports, endpoints=listed)


def annotated(document, *, template=False, **annotations):
    """The same object with annotations of ours; for an owner those of its template's pods."""
    place = document["spec"]["template"]["metadata"] if template else document["metadata"]
    place["annotations"] = {f"hedgerow.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
    return document


IN_CART = owned_by("ReplicaSet", "cart-1")


class Cluster:
    """Objects, and the assembly that is told of every change to them."""

    def __init__(self, *documents, networks=()):
        self.assembly = Assembly(TRUST_DOMAIN, networks)
        self.held = {}
        for each in documents:
            self.put(each)

    def put(self, document):
        key = document["kind"], document["metadata"].get("namespace", ""), document["metadata"]["name"]
        self._tell(key, METHODS[document["kind"]][1](document))

    def drop(self, kind, name, namespace="shop"):
        key = kind, "" if kind in ("Namespace", "Node") else namespace, name
        if key in self.held:
            self._tell(key, None)

    def _tell(self, key, facts):
        before = self.held.get(key)
        if before == facts:
            return
        getattr(self.assembly, METHODS[key[0]][0])([Changed(key[1:], before, facts)])
        if facts is None:
            del self.held[key]
        else:
            self.held[key] = facts

    def build(self):
        return self.assembly.build()

    def anew(self):
        """The inventory as an assembly makes it that hears of everything at once, in another order."""
        fresh = Assembly(TRUST_DOMAIN)
        for key, facts in sorted(self.held.items(), reverse=True):
            getattr(fresh, METHODS[key[0]][0])([Changed(key[1:], None, facts)])
        return fresh.build(), fresh.problems


def workloads(inventory):
    return {each.name: str(each.workload) for each in inventory.instances.values()}


# --- owners


def test_a_pod_is_its_deployments_in_whichever_order_they_are_heard_of():
    parts = [deployment(), replica_set(), pod("cart-1-a", "10.0.0.1", IN_CART)]
    for order in itertools.permutations(parts):
        assert workloads(Cluster(*order).build()) == {"cart-1-a": "shop/cart"}


@pytest.mark.parametrize(
    ("missing", "problem"), [("ReplicaSet", "is not there"), ("Deployment", "is not there")], ids=["owner", "its owner"]
)
def test_a_pod_whose_owner_is_not_there_is_nobodys(missing, problem):
    parts = [each for each in (deployment(), replica_set()) if each["kind"] != missing]
    cluster = Cluster(*parts, pod("cart-1-a", "10.0.0.1", IN_CART))
    assert workloads(cluster.build()) == {}
    assert problem in cluster.assembly.problems[0]


@pytest.mark.parametrize(
    ("owner", "labels", "problem"),
    [
        (owned_by("ReplicaSet", "cart-1", "an-earlier-one"), {"app": "cart"}, "an earlier ReplicaSet"),
        (IN_CART, {"app": "intruder"}, "whose selector does not match"),
        (IN_CART, {}, "whose selector does not match"),
    ],
)
def test_a_pod_that_only_says_whose_it_is_is_nobodys(owner, labels, problem):
    cluster = Cluster(deployment(), replica_set(), pod("intruder", "10.0.0.9", owner, labels))
    assert workloads(cluster.build()) == {}
    assert problem in cluster.assembly.problems[0]


def test_a_pod_without_an_owner_stands_for_itself_and_so_does_one_of_a_node():
    static = pod("static", "10.0.0.2", owned_by("Node", "node-1", api="v1"))
    assert workloads(Cluster(pod("alone", "10.0.0.1"), static).build()) == {
        "alone": "shop/alone",
        "static": "shop/static",
    }


def test_an_owner_of_a_kind_that_is_not_followed_is_taken_by_its_name():
    rollout = made("ReplicaSet", "cart-1", owner=owned_by("Rollout", "cart", api="argoproj.io/v1alpha1"))
    inventory = Cluster(rollout, pod("cart-1-a", "10.0.0.1", IN_CART)).build()
    assert workloads(inventory) == {"cart-1-a": "shop/cart"}
    assert inventory.workloads[CART].kind == "Rollout"


def test_what_an_operator_made_is_the_workload_and_not_the_operators_object():
    owned = deployment() | {}
    owned["metadata"]["ownerReferences"] = [owned_by("Shop", "all-of-it", api="example.com/v1")]
    inventory = Cluster(owned, replica_set(), pod("cart-1-a", "10.0.0.1", IN_CART)).build()
    assert workloads(inventory) == {"cart-1-a": "shop/cart"}


def test_a_job_is_its_cronjobs_with_the_schedule():
    template = {"metadata": {"labels": {"app": "nightly"}}, "spec": spec()}
    cron = made("CronJob", "nightly", spec={"schedule": "0 3 * * *", "jobTemplate": {"spec": {"template": template}}})
    job = made("Job", "nightly-1", owner=owned_by("CronJob", "nightly"))
    cluster = Cluster(cron, job, pod("nightly-1-x", "10.0.0.1", owned_by("Job", "nightly-1")))
    found = cluster.build().workloads[WorkloadRef("shop", "nightly")]
    assert (found.kind, found.schedule, found.meshed) == ("CronJob", "0 3 * * *", True)


def test_of_two_owners_with_one_name_the_older_has_it_and_the_others_pods_are_nobodys():
    stateful = made("StatefulSet", "cart", created="2026-02-01T00:00:00Z", spec=deployment()["spec"])
    old = [deployment(), replica_set(), pod("cart-1-a", "10.0.0.1", IN_CART)]
    new = [stateful, pod("cart-0", "10.0.0.2", owned_by("StatefulSet", "cart"))]
    for order in ([*old, *new], [*new, *old]):
        cluster = Cluster(*order)
        inventory = cluster.build()
        assert workloads(inventory) == {"cart-1-a": "shop/cart"}
        assert inventory.workloads[CART].kind == "Deployment"
        assert "another name" in cluster.assembly.problems[0]
        cluster.drop("Pod", "cart-1-a")
        cluster.drop("Deployment", "cart")
        cluster.drop("ReplicaSet", "cart-1")
        assert workloads(cluster.build()) == {"cart-0": "shop/cart"}
        assert not cluster.assembly.problems


def test_an_owner_that_is_only_said_to_be_there_never_takes_a_name_from_one_that_is():
    claimed = pod("early", "10.0.0.9", owned_by("Whatever", "cart", api="x/v1"), created="2020-01-01T00:00:00Z")
    inventory = Cluster(claimed, deployment(), replica_set(), pod("cart-1-a", "10.0.0.1", IN_CART)).build()
    assert workloads(inventory) == {"cart-1-a": "shop/cart"}


# --- workloads and instances


def test_a_workload_has_what_all_its_pods_carry_and_its_template_declares():
    labels = {"app": "cart", "version": "1"}
    cluster = Cluster(
        deployment(ports=(("http", 8080), ("admin", 9000))),
        replica_set(),
        pod("a", "10.0.0.1", IN_CART, labels),
        pod("b", "10.0.0.2", IN_CART, labels | {"version": "2"}),
    )
    found = cluster.build().workloads[CART]
    assert found.labels == (("app", "cart"),)
    assert [(port.number, port.name) for port in found.ports] == [(8080, "http"), (9000, "admin")]


def test_our_own_containers_ports_are_not_the_workloads():
    assert [
        port.number for port in Cluster(pod("a", "10.0.0.1")).build().workloads[WorkloadRef("shop", "a")].ports
    ] == [8080]


def test_while_a_roll_out_changes_the_account_each_pod_has_its_own_identity():
    cluster = Cluster(
        deployment(account="new"),
        replica_set(),
        pod("a", "10.0.0.1", IN_CART, account="old"),
        pod("b", "10.0.0.2", IN_CART, account="new"),
    )
    inventory = cluster.build()
    found = {each.name: inventory.identity_of_instance(each) for each in inventory.instances_of(CART)}
    assert {name: identity.split("/")[-3] for name, identity in found.items()} == {"a": "old", "b": "new"}


def test_a_pod_that_has_no_sidecar_yet_has_no_identity_and_its_workload_does():
    cluster = Cluster(
        deployment(), replica_set(), pod("a", "10.0.0.1", IN_CART, sidecar=False), pod("b", "10.0.0.2", IN_CART)
    )
    inventory = cluster.build()
    assert inventory.workloads[CART].meshed
    assert [bool(inventory.identity_of_instance(each)) for each in inventory.instances_of(CART)] == [False, True]
    cluster.drop("Pod", "b")
    assert not cluster.build().workloads[CART].meshed


@pytest.mark.parametrize(
    ("label", "template", "meshed"),
    [
        (None, {}, False),
        ("enabled", {}, True),
        ("disabled", {}, False),
        ("enabled", {"hedgerow.dev/injection": "disabled"}, False),
        (None, {"hedgerow.dev/injection": "enabled"}, False),
    ],
)
def test_a_workload_without_pods_is_meshed_when_its_pods_would_be(label, template, meshed):
    labels = {"hedgerow.dev/injection": label} if label else {}
    owner = deployment(labels={"app": "cart"} | template, sidecar=False)
    cluster = Cluster(owner, made("Namespace", "shop", labels={"hedgerow.dev/injection": "other"}))
    cluster.put(made("Namespace", "shop", labels=labels))
    assert cluster.build().workloads[CART].meshed is meshed


def test_pods_on_the_nodes_network_are_no_instances():
    inventory = Cluster(deployment(), replica_set(), pod("a", "192.168.0.1", IN_CART, hostNetwork=True)).build()
    assert not inventory.instances
    assert not inventory.workloads[CART].meshed


def test_an_address_that_two_pods_claim_is_nobodys_until_one_of_them_ends():
    cluster = Cluster(pod("a", "10.0.0.1"), pod("b", "10.0.0.1"))
    assert workloads(cluster.build()) == {}
    cluster.put(pod("a", "10.0.0.1", ending=True))
    assert workloads(cluster.build()) == {"b": "shop/b"}
    cluster.drop("Pod", "b")
    inventory = cluster.build()
    assert workloads(inventory) == {"a": "shop/a"}
    assert not inventory.instances["shop/a"].ready, "it is ending"


def test_a_pod_has_all_its_addresses():
    inventory = Cluster(pod("a", "10.0.0.1", also=("fd00::1",))).build()
    assert inventory.instances["shop/a"].addresses == ("10.0.0.1", "fd00::1")
    assert inventory.instance_at("fd00:0::1").name == "a"


# --- services

READY, NOT_READY, ENDING = (
    {"ready": True, "serving": True},
    {"ready": False, "serving": False},
    {"ready": False, "serving": True, "terminating": True},
)


def behind(inventory, name="cart"):
    entry = inventory.services[f"shop/{name}"].ports[0]
    return [(each.address, each.port, each.ready) for each in entry.endpoints]


def test_a_service_leads_where_its_slices_say_and_is_whose_they_are():
    cluster = Cluster(
        deployment(),
        replica_set(),
        pod("a", "10.0.0.1", IN_CART),
        pod("b", "10.0.0.2", IN_CART),
        service(appProtocol="http"),
        endpoint_slice("one", "cart", ("10.0.0.1", READY)),
        endpoint_slice("two", "cart", ("10.0.0.2", NOT_READY), port=9090),
    )
    inventory = cluster.build()
    assert inventory.services["shop/cart"].workload == CART
    assert behind(inventory) == [("10.0.0.1", 8080, True), ("10.0.0.2", 9090, False)]
    spoken = {port.number: port.app_protocol for port in inventory.workloads[CART].ports}
    assert spoken == {8080: "http", 9090: "http"}
    cluster.drop("EndpointSlice", "two")
    inventory = cluster.build()
    assert behind(inventory) == [("10.0.0.1", 8080, True)]
    assert [port.number for port in inventory.workloads[CART].ports] == [8080]


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ([READY, ENDING], [True, False]),
        ([NOT_READY, ENDING], [False, True]),
        ([NOT_READY, NOT_READY], [False, False]),
        ([{}, NOT_READY], [True, False]),
    ],
)
def test_what_is_ending_serves_when_nothing_else_is_ready(conditions, ready):
    listed = [(f"10.0.0.{number}", each) for number, each in enumerate(conditions, 1)]
    inventory = Cluster(service(), endpoint_slice("one", "cart", *listed)).build()
    assert [each[2] for each in behind(inventory)] == ready


def test_a_service_over_two_workloads_or_with_an_address_that_is_nobodys_is_no_ones():
    parts = [deployment(), replica_set(), pod("a", "10.0.0.1", IN_CART), service()]
    other = pod("canary", "10.0.0.2")
    for second in ("10.0.0.2", "192.0.2.7"):
        lead = endpoint_slice("one", "cart", ("10.0.0.1", READY), (second, READY))
        assert Cluster(*parts, other, lead).build().services["shop/cart"].workload is None


def test_a_service_whose_pods_are_all_gone_is_still_its_workloads():
    cluster = Cluster(deployment(), service())
    assert cluster.build().services["shop/cart"].workload == CART
    cluster.drop("Deployment", "cart")
    assert cluster.build().services["shop/cart"].workload is None


def test_external_names_and_services_without_ports_are_left_out_and_headless_ones_have_no_address():
    outside = made(
        "Service", "alias", spec={"type": "ExternalName", "externalName": "x.example.com", "ports": [{"port": 80}]}
    )
    empty = made("Service", "empty", spec={"clusterIP": "None", "clusterIPs": ["None"]})
    inventory = Cluster(outside, empty, service("headless", "None"), deployment()).build()
    assert set(inventory.services) == {"shop/headless"}
    assert inventory.services["shop/headless"].address == ""
    assert inventory.service_named("headless.shop.svc.cluster.local") == CART


@pytest.mark.parametrize(
    "document",
    [
        {"metadata": {"namespace": "shop"}},
        {"metadata": "x", "spec": []},
        made("Pod", "a", spec=spec(ports=()), owner={"controller": True, "kind": "ReplicaSet"}),
        made("Pod", "a", spec={"containers": [{"ports": [{"containerPort": 1, "protocol": "ICMP"}]}]}),
    ],
)
def test_what_is_not_as_the_api_says_is_unreadable(document):
    with pytest.raises(Unreadable):
        objects.pod(document)


# --- change by change

ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", ""])
NAMES = st.sampled_from(["cart", "front", "x"])
OWNERS = st.sampled_from(
    [
        None,
        IN_CART,
        owned_by("ReplicaSet", "cart-1", "other"),
        owned_by("StatefulSet", "cart"),
        owned_by("Rollout", "front", api="argoproj.io/v1"),
        owned_by("Job", "x-1"),
    ]
)
TEMPLATE = {"metadata": {"labels": {"app": "x"}}, "spec": spec()}
DOCUMENTS = st.one_of(
    st.builds(
        pod,
        NAMES,
        ADDRESSES,
        OWNERS,
        st.sampled_from([{"app": "cart"}, {"app": "front"}]),
        ready=st.booleans(),
        ending=st.booleans(),
        sidecar=st.booleans(),
        account=st.sampled_from(["default", "cart"]),
        hostNetwork=st.booleans(),
    ),
    st.builds(deployment, NAMES, st.sampled_from([{"app": "cart"}, {"app": "front"}]), sidecar=st.booleans()),
    st.builds(replica_set, st.sampled_from(["cart-1", "x-1"]), NAMES),
    st.builds(
        lambda name, at: made("StatefulSet", name, created=at, spec=deployment()["spec"]),
        NAMES,
        st.sampled_from(["2025", "2027"]),
    ),
    st.builds(lambda name: made("Job", "x-1", owner=owned_by("CronJob", name)), NAMES),
    st.builds(
        lambda name: made(
            "CronJob", name, spec={"schedule": "@daily", "jobTemplate": {"spec": {"template": TEMPLATE}}}
        ),
        NAMES,
    ),
    st.builds(
        service,
        NAMES,
        st.sampled_from(["10.96.0.1", "10.96.0.2", "None"]).flatmap(st.just),
        st.sampled_from([{"app": "cart"}, {"app": "x"}]),
        appProtocol=st.sampled_from(["", "http", "grpc"]),
    ),
    st.builds(
        endpoint_slice,
        st.sampled_from(["one", "two"]),
        NAMES,
        st.tuples(st.sampled_from(["10.0.0.1", "10.0.0.2", "192.0.2.7"]), st.sampled_from([READY, NOT_READY, ENDING])),
        st.tuples(st.sampled_from(["10.0.0.1", "10.0.0.3"]), st.sampled_from([READY, NOT_READY, ENDING])),
        port=st.sampled_from([80, 8080]),
        app_protocol=st.sampled_from(["", "http"]),
    ),
    st.builds(
        lambda label, said: annotated(made("Namespace", "shop", labels={"hedgerow.dev/injection": label}), **said),
        st.sampled_from(["enabled", "x"]),
        st.sampled_from([{}, {"opaque_ports": "9000"}, {"inspectable_hosts": "*"}, {"inspectable_hosts": "::"}]),
    ),
    st.builds(
        lambda said: annotated(deployment(), template=True, **said),
        st.sampled_from([{"opaque_ports": "8080"}, {"inspect_egress": "api.example.com"}, {"inspect_egress": "!"}]),
    ),
    st.builds(lambda: annotated(pod("cart-1-a", "10.0.0.1", IN_CART), inspect_egress="www.example.com")),
    st.builds(lambda ports: annotated(service(), opaque_ports=ports), st.sampled_from(["80", "x"])),
)
STEPS = st.lists(
    st.one_of(
        DOCUMENTS,
        st.tuples(
            st.sampled_from(sorted(METHODS)),
            st.sampled_from(["cart", "front", "x", "cart-1", "x-1", "one", "two", "shop"]),
        ),
        st.just("build"),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(STEPS)
def test_change_by_change_it_is_what_it_is_at_once_and_what_is_stored_can_be_read(steps):
    cluster = Cluster()
    for step in steps:
        if step == "build":
            cluster.build()
        elif isinstance(step, tuple):
            cluster.drop(*step)
        elif step["kind"] != "Service" or not any(
            key[0] == "Service"
            and key[2] != step["metadata"]["name"]
            and set(facts.addresses) & {step["spec"]["clusterIP"]}
            for key, facts in cluster.held.items()
        ):  # the API server gives no cluster IP twice
            cluster.put(step)
    built = cluster.build()
    anew, problems = cluster.anew()
    assert built == anew
    assert cluster.assembly.problems == problems
    assert inventory_of(built.to_dict(), TRUST_DOMAIN) == built


def test_what_did_not_change_is_the_same_object():
    cluster = Cluster(
        deployment(), replica_set(), *(pod(f"p{n}", f"10.0.0.{n}", IN_CART) for n in range(1, 5)), service()
    )
    before = cluster.build()
    cluster.put(pod("p1", "10.0.0.1", IN_CART, ready=False))
    after = cluster.build()
    assert after != before
    assert after.workloads[CART] is before.workloads[CART]
    assert after.services["shop/cart"] is before.services["shop/cart"]
    assert [after.instances[f"shop/p{n}"] is before.instances[f"shop/p{n}"] for n in range(2, 5)] == [True] * 3


def test_protocols_are_kept_apart():
    dns = service("dns", protocol="UDP")
    assert Cluster(dns).build().services["shop/dns"].ports[0].protocol is Protocol.UDP


def test_what_a_service_says_of_a_nodes_address_is_said_of_no_workload():
    """A pod on its node's network shares that address with everybody there (found by the test above)."""
    cluster = Cluster()
    cluster.put(service("cart", "10.96.0.1", {"app": "cart"}, appProtocol="http"))
    cluster.put(
        pod(
            "cart", "10.0.0.1", None, {"app": "cart"},
            ready=False, ending=False, sidecar=False, account="default", hostNetwork=True,
        )
    )  # fmt: skip
    cluster.build()
    spoken = {"ready": True, "serving": True}
    cluster.put(endpoint_slice("one", "cart", ("10.0.0.1", spoken), port=80, app_protocol=""))
    built = cluster.build()
    assert built == cluster.anew()[0]
    assert {port.app_protocol for workload in built.workloads.values() for port in workload.ports} <= {""}


# --- what annotations say


def protocols(inventory, ref=CART):
    return {port.number: port.app_protocol for port in inventory.workloads[ref].ports}


def namespace(name="shop", **annotations):
    return annotated(made("Namespace", name), **annotations)


RUNNING = (replica_set(), pod("cart-1-a", "10.0.0.1", IN_CART))


def test_ports_that_a_pod_its_service_or_its_namespace_calls_opaque_are_opaque_to_the_mesh():
    before = namespace(opaque_ports="9000-9002")
    cluster = Cluster(before, deployment(), *RUNNING, service(), endpoint_slice("s", "cart", ("10.0.0.1", {})))
    assert protocols(cluster.build()) == {8080: "", 9000: "tcp", 9001: "tcp", 9002: "tcp"}
    cluster.put(annotated(service(), opaque_ports="80"))
    assert protocols(cluster.build())[8080] == "tcp", "behind the service's port 80"
    cluster.put(annotated(deployment(), template=True, opaque_ports="5000"))
    assert protocols(cluster.build()) == {8080: "tcp", 5000: "tcp"}, "the pod's own take the place of its namespace's"
    cluster.put(annotated(deployment(), template=True, opaque_ports=""))
    cluster.put(service())
    assert protocols(cluster.build()) == {8080: ""}
    assert cluster.build() == cluster.anew()[0]


def test_opaque_wins_over_an_app_protocol_and_has_several_names():
    cluster = Cluster(deployment(), *RUNNING, endpoint_slice("s", "cart", ("10.0.0.1", {}), app_protocol="http"))
    cluster.put(service(appProtocol="HTTP"))
    assert protocols(cluster.build()) == {8080: "http"}
    for name in ("opaque", "linkerd.io/opaque", "TCP"):
        cluster.put(service(appProtocol=name))
        assert protocols(cluster.build()) == {8080: "tcp"}
    cluster.put(service(appProtocol="http"))
    cluster.put(annotated(deployment(), template=True, opaque_ports="8080"))
    assert protocols(cluster.build()) == {8080: "tcp"}


def test_another_namespaces_service_says_nothing_of_a_pod():
    cluster = Cluster(deployment(), *RUNNING)
    strange = annotated(service("strange", "10.96.0.9"), opaque_ports="80")
    written = endpoint_slice("s", "strange", ("10.0.0.1", {}))
    for each in (strange, written):
        each["metadata"]["namespace"] = "elsewhere"
        cluster.put(each)
    assert protocols(cluster.build()) == {8080: ""}


def test_a_host_is_inspected_where_the_pod_asks_and_its_namespace_permits():
    asking = annotated(deployment(), template=True, inspect_egress="api.example.com, pay.example.org:8443")
    cluster = Cluster(namespace(), asking, *RUNNING)

    def inspects():
        return [str(one) for one in cluster.build().workloads[CART].inspects]

    assert inspects() == []
    assert "hedgerow.dev/inspectable-hosts=api.example.com" in cluster.assembly.problems[0]
    cluster.put(namespace(inspectable_hosts="*.example.com"))
    assert inspects() == ["api.example.com:443"]
    assert "pay.example.org:8443" in cluster.assembly.problems[0]
    cluster.put(namespace(inspectable_hosts="api.example.com, *"))
    assert inspects() == ["api.example.com:443", "pay.example.org:8443"]
    assert cluster.assembly.problems == ()
    assert inventory_of(cluster.build().to_dict(), TRUST_DOMAIN) == cluster.build()
    cluster.put(namespace(inspectable_hosts="example.com"))
    assert inspects() == [], "a host is not those below it"
    cluster.drop("Namespace", "shop")
    assert inspects() == []


def test_while_pods_are_replaced_what_both_ask_for_is_inspected_and_without_a_sidecar_nothing():
    permitted = namespace(inspectable_hosts="*")
    older = annotated(pod("cart-1-a", "10.0.0.1", IN_CART), inspect_egress="old.example.com")
    cluster = Cluster(permitted, annotated(deployment(), template=True, inspect_egress="new.example.com"), RUNNING[0])
    cluster.put(older)
    found = cluster.build().workloads[CART].inspects
    assert [one.host for one in found] == ["new.example.com", "old.example.com"]
    cluster.put(annotated(pod("cart-1-a", "10.0.0.1", IN_CART, sidecar=False), inspect_egress="old.example.com"))
    assert cluster.build().workloads[CART].inspects == ()


@pytest.mark.parametrize(
    "document",
    [
        annotated(deployment(), template=True, inspect_egress="*.example.com"),
        annotated(deployment(), template=True, opaque_ports="80-70"),
        annotated(deployment(), template=True, opaque_ports="1-60000"),
        annotated(service(), opaque_ports="http"),
        namespace(inspectable_hosts="https://api.example.com"),
        namespace(opaque_ports="1," * 5000),
    ],
)
def test_an_annotation_that_can_not_be_read_says_nothing_and_is_shown(document):
    cluster = Cluster(namespace(), deployment(), *RUNNING, endpoint_slice("s", "cart", ("10.0.0.1", {})), document)
    workload = cluster.build().workloads[CART]
    assert (protocols(cluster.build()), workload.inspects) == ({8080: ""}, ())
    (problem,) = cluster.assembly.problems
    assert "is not followed" in problem
    assert len(problem) < 400


def test_more_hosts_and_ports_than_fit_are_cut_and_shown():
    hosts = ",".join(f"h{number}.example.com" for number in range(64))
    cluster = Cluster(namespace(inspectable_hosts="*", opaque_ports="1000-1255"), RUNNING[0])
    cluster.put(annotated(deployment(), template=True, inspect_egress=hosts))
    cluster.put(annotated(pod("cart-1-a", "10.0.0.1", IN_CART), inspect_egress="z.example.com"))
    cluster.put(service(appProtocol="http"))
    cluster.put(endpoint_slice("s", "cart", ("10.0.0.1", {})))
    built = cluster.build()
    assert len(built.workloads[CART].inspects) == 64
    assert "z.example.com" in cluster.assembly.problems[0]
    assert len([port for port in built.workloads[CART].ports if port.app_protocol]) == 256
    assert inventory_of(built.to_dict(), TRUST_DOMAIN) == built
