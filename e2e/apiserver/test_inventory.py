"""The inventory of a real API server: workloads by their owners, services by their slices, and what follows changes."""

from __future__ import annotations

from typing import Any

from controller.inventory import Inventory, inventory_of
from controller.kube.client import Client
from controller.kube.kinds import (
    CRON_JOBS,
    DEPLOYMENTS,
    JOBS,
    NAMESPACES,
    PODS,
    REPLICA_SETS,
    SERVICES,
    STATEFUL_SETS,
    Resource,
)
from e2e.apiserver.simulated import (
    TRUST_DOMAIN,
    Kubelet,
    deploy,
    deployment,
    endpoint_slice,
    label_namespace,
    pod_spec,
    service,
    watching,
)
from e2e.harness.apiserver import ApiServer
from graph.model import WorkloadRef


def names(inventory: Inventory, namespace: str) -> dict[str, str]:
    """The workload of each instance in a namespace."""
    return {
        each.name: each.workload.name for each in inventory.instances.values() if each.workload.namespace == namespace
    }


def endpoints(inventory: Inventory, name: str, port: int = 80) -> list[tuple[str, int, str, bool]]:
    found = inventory.services.get(name)
    if found is None:
        return []
    where = inventory.resolve(found.address, port)
    return sorted((each.address, each.port, str(where.workload_of(each)), each.ready) for each in where.endpoints)


async def test_a_deployment_becomes_a_workload_and_its_pods_instances(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str
) -> None:
    await label_namespace(client, namespace)
    await deploy(client, namespace, deployment("cart", 2), service("cart", {"app": "cart"}))
    pods = await kubelet.run_all(namespace, "app=cart", 2)
    cart = WorkloadRef(namespace, "cart")
    async with watching(apiserver.kubeconfig) as watcher:
        known = await watcher.until(
            lambda now: len(endpoints(now, f"{namespace}/cart")) == 2, "the service's endpoints"
        )
    assert {each.name: each.address for each in known.instances_of(cart)} == pods
    workload = known.workloads[cart]
    assert (workload.kind, workload.service_account, workload.meshed) == ("Deployment", "default", True)
    assert dict(workload.labels)["app"] == "cart"
    assert [(port.number, port.name, port.app_protocol) for port in workload.ports] == [(8080, "http", "http")]
    found = known.resolve(known.services[f"{namespace}/cart"].address, 80)
    assert found.workload == cart
    assert found.meshed
    assert sorted((each.address, each.port, each.identity) for each in found.endpoints) == sorted(
        (address, 8080, f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/default/wl/cart") for address in pods.values()
    )
    assert dict(known.namespaces[namespace].labels)["hedgerow.dev/injection"] == "enabled"
    assert inventory_of(known.to_dict(), TRUST_DOMAIN) == known, "what is stored can be read again"


async def test_a_service_may_select_several_workloads_and_each_pod_has_its_own_port(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str
) -> None:
    both = {"tier": "cart"}
    await deploy(
        client,
        namespace,
        deployment("stable", labels=both | {"app": "stable"}, port=8080),
        deployment("canary", labels=both | {"app": "canary"}, port=9090),
        service("cart", both, target="http"),
    )
    stable = next(iter((await kubelet.run_all(namespace, "app=stable", 1)).values()))
    canary = next(iter((await kubelet.run_all(namespace, "app=canary", 1)).values()))
    async with watching(apiserver.kubeconfig) as watcher:
        known = await watcher.until(lambda now: len(endpoints(now, f"{namespace}/cart")) == 2)
    assert known.services[f"{namespace}/cart"].workload is None
    assert endpoints(known, f"{namespace}/cart") == sorted(
        [(stable, 8080, f"{namespace}/stable", True), (canary, 9090, f"{namespace}/canary", True)]
    )


async def test_what_has_no_pod_behind_it_is_an_address_and_nobody(
    apiserver: ApiServer, client: Client, namespace: str
) -> None:
    outside = service("partner", None) | {}
    written = endpoint_slice("partner-1", "partner", 8443, "192.0.2.7", "192.0.2.8", app_protocol="https")
    named = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "alias"}}
    await deploy(client, namespace, outside, written)
    await client.create(
        SERVICES, named | {"spec": {"type": "ExternalName", "externalName": "x.example.com"}}, namespace
    )
    async with watching(apiserver.kubeconfig) as watcher:
        known = await watcher.until(lambda now: len(endpoints(now, f"{namespace}/partner")) == 2)
    assert endpoints(known, f"{namespace}/partner") == [
        ("192.0.2.7", 8443, "None", True),
        ("192.0.2.8", 8443, "None", True),
    ]
    assert f"{namespace}/alias" not in known.services


