"""Three evaluators on random meshes: the intermediate form, ``decide()``, and one written from the Kubernetes
specification alone, which has never seen the compiler."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from controller.compiler import Limit, compile_policy, inventory_files, network_policy_files
from controller.compiler.manifests import namespace_manifest, pod_manifest
from graph.model import (
    Connection,
    Direction,
    Instance,
    Mode,
    Origin,
    Peer,
    PortRange,
    Protocol,
    Rule,
    Selector,
    Verdict,
    Workload,
)
from graph.policy import decide
from tests.controller.compiler.meshes import learned, meshes, override, ref, shop
from tests.networkpolicy.evaluator import Cluster

NOW = 100.0
PORTS = (1, 53, 79, 80, 81, 443, 444, 15012, 15013, 15019, 15020, 15021, 15022, 65535)
FRONT, CART = Selector.of(ref("shop/front")), Selector.of(ref("shop/cart"))
VERSIONS = ("1.29", kubernetes_validate.latest_version())

random_meshes = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def placed(policy):
    """One instance at an address of its own for every workload, as pods have."""
    instances = tuple(
        Instance(f"{workload.ref.name}-0", workload.ref, f"10.0.0.{number}")
        for number, workload in enumerate(policy.workloads, 1)
    )
    return replace(policy, instances=instances)


def cluster(policy, policies, extra=()):
    by_ref = {workload.ref: workload for workload in policy.workloads}
    pods = [pod_manifest(by_ref[instance.workload], instance) for instance in policy.instances]
    spaces = {w.ref.namespace for w in policy.workloads} | {each["metadata"]["namespace"] for each in extra}
    return Cluster([*(namespace_manifest(name) for name in sorted(spaces)), *pods, *extra, *policies])


def told(policy, snapshots, source, destination, port, protocol, operation=""):
    """What both sidecars say together; an end without one says nothing."""
    ends = {}
    for instance in (source, destination):
        owner = next(workload for workload in policy.workloads if workload.ref == instance.workload)
        ends[instance] = (
            owner,
            Peer(
                owner.ref,
                owner.ref.namespace,
                owner.service_account if owner.meshed else "",
                instance.address,
                owner.meshed,
            ),
        )
    (sender, mine), (receiver, theirs) = ends[source], ends[destination]
    verdicts = []
    if sender.has_sidecar:
        connection = Connection(Direction.OUTBOUND, mine, theirs, port, protocol, operation)
        verdicts.append(decide(closed(snapshots[sender.ref]), connection, NOW).allowed)
    if receiver.has_sidecar:
        seen = mine if sender.meshed else Peer(address=source.address)
        if sender.account_identity:
            seen = replace(mine, workload=None)
        connection = Connection(Direction.INBOUND, seen, theirs, port, protocol, operation)
        verdicts.append(decide(closed(snapshots[receiver.ref]), connection, NOW).allowed)
    return all(verdicts)


def closed(snapshot):
    modes = (snapshot.inbound_mode, snapshot.outbound_mode)
    inbound, outbound = (mode if mode is Mode.QUARANTINE else Mode.ENFORCE for mode in modes)
    return replace(snapshot, inbound_mode=inbound, outbound_mode=outbound)


@random_meshes
@given(meshes())
def test_the_proof_holds_on_every_mesh(policy):
    """Also on those with shared addresses, loopback and twins: whatever is wider has a name."""
    proof = compile_policy(policy, NOW).proof
    assert proof.equal == (not proof.wider)
    assert {finding.limit for finding in proof.inexpressible if finding.widens} <= set(Limit)
    assert bool(proof.wider) == any(finding.widens for finding in proof.inexpressible)


@random_meshes
@given(meshes())
def test_every_policy_is_what_kubernetes_takes(policy):
    for manifest in compile_policy(policy, NOW).network_policies:
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)


@random_meshes
@given(meshes())
def test_compiling_is_deterministic(policy):
    turned = replace(policy, rules=policy.rules[::-1], workloads=policy.workloads[::-1])
    assert compile_policy(policy, NOW) == compile_policy(turned, NOW)


@random_meshes
@given(meshes())
def test_the_cluster_never_blocks_what_the_sidecars_allow(policy):
    """And where the proof says equal, it allows nothing more between workloads with sidecars."""
    policy = placed(policy)
    compiled = compile_policy(policy, NOW)
    judge = cluster(policy, compiled.network_policies)
    operations = {operation for rule in policy.rules for operation in rule.operations} | {"", "OTHER"}
    meshed = {workload.ref for workload in policy.workloads if workload.has_sidecar}
    proving = {workload.ref for workload in policy.workloads if workload.meshed}
    ways_in = [{**each, "spec": {**each["spec"], "policyTypes": ["Ingress"]}} for each in compiled.network_policies]
    ingress = cluster(policy, ways_in)  # for sources of another mesh: their own end is not what is judged here
    for source, destination in product(policy.instances, repeat=2):
        if source.workload not in proving or destination.workload not in meshed or source == destination:
            continue
        pods = (f"{source.workload.namespace}/{source.name}", f"{destination.workload.namespace}/{destination.name}")
        for port, protocol in product(PORTS, (Protocol.TCP, Protocol.UDP)):
            network = (judge if source.workload in meshed else ingress).pod_to_pod(*pods, port, protocol)
            sidecars = [
                told(policy, compiled.snapshots, source, destination, port, protocol, operation)
                for operation in sorted(operations)
            ]
            assert network or not any(sidecars), (pods, port, protocol)
            if compiled.proof.equal and source.workload in meshed:
                assert network == all(sidecars) == any(sidecars), (pods, port, protocol)


@random_meshes
@given(meshes())
def test_what_comes_from_outside_is_judged_alike(policy):
    policy = placed(policy)
    compiled = compile_policy(policy, NOW)
    judge = cluster(policy, compiled.network_policies)
    for instance in policy.instances:
        owner: Workload = next(workload for workload in policy.workloads if workload.ref == instance.workload)
        if not owner.has_sidecar:
            continue
        pod, snapshot = f"{owner.ref.namespace}/{instance.name}", closed(compiled.snapshots[owner.ref])
        me = Peer(owner.ref, owner.ref.namespace, owner.service_account, instance.address, verified=True)
        for address, port in product(("192.0.2.7", "192.0.2.8", "10.0.0.99", "198.51.100.1", "fd00::9"), PORTS):
            hosts = ("", "api.example.com", "b.a.example.com", "example.com", "badexample.com")
            outward = judge.pod_to_address(pod, address, port)
            for network, ends in (
                (judge.address_to_pod(address, pod, port), (Direction.INBOUND, Peer(address=address), me)),
                *((outward, (Direction.OUTBOUND, me, Peer(address=address, host=host))) for host in hosts),
            ):
                allowed = decide(snapshot, Connection(*ends, port), NOW).allowed
                assert network or not allowed, (pod, ends[0], address, port)
                if compiled.proof.equal:
                    assert network == allowed, (pod, ends[0], address, port)


def test_a_shop_as_written_to_a_folder(tmp_path):
    """Every learned pair is open, every other pair is closed, DNS and the controller are always open."""
    deny = override(Verdict.DENY, FRONT, CART, 9090)
    policy = shop(learned("shop/front", "shop/cart", 9090), deny)
    for folder, files in (
        ("networkpolicies", network_policy_files(compile_policy(policy, NOW).network_policies)),
        ("inventory", inventory_files(policy.workloads, policy.instances)),
    ):
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text, encoding="utf-8")
            for manifest in yaml.safe_load_all(text):
                kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
    judge = Cluster.read(tmp_path)
    open_pairs = {
        ("shop/front-1", "shop/cart-1", 8080),
        ("shop/front-2", "shop/cart-1", 8080),
        ("shop/cart-1", "shop/db-1", 5432),
    }
    ports = [(port, "TCP") for port in (1, 5432, 8079, 8080, 8081, 9090, 65535)]
    assert {(s, d, port) for s, d, port, _ in judge.allowed(ports)} == open_pairs


def test_dns_and_the_controller_are_always_open():
    policy = shop()
    extra = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"containers": [{"name": "app", "image": "placeholder"}]},
            "status": {"podIP": address},
        }
        for name, namespace, labels, address in (
            ("coredns-1", "kube-system", {"k8s-app": "kube-dns"}, "10.0.9.1"),
            ("other-1", "kube-system", {"k8s-app": "other"}, "10.0.9.2"),
            ("ctl-1", "hedgerow-system", {"app.kubernetes.io/name": "hedgerow-controller"}, "10.0.9.3"),
        )
    ]
    judge = cluster(policy, compile_policy(policy, NOW).network_policies, extra)
    for pod in ("shop/front-1", "shop/cart-1"):
        assert judge.pod_to_pod(pod, "kube-system/coredns-1", 53, "UDP")
        assert judge.pod_to_pod(pod, "kube-system/coredns-1", 53, "TCP")
        assert not judge.pod_to_pod(pod, "kube-system/coredns-1", 80, "TCP")
        assert not judge.pod_to_pod(pod, "kube-system/other-1", 53, "UDP")
        assert judge.pod_to_pod(pod, "hedgerow-system/ctl-1", 15012, "TCP")
        assert judge.pod_to_pod(pod, "hedgerow-system/ctl-1", 15013, "TCP")
        assert not judge.pod_to_pod(pod, "hedgerow-system/ctl-1", 8080, "TCP")
        assert judge.address_to_pod("192.0.2.1", pod, 15021, "TCP")


RULES = {
    name: Rule(f"{origin}/{effect}", FRONT, CART, (PortRange.single(9),), effect=effect, origin=origin)
    for name, (origin, effect) in {
        "override deny": (Origin.OVERRIDE, Verdict.DENY),
        "override allow": (Origin.OVERRIDE, Verdict.ALLOW),
        "static deny": (Origin.STATIC, Verdict.DENY),
        "static allow": (Origin.STATIC, Verdict.ALLOW),
        "learned": (Origin.LEARNED, Verdict.ALLOW),
    }.items()
}


def expected(names):
    """The precedence of the design, in plain words."""
    if "override deny" in names:
        return False
    if "override allow" in names:
        return True
    if "static deny" in names:
        return False
    return "static allow" in names or "learned" in names


@pytest.mark.parametrize("names", [names for size in range(6) for names in combinations(RULES, size)])
def test_precedence_is_the_same_everywhere(names):
    policy = shop(*(RULES[name] for name in names))
    compiled = compile_policy(policy, NOW)
    front, cart = (
        next(each for each in policy.instances if each.workload == ref(name)) for name in ("shop/front", "shop/cart")
    )
    assert compiled.proof.equal
    assert told(policy, compiled.snapshots, front, cart, 9, Protocol.TCP) is expected(names)
    judge = cluster(policy, compiled.network_policies)
    assert judge.pod_to_pod("shop/front-1", "shop/cart-1", 9) is expected(names)
