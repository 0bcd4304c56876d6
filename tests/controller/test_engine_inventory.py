"""A new inventory: what it changes of policies, what it leaves, and what comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.errors import InvalidRequest, InventoryError
from controller.inventory import Inventory, read_inventory
from controller.learner import EdgeState
from graph.flow import EdgeKey
from graph.model import Connection, Direction, Mode, Peer, Transport, WorkloadRef
from graph.policy import decide
from tests.controller.decisions import assert_as_if_compiled_whole, override, versions
from tests.controller.mesh import (
    CART,
    FRONT,
    HOST,
    INVENTORY,
    KEY,
    LEGACY,
    OUTSIDE,
    REDIS,
    Clock,
    edited,
    flow,
    instance,
    inventory,
    learned,
    running,
    without,
)


def reduced() -> Inventory:
    """The inventory without the workload cart and all that belongs to it."""
    text = INVENTORY[: INVENTORY.index("services:")]
    lines = [line for line in text.splitlines() if "cart" not in line]
    return read_inventory("\n".join(lines).encode(), inventory().trust_domain)


async def test_the_same_inventory_again_changes_nothing(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        before = engine.view
        assert await engine.set_inventory(inventory(), "test") == before.generation
        assert engine.view is before
    async with running(tmp_path, clock, with_inventory=False) as engine:
        assert engine.view.inventory == inventory()
        assert engine.view.inventory.revision == before.inventory.revision
        assert await engine.set_inventory(inventory(), "test") == before.generation


async def test_a_replica_that_goes_changes_the_directory_and_no_policy(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        before = engine.view
        async with engine.subscribe() as changes:
            await engine.set_inventory(without("cart-1"), "test")
            change = await anext(changes)
        assert change.inventory
        assert CART in change.nodes
        assert engine.view.nodes[CART].instances == 1
        assert engine.view.inventory.revision == before.inventory.revision + 1
        assert engine.view.inventory.resolve("10.1.0.1", 80).version == engine.view.inventory.revision
        assert versions(engine.view) == versions(before)


async def test_a_quarantine_is_in_the_peers_policies_too_and_ends_there(tmp_path: Path, clock: Clock) -> None:
    """The sidecar of a workload that was broken into does not hold itself to it."""
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        before = versions(engine.view)
        await engine.set_mode(FRONT, Direction.OUTBOUND, Mode.QUARANTINE, None, "ann", "it was broken into")
        assert f"learned/{KEY}" not in {rule.id for rule in engine.view.snapshots[CART].rules}
        assert f"learned/{KEY}" in engine.view.rules  # nothing is forgotten
        assert versions(engine.view)[REDIS] == before[REDIS]
        assert_as_if_compiled_whole(engine.view, clock.now)
        await engine.set_mode(FRONT, Direction.OUTBOUND, Mode.ENFORCE, None, "ann", "it is well again")
        assert f"learned/{KEY}" in {rule.id for rule in engine.view.snapshots[CART].rules}
        await engine.set_mode(CART, Direction.OUTBOUND, Mode.QUARANTINE, None, "ann", "the other way")
        assert f"learned/{KEY}" in {rule.id for rule in engine.view.snapshots[FRONT].rules}
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_a_workload_that_goes_takes_its_policy_and_comes_back_with_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        await engine.set_mode(CART, None, Mode.ENFORCE, None, "ann", "x")
        before = engine.view
        async with engine.subscribe() as changes:
            await engine.set_inventory(reduced(), "test")
            change = await anext(changes)
        assert change.removed_nodes == (CART,)
        assert change.removed_edges == (KEY,)
        assert CART not in engine.view.snapshots
        assert CART not in engine.view.modes
        assert engine.view.rules == {}
        assert KEY in engine.view.edges  # what was learned is kept
        assert versions(engine.view)[FRONT] == versions(before)[FRONT] + 1
        assert_as_if_compiled_whole(engine.view, clock.now)
        await engine.set_inventory(inventory(), "test")
        assert engine.view.modes[CART].inbound is Mode.ENFORCE
        assert list(engine.view.rules) == [f"learned/{KEY}"]
        assert versions(engine.view)[CART] >= versions(before)[CART]
        assert versions(engine.view)[FRONT] == versions(before)[FRONT] + 2
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_addresses_of_an_unmeshed_source_follow_its_instances(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await override(engine, source=LEGACY, destination=CART, port=8080, expires_in=None)
        before = versions(engine.view)[CART]
        moved = INVENTORY.replace("10.0.0.5", "10.0.0.77")
        await engine.set_inventory(read_inventory(moved.encode(), inventory().trust_domain), "test")
        assert versions(engine.view)[CART] == before + 1
        assert any(rule.source.cidr == "10.0.0.77/32" for rule in engine.view.snapshots[CART].rules)
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_a_rule_about_an_address_follows_the_instance_that_takes_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await override(engine, source=FRONT, destination=OUTSIDE, port=443, expires_in=None)
        moved = INVENTORY.replace("10.0.0.4", OUTSIDE.name)
        await engine.set_inventory(read_inventory(moved.encode(), inventory().trust_domain), "test")
        assert_as_if_compiled_whole(engine.view, clock.now)
        await engine.set_inventory(inventory(), "test")
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_a_new_dns_server_reaches_everybody(tmp_path: Path, clock: Clock) -> None:
    dns = (
        "  - {namespace: kube-system, name: coredns, labels: {k8s-app: kube-dns}, ports: [{port: 53, protocol: UDP}]}\n"
    )
    text = INVENTORY.replace("workloads:\n", "workloads:\n" + dns).replace(
        "  - {name: data}\n", "  - {name: data}\n  - {name: kube-system}\n"
    )
    async with running(tmp_path, clock) as engine:
        before = versions(engine.view)
        await engine.set_inventory(read_inventory(text.encode(), inventory().trust_domain), "test")
        after = versions(engine.view)
        assert all(after[ref] == before[ref] + 1 for ref in before)
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_an_inventory_of_another_trust_domain_is_refused(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        with pytest.raises(InventoryError, match="trust_domain"):
            await engine.set_inventory(read_inventory(INVENTORY.encode(), "other.test"), "test")


async def test_the_clusters_networks_close_every_hosts_way_into_the_cluster(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        made = await override(engine, destination=HOST, port=443)
        await engine.set_inventory(edited(("kind: Inventory", "kind: Inventory\nclusterNetworks: [10.0.0.0/8]")), "t")
        await engine.tick()
        rules = [rule for rule in engine.view.snapshots[FRONT].rules if rule.id.startswith(made.id)]
        assert len(rules) == 9
        assert not any(rule.destination.matches(Peer(address="10.1.2.3", host="api.example.com")) for rule in rules)
        assert any(rule.destination.matches(Peer(address="192.0.2.7", host="api.example.com")) for rule in rules)
        assert_as_if_compiled_whole(engine.view, clock.now)


async def test_another_meshs_workload_has_no_policy_and_its_peers_know_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        await learned(engine, clock)
        await engine.set_inventory(edited(("serviceAccount: front,", "serviceAccount: front, transport: mtls,")), "t")
        await engine.tick()
        assert set(engine.view.snapshots) == {CART, REDIS}
        account = Peer(None, "shop", "front", "10.0.0.1", verified=True)
        coming = Connection(Direction.INBOUND, account, Peer(CART, "shop", "default", "10.0.0.2", True), 8080)
        assert decide(engine.view.snapshots[CART], coming, clock.now).rule_id.startswith(f"learned/{KEY}")
        assert_as_if_compiled_whole(engine.view, clock.now)
        with pytest.raises(InvalidRequest, match="another mesh's proxy"):
            await engine.create_join_token(FRONT, "front-0", 60.0, "ann")
        with pytest.raises(InvalidRequest, match="has a sidecar"):
            await override(engine, destination=WorkloadRef.external("192.0.2.7"))


async def test_what_is_spoken_on_a_port_is_part_of_the_policy(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, clock) as engine:
        before = versions(engine.view)
        assert engine.view.snapshots[CART].protocols == ((8080, "http"),)
        await engine.set_inventory(edited(("appProtocol: http", "appProtocol: grpc")), "test")
        await engine.tick()
        assert engine.view.snapshots[CART].protocols == ((8080, "grpc"),)
        assert versions(engine.view) == before | {CART: before[CART] + 1}
        await engine.set_inventory(edited((", appProtocol: http}]}", "}], opaquePorts: [8080, 9000]}")), "test")
        await engine.tick()
        assert engine.view.snapshots[CART].protocols == ((8080, "tcp"), (9000, "tcp"))


async def test_what_another_meshs_workload_is_called_by_is_learned_from_its_callers_alone(
    tmp_path: Path, clock: Clock
) -> None:
    async with running(tmp_path, clock, with_inventory=False) as engine:
        await engine.set_inventory(edited(("kind: StatefulSet,", "kind: StatefulSet, transport: mtls,")), "test")
        out = flow(FRONT, REDIS, 6379, direction=Direction.OUTBOUND)
        await engine.ingest(instance("front-0"), "boot", 1, 0, [out])
        clock.now += 60
        await engine.tick()
        assert engine.view.edges[EdgeKey(FRONT, REDIS, 6379)].state is EdgeState.ACTIVE
        assert engine.view.nodes[REDIS].transport is Transport.MTLS
        back = flow(REDIS, FRONT, 8080, source_identity=engine.view.inventory.identity_of(REDIS))
        await engine.ingest(instance("front-0"), "boot", 2, 0, [back])
        clock.now += 60
        await engine.tick()
        assert engine.view.edges[EdgeKey(REDIS, FRONT, 8080)].state is EdgeState.PROPOSED, "one end alone, an account"