async def test_readiness_ending_and_scaling_are_followed(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str
) -> None:
    name, cart = f"{namespace}/cart", WorkloadRef(namespace, "cart")
    await deploy(client, namespace, deployment("cart", 2), service("cart", {"app": "cart"}))
    async with watching(apiserver.kubeconfig) as watcher:
        pods = await kubelet.run_all(namespace, "app=cart", 2)
        first, second = pods
        await watcher.until(lambda now: [each[3] for each in endpoints(now, name)] == [True, True])
        await kubelet.run(namespace, first, ready=False, address=pods[first])
        known = await watcher.until(
            lambda now: {each[0]: each[3] for each in endpoints(now, name)} == {pods[first]: False, pods[second]: True}
        )
        assert {each.name: each.ready for each in known.instances_of(cart)} == {first: False, second: True}
        await client.patch(DEPLOYMENTS, "cart", {"spec": {"replicas": 0}}, namespace)
        await kubelet.end_all(namespace, "app=cart")
        known = await watcher.until(lambda now: not now.instances_of(cart) and not endpoints(now, name))
        assert cart in known.workloads, "a Deployment with no pods now is still somebody"
        assert known.services[name].workload == cart
        await client.delete(DEPLOYMENTS, "cart", namespace)
        await watcher.until(lambda now: cart not in now.workloads)


async def test_every_kind_of_owner_is_followed_to_its_top(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str
) -> None:
    def template(name: str, **spec: Any) -> dict[str, Any]:
        return {"metadata": {"labels": {"app": name}}, "spec": pod_spec(**spec)}

    def selector(name: str) -> dict[str, Any]:
        return {"matchLabels": {"app": name}}

    stateful = {"serviceName": "redis", "selector": selector("redis"), "template": template("redis")}
    job = {"template": template("migrate", restartPolicy="Never")}
    nightly = {"schedule": "0 3 * * *", "suspend": True, "jobTemplate": {"spec": job}}
    lone = {"replicas": 1, "selector": selector("lone"), "template": template("lone")}
    made = (
        (STATEFUL_SETS, "redis", {"spec": stateful}),
        (JOBS, "migrate", {"spec": job}),
        (CRON_JOBS, "nightly", {"spec": nightly}),
        (REPLICA_SETS, "lone", {"spec": lone}),
        (PODS, "single", {"spec": pod_spec()}),
    )
    for resource, name, body in made:
        head = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name}}
        await client.create(resource, head | body, namespace)
    scheduled = await client.get(CRON_JOBS, "nightly", namespace)
    reference = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "name": "nightly",
        "uid": scheduled["metadata"]["uid"],
        "controller": True,
    }
    head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "nightly-1", "ownerReferences": [reference]}}
    await client.create(JOBS, head | {"spec": {"template": template("nightly", restartPolicy="Never")}}, namespace)
    wanted = {"redis": 1, "migrate": 1, "nightly": 1, "lone": 1}
    for app, count in wanted.items():
        await kubelet.run_all(namespace, f"app={app}", count)
    await kubelet.run(namespace, "single")
    async with watching(apiserver.kubeconfig) as watcher:
        known = await watcher.until(lambda now: len(names(now, namespace)) == 5)
    assert sorted(names(known, namespace).values()) == ["lone", "migrate", "nightly", "redis", "single"]
    found = {
        ref.name: (each.kind, each.schedule) for ref, each in known.workloads.items() if ref.namespace == namespace
    }
    assert found == {
        "redis": ("StatefulSet", ""),
        "migrate": ("Job", ""),
        "nightly": ("CronJob", "0 3 * * *"),
        "lone": ("ReplicaSet", ""),
        "single": ("Pod", ""),
    }


async def test_a_pod_that_only_says_whose_it_is_is_nobodys(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str
) -> None:
    """Who may create pods can write any owner into them."""
    await deploy(client, namespace, deployment("cart"))
    await kubelet.run_all(namespace, "app=cart", 1)
    owner = (await client.every(REPLICA_SETS, namespace))[0]["metadata"]
    reference = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": owner["name"],
        "uid": owner["uid"],
        "controller": True,
    }
    body = {"apiVersion": "v1", "kind": "Pod", "spec": pod_spec()}
    async with watching(apiserver.kubeconfig) as watcher:
        await watcher.until(lambda now: list(names(now, namespace).values()) == ["cart"])
        wrong = reference | {"uid": "00000000-0000-0000-0000-000000000000"}
        for name, said in (("other-labels", reference), ("other-uid", wrong)):
            await client.create(
                PODS, body | {"metadata": {"name": name, "labels": {"app": name}, "ownerReferences": [said]}}, namespace
            )
            if name == "other-uid":
                await kubelet.run(namespace, name)
        await client.create(PODS, body | {"metadata": {"name": "honest"}}, namespace)
        await kubelet.run(namespace, "honest")
        known = await watcher.until(lambda now: "honest" in names(now, namespace))
        assert "other-uid" not in names(known, namespace)
        assert {"cart", "honest"} >= set(names(known, namespace).values())


async def test_the_younger_of_two_owners_with_one_name_gets_nobody_in(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str
) -> None:
    await deploy(client, namespace, deployment("cart"))
    older = await kubelet.run_all(namespace, "app=cart", 1)
    async with watching(apiserver.kubeconfig) as watcher:
        await watcher.until(lambda now: names(now, namespace) == dict.fromkeys(older, "cart"))
        await client.create(
            PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "cart"}, "spec": pod_spec()}, namespace
        )
        await kubelet.run(namespace, "cart")
        await deploy(client, namespace, deployment("other"))
        await kubelet.run_all(namespace, "app=other", 1)
        known = await watcher.until(lambda now: "other" in names(now, namespace).values())
        assert "cart" not in names(known, namespace)
        assert known.workloads[WorkloadRef(namespace, "cart")].kind == "Deployment"
        assert any("cart" in each and "another name" in each for each in watcher.following.figures().problems)
        await client.delete(DEPLOYMENTS, "cart", namespace)
        await kubelet.end_all(namespace, "app=cart")
        await watcher.until(lambda now: names(now, namespace).get("cart") == "cart")


async def test_pods_on_their_nodes_network_have_no_address_of_their_own(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str
) -> None:
    await deploy(client, namespace, deployment("agent", hostNetwork=True, sidecar=False), deployment("app"))
    await kubelet.run_all(namespace, "app=agent", 1)
    await kubelet.run_all(namespace, "app=app", 1)
    async with watching(apiserver.kubeconfig) as watcher:
        known = await watcher.until(lambda now: "app" in names(now, namespace).values())
    assert list(names(known, namespace).values()) == ["app"]
    assert not known.workloads[WorkloadRef(namespace, "agent")].meshed


async def test_each_address_leads_where_its_family_does_and_those_from_outside_to_nobody(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str
) -> None:
    given = service("cart", {"app": "cart"}, type="LoadBalancer", externalIPs=["203.0.113.7"])
    await deploy(client, namespace, deployment("cart"), given)
    [name] = await kubelet.wait_for(namespace, "app=cart", 1)
    four, six = kubelet.address(), "fd00:10:244::17"
    await kubelet.run(namespace, name, address=four, also=(six,))
    # this cluster's services have addresses of one family; what is behind them may have both
    by_hand = endpoint_slice("cart-six", "cart", 8080, six)
    await deploy(client, namespace, by_hand | {"addressType": "IPv6"})
    balanced = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}
    await client.patch(SERVICES, "cart", balanced, namespace, subresource="status")
    written = next(each for each in await client.every(SERVICES, namespace) if each["metadata"]["name"] == "cart")
    assert written["status"]["loadBalancer"]["ingress"][0]["ip"] == "203.0.113.9"
    assert written["spec"]["externalIPs"] == ["203.0.113.7"]
    cart, key = WorkloadRef(namespace, "cart"), f"{namespace}/cart"

    def complete(now: Inventory) -> bool:
        entries = now.services[key].ports if key in now.services else ()
        return any({each.address for each in port.endpoints or ()} == {four, six} for port in entries)

    async with watching(apiserver.kubeconfig) as watcher:
        known = await watcher.until(complete, "both slices of the service")
    assert known.services[key].addresses == tuple(written["spec"]["clusterIPs"])
    assert endpoints(known, key) == [(four, 8080, str(cart), True)], "of the family of the address that was asked for"
    for address in (four, six):
        found = known.resolve(address, 8080)
        assert [(each.instance, each.address) for each in found.endpoints] == [(name, address)]
        assert known.attributed(WorkloadRef.external(address)) == cart
    for address in ("203.0.113.7", "203.0.113.9"):
        assert known.resolve(address, 80).workload is None
        assert not known.resolve(address, 80).endpoints
        assert known.attributed(WorkloadRef.external(address)).is_external


async def test_the_clusters_networks_are_known(apiserver: ApiServer, kubelet: Kubelet) -> None:
    async with watching(apiserver.kubeconfig) as watcher:
        known = await watcher.until(lambda now: len(now.networks) > 2)
    assert any(network.startswith("10.96.") for network in known.networks), "of the ServiceCIDR"
    assert {"10.244.0.0/16", "192.168.77.1/32"} <= set(known.networks), "of the node"
    async with watching(apiserver.kubeconfig, cluster_networks=("10.1.0.0/16",)) as watcher:
        known = await watcher.until(lambda now: now.networks)
    assert known.networks == ("10.1.0.0/16",)


async def test_a_deleted_namespace_goes(apiserver: ApiServer, client: Client) -> None:
    name = apiserver.create_namespace()
    async with watching(apiserver.kubeconfig) as watcher:
        await watcher.until(lambda now: name in now.namespaces)
        await client.delete(NAMESPACES, name)
        await watcher.until(lambda now: name not in now.namespaces)


async def test_opaque_ports_of_a_namespace_a_service_and_a_pod_reach_the_workload(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str
) -> None:
    cart = WorkloadRef(namespace, "cart")
    mine = deployment("cart")
    await deploy(client, namespace, mine, service("cart", {"app": "cart"}))
    await kubelet.run_all(namespace, "app=cart", 1)

    def said(now: Inventory) -> dict[int, str]:
        workload = now.workloads.get(cart)
        return {port.number: port.app_protocol for port in workload.ports} if workload is not None else {}

    async with watching(apiserver.kubeconfig) as watcher:
        await watcher.until(lambda now: said(now) == {8080: "http"})
        await annotate(client, NAMESPACES, namespace, "", **{"opaque-ports": "9000-9001"})
        await watcher.until(lambda now: said(now) == {8080: "http", 9000: "tcp", 9001: "tcp"})
        await annotate(client, SERVICES, "cart", namespace, **{"opaque-ports": "80"})
        await watcher.until(lambda now: said(now) == {8080: "tcp", 9000: "tcp", 9001: "tcp"}, "the service's port 80")
        template = {"metadata": {"annotations": {"hedgerow.dev/opaque-ports": "5000"}}}
        await client.patch(DEPLOYMENTS, "cart", {"spec": {"template": template}}, namespace)
        await watcher.until(lambda now: said(now) == {5000: "tcp", 8080: "tcp"}, "the pod's own in their place")
        protocol = service("cart", {"app": "cart"})
        protocol["spec"]["ports"][0]["appProtocol"] = "linkerd.io/opaque"
        await annotate(client, SERVICES, "cart", namespace, **{"opaque-ports": None})
        await watcher.until(lambda now: said(now) == {5000: "tcp", 8080: "http"})
        await client.patch(SERVICES, "cart", protocol, namespace)
        await watcher.until(lambda now: said(now) == {5000: "tcp", 8080: "tcp"}, "Linkerd's name for it")


async def test_hosts_are_inspected_where_the_namespace_permits_what_its_pods_ask_for(
    apiserver: ApiServer, client: Client, kubelet: Kubelet, namespace: str
) -> None:
    await label_namespace(client, namespace)
    cart = WorkloadRef(namespace, "cart")
    mine = deployment("cart")
    asked = {"hedgerow.dev/inspect-egress": "api.example.com, pay.example.org:8443"}
    mine["spec"]["template"]["metadata"]["annotations"] = asked
    await deploy(client, namespace, mine)
    await kubelet.run_all(namespace, "app=cart", 1)
    async with watching(apiserver.kubeconfig) as watcher:
        known = await watcher.until(lambda now: cart in now.workloads and now.instances_of(cart))
        assert known.workloads[cart].inspects == ()
        (problem,) = [each for each in watcher.following.figures().problems if str(cart) in each]
        assert "inspectable-hosts=api.example.com" in problem
        await annotate(client, NAMESPACES, namespace, "", **{"inspectable-hosts": "*.example.com"})
        known = await watcher.until(lambda now: now.workloads[cart].inspects)
        assert [str(one) for one in known.workloads[cart].inspects] == ["api.example.com:443"]
        assert inventory_of(known.to_dict(), TRUST_DOMAIN) == known
        await annotate(client, NAMESPACES, namespace, "", **{"inspectable-hosts": None})
        await watcher.until(lambda now: not now.workloads[cart].inspects)


async def annotate(client: Client, resource: Resource, name: str, namespace: str, **values: str | None) -> None:
    """Set annotations of ours, or take them away."""
    annotations = {f"hedgerow.dev/{key}": value for key, value in values.items()}
    await client.patch(resource, name, {"metadata": {"annotations": annotations}}, namespace)
