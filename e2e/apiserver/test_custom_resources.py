"""AccessOverrides and SegmentationModes in a real API server, an engine that goes by them, and the author of ours."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from controller.declarations import NetworkPolicyMode
from controller.errors import Conflict, InvalidRequest, NotReady
from controller.kube.client import FIELD_MANAGER
from controller.learner import Gate
from controller.view import OverrideState
from e2e.apiserver.custom_resources import access_override, path_of, put, segmentation_mode
from e2e.apiserver.meshes import WORKLOADS, away, eventually, eventually_async, inventory, running
from e2e.harness.apiserver import ApiServer
from graph.flow import Flow
from graph.model import Direction, InboundTls, Mode, Protocol, Verdict, WorkloadRef


async def test_a_resource_becomes_a_rule_and_its_deletion_ends_it(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        await asyncio.to_thread(put, server, access_override(namespace))
        status = await mesh.told("AccessOverride", "one", "Active")
        (override,) = mesh.active()
        assert override.id == status["override"]
        assert override.id in mesh.engine.view.rules
        assert (override.owner, override.reason, override.port) == ("anna", "release 7", 8080)
        assert status["from"] == "web/front"
        assert [each["type"] for each in status["conditions"]] == ["Accepted"]
        listed = await asyncio.to_thread(server.kubectl, "get", "hao", "-n", namespace)
        assert "web/front" in listed

        await asyncio.to_thread(server.kubectl, "delete", "hao", "one", "-n", namespace)
        await eventually(lambda: override.id not in mesh.engine.view.rules)
        ended = mesh.engine.view.overrides[override.id]
        assert (ended.state(time.time()), ended.revoked_by) == (OverrideState.REVOKED, "kubernetes")


async def test_a_finalizer_holds_no_override_that_was_deleted(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        held = access_override(namespace)
        held["metadata"]["finalizers"] = ["example.com/never"]
        await asyncio.to_thread(put, server, held)
        await mesh.told("AccessOverride", "one", "Active")
        (override,) = mesh.active()
        try:
            await asyncio.to_thread(server.kubectl, "delete", "hao", "one", "-n", namespace, "--wait=false")
            await eventually(lambda: override.id not in mesh.engine.view.rules)
            assert mesh.found("AccessOverride", "one")["metadata"]["deletionTimestamp"]
            assert not mesh.active()
        finally:
            free = '{"metadata": {"finalizers": null}}'
            patch = ("patch", "hao", "one", "-n", namespace, "--type=merge", "-p", free)
            await asyncio.to_thread(server.kubectl, *patch)


async def test_an_end_that_no_status_can_say_is_refused_and_holds_nobody_up(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        ends = {"far": {"ttl": "999999999d"}, "late": {"expiresAt": "9999-12-31T23:59:59-01:00"}}
        ends["early"] = {"expiresAt": "0001-01-01T00:00:00+01:00"}
        for name, end in ends.items():
            await asyncio.to_thread(put, server, access_override(namespace, name, **end))
        await asyncio.to_thread(put, server, access_override(namespace))
        await mesh.told("AccessOverride", "one", "Active")
        for name in ends:
            await mesh.told("AccessOverride", name, "Refused")
        assert [each.reason for each in mesh.active()] == ["release 7"]


async def test_the_end_of_an_override_is_shown_and_the_resource_stays(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        await asyncio.to_thread(put, server, access_override(namespace, ttl="3s"))
        await mesh.told("AccessOverride", "one", "Expired")
        assert not [rule for rule in mesh.engine.view.rules if rule.startswith("override/")]
        document = mesh.found("AccessOverride", "one")
        expired = next(each for each in document["status"]["conditions"] if each["type"] == "Expired")
        assert (expired["status"], expired["reason"]) == ("True", "Ended")
        assert document["spec"] == access_override(namespace, ttl="3s")["spec"]
        # somebody puts its end off
        await asyncio.to_thread(put, server, access_override(namespace, ttl="1h"))
        await mesh.told("AccessOverride", "one", "Active")
        assert len(mesh.active()) == 1


async def test_what_the_engine_refuses_is_told_with_field_and_remedy_and_taken_when_it_can_be(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace, ("front",))) as mesh:
        await asyncio.to_thread(put, server, access_override(namespace))
        far = access_override(namespace, "far", to={"namespace": "web", "workload": "front"})
        await asyncio.to_thread(put, server, far)
        status = await mesh.told("AccessOverride", "one", "Refused")
        (accepted,) = status["conditions"]
        assert (accepted["status"], accepted["reason"]) == ("False", "UnknownWorkload")
        assert f"spec.to: there is no workload {namespace}/cart" in accepted["message"]
        (foreign,) = (await mesh.told("AccessOverride", "far", "Refused"))["conditions"]
        assert foreign["reason"] == "WrongNamespace"
        assert "create it in the namespace web" in foreign["message"]
        assert mesh.active() == []

        await mesh.engine.set_inventory(inventory(namespace), "test")  # the workload has come
        await mesh.told("AccessOverride", "one", "Active")
        assert [each.destination for each in mesh.active()] == [mesh.ref("cart")]
        await mesh.engine.set_inventory(inventory(namespace, ("front",)), "test")
        await mesh.told("AccessOverride", "one", "Refused")
        assert mesh.active() == []


async def test_a_status_says_nothing_new_without_need(server: ApiServer, namespace: str, tmp_path: Path) -> None:
    """No churn: a second look, a restart and a foreign change of labels write nothing."""
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        await asyncio.to_thread(put, server, access_override(namespace, ttl="8h"))
        await asyncio.to_thread(put, server, segmentation_mode(namespace, ingress="audit"))
        await mesh.told("AccessOverride", "one", "Active")
        await mesh.told("SegmentationMode", "default", "Active")
    before = [mesh.found(kind, name) for kind, name in (("AccessOverride", "one"), ("SegmentationMode", "default"))]
    async with running(server, namespace, tmp_path) as mesh:
        await eventually(lambda: mesh.sync.synced)
        await asyncio.to_thread(put, server, access_override(namespace, "two"))
        await mesh.told("AccessOverride", "two", "Active")
        after = [mesh.found(kind, name) for kind, name in (("AccessOverride", "one"), ("SegmentationMode", "default"))]
    assert after == before
    assert "labels" not in after[0]["metadata"]
    for document in after:  # nothing but the status is ever ours: Argo CD and Flux see no drift
        ours = [each for each in document["metadata"]["managedFields"] if each["manager"] == FIELD_MANAGER]
        assert [each.get("subresource") for each in ours] == ["status"]


async def test_modes_of_a_namespace_and_of_a_workload(server: ApiServer, namespace: str, tmp_path: Path) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        gate = {"minConnections": 7, "minAge": "5m"}
        whole = segmentation_mode(namespace, ingress="enforce", inboundTLS="strict", learning=gate)
        await asyncio.to_thread(put, server, whole)
        await asyncio.to_thread(put, server, segmentation_mode(namespace, "cart", workload="cart", ingress="audit"))
        await mesh.told("SegmentationMode", "default", "Active")
        await mesh.told("SegmentationMode", "cart", "Active")
        view = mesh.engine.view
        assert view.modes[mesh.ref("front")].inbound is Mode.ENFORCE
        assert view.modes[mesh.ref("front")].outbound is Mode.LEARN
        assert view.modes[mesh.ref("cart")].inbound is Mode.AUDIT
        assert view.modes[mesh.ref("cart")].inbound_tls is InboundTls.STRICT
        assert view.gates[mesh.ref("cart")].min_connections == 7
        assert view.gates[mesh.ref("cart")].min_seconds == 300
        assert view.modes[WorkloadRef("web", "front")].inbound is Mode.LEARN

        await asyncio.to_thread(put, server, segmentation_mode(namespace, "second", ingress="learn"))
        status = await mesh.told("SegmentationMode", "second", "Shadowed")
        assert "ingress" in status["conditions"][0]["message"]
        assert mesh.engine.view.modes[mesh.ref("front")].inbound is Mode.ENFORCE

        await asyncio.to_thread(put, server, segmentation_mode(namespace, "third", ingress="quarantine"))
        await mesh.told("SegmentationMode", "third", "Active")
        assert {mesh.engine.view.modes[mesh.ref(name)].inbound for name in WORKLOADS} == {Mode.QUARANTINE}

        await asyncio.to_thread(server.kubectl, "delete", "hsm", "--all", "-n", namespace)
        await eventually(lambda: mesh.engine.view.modes[mesh.ref("cart")].inbound is Mode.LEARN)
        assert mesh.engine.view.modes[mesh.ref("cart")].inbound_tls is InboundTls.PERMISSIVE
        assert mesh.ref("cart") not in mesh.engine.view.gates


async def test_what_people_ask_becomes_a_resource_and_is_in_force_when_it_is_answered(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        await eventually(lambda: mesh.sync.synced)
        made = await mesh.author.create_override(mesh.asked(expires_in=3600.0, operations=("GET /cart/{id}",)))
        assert made.id in mesh.engine.view.rules
        (document,) = await asyncio.to_thread(mesh.listed, "AccessOverride")
        assert document["spec"]["ttl"] == "1h"
        assert document["metadata"]["annotations"]["hedgerow.dev/created-by"] == "anna"
        assert document["metadata"]["labels"]["hedgerow.dev/owned-by"] == "controller"

        revoked = await mesh.author.revoke_override(made.id, "bert", "it is over")
        assert made.id not in mesh.engine.view.rules
        assert (revoked.override.revoked_by, revoked.override.revoke_reason) == ("bert", "it is over")
        assert await asyncio.to_thread(mesh.listed, "AccessOverride") == []
        audit = await mesh.engine.audit(1000)  # namespaces of other tests may be on their way out
        assert [(each.actor, each.action) for each in audit.entries if each.subject == made.id] == [
            ("bert", "override.revoke"),
            ("anna", "override.create"),
        ]
        with pytest.raises(InvalidRequest, match="did you mean"):
            await mesh.author.create_override(mesh.asked(destination="carr"))
        with pytest.raises(Conflict, match="revoked already"):
            await mesh.author.revoke_override(made.id, "bert", "twice")


async def test_modes_that_people_set_become_resources_of_ours(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        await eventually(lambda: mesh.sync.synced)
        done = await mesh.author.set_mode(mesh.mode(mesh.ref("cart"), Mode.AUDIT))
        assert done.workloads == (mesh.ref("cart"),)
        done = await mesh.author.set_mode(mesh.mode(namespace, Mode.ENFORCE, network_policy=NetworkPolicyMode.REPORT))
        assert done.workloads == (mesh.ref("front"), mesh.ref("redis"))
        assert done.kept == (mesh.ref("cart"),)
        assert mesh.engine.view.network_policies[namespace] is NetworkPolicyMode.REPORT
        # the same resource is changed, and what is not asked for stays
        await mesh.author.set_mode(mesh.mode(namespace, Mode.LEARN, direction=Direction.OUTBOUND))
        spec = mesh.found("SegmentationMode", "hedgerow-namespace")["spec"]
        assert (spec["ingress"], spec["egress"], spec["networkPolicy"]) == ("enforce", "learn", "report")

        # what somebody else keeps there is not edited; a quarantine is heard beside it
        theirs = segmentation_mode(namespace, "theirs", workload="redis", ingress="enforce", egress="enforce")
        theirs["metadata"]["labels"] = {"kustomize.toolkit.fluxcd.io/name": "shop"}
        unmanaged = segmentation_mode(namespace, "by-hand", workload="front", ingress="enforce", egress="enforce")
        for each in (theirs, unmanaged):
            await asyncio.to_thread(put, server, each)
            await mesh.told("SegmentationMode", each["metadata"]["name"], "Active")
        with pytest.raises(Conflict, match=r"by-hand says otherwise") as refused:
            await mesh.author.set_mode(mesh.mode(mesh.ref("front"), Mode.LEARN))
        assert f"kubectl -n {namespace} edit segmentationmode by-hand" in refused.value.remedy
        with pytest.raises(Conflict, match=r"theirs says otherwise.*Flux"):
            await mesh.author.set_mode(mesh.mode(mesh.ref("redis"), Mode.LEARN))
        await mesh.author.set_mode(mesh.mode(mesh.ref("redis"), Mode.QUARANTINE))
        assert mesh.engine.view.modes[mesh.ref("redis")].inbound is Mode.QUARANTINE
        await mesh.author.set_mode(mesh.mode(mesh.ref("redis"), Mode.ENFORCE))
        assert mesh.engine.view.modes[mesh.ref("redis")].inbound is Mode.ENFORCE
        assert mesh.found("SegmentationMode", "theirs")["spec"] == theirs["spec"]


async def test_an_admission_rule_of_the_cluster_is_told(server: ApiServer, namespace: str, tmp_path: Path) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": namespace},
        "spec": {"hard": {"count/accessoverrides.hedgerow.dev": "0"}},
    }
    await asyncio.to_thread(put, server, quota)

    async def counted() -> bool:
        found = await asyncio.to_thread(server.request, "GET", path_of("ResourceQuota", namespace, "none"))
        return bool(found.get("status", {}).get("hard"))

    await eventually_async(counted)
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        await eventually(lambda: mesh.sync.synced)
        with pytest.raises(InvalidRequest, match=r"the API server refuses.*quota"):
            await mesh.author.create_override(mesh.asked())
        assert mesh.active() == []


async def test_an_api_server_that_is_away_changes_nothing_and_takes_nothing(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        await asyncio.to_thread(put, server, access_override(namespace))
        await mesh.told("AccessOverride", "one", "Active")
    async with AsyncExitStack() as meanwhile:
        await meanwhile.enter_async_context(away(server))
        mesh = await meanwhile.enter_async_context(running(server, namespace, tmp_path))  # one that starts meanwhile
        (override,) = mesh.active()
        assert override.id in mesh.engine.view.rules
        with pytest.raises(NotReady, match="not read yet"):
            await mesh.author.create_override(mesh.asked())
    async with running(server, namespace, tmp_path) as mesh:
        await eventually(lambda: mesh.sync.synced)
        assert [each.id for each in mesh.active()] == [override.id]
        async with away(server):
            with pytest.raises(NotReady, match="was not written, and nothing is changed"):
                await mesh.author.create_override(mesh.asked())
            with pytest.raises(NotReady, match="was not written, and nothing is changed"):
                await mesh.author.revoke_override(override.id, "anna", "over")
            assert [each.id for each in mesh.active()] == [override.id]
        # deleted while nobody watched, perhaps
        await asyncio.to_thread(server.kubectl, "delete", "hao", "one", "-n", namespace)
        await eventually(lambda: not mesh.active())


async def test_what_was_learned_is_shown_and_written_only_when_it_changes(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    gate = Gate(min_connections=3, min_seconds=0.0, quiet_seconds=0.0)
    async with running(server, namespace, tmp_path, known=inventory(namespace), fencing=True, gate=gate) as mesh:

        async def seen(sequence: int) -> None:
            view, now = mesh.engine.view, time.time()
            for reporter, direction in (("front", Direction.OUTBOUND), ("cart", Direction.INBOUND)):
                flow = Flow(
                    source=mesh.ref("front"),
                    destination=mesh.ref("cart"),
                    port=8080,
                    protocol=Protocol.TCP,
                    direction=direction,
                    reporter="",
                    verified=True,
                    verdict=Verdict.ALLOW,
                    pending=Verdict.DENY,
                    reason="learning",
                    source_identity=view.inventory.identity_of(mesh.ref("front")),
                    destination_identity=view.inventory.identity_of(mesh.ref("cart")),
                    connections=5,
                    first_seen=now,
                    last_seen=now,
                )
                (instance,) = view.inventory.instances_of(mesh.ref(reporter))
                await mesh.engine.ingest(instance, "boot", sequence, 0, [flow])

        async def shown() -> dict[str, Any]:
            listed = {each["metadata"]["name"]: each for each in await asyncio.to_thread(mesh.listed, "LearnedPolicy")}
            cart = listed.get("cart", {})
            return cart if cart.get("status", {}).get("active") == 1 else {}

        await seen(1)
        cart = await eventually_async(shown)
        (connection,) = cart["status"]["connections"]
        assert connection["peer"] == f"{namespace}/front"
        assert (connection["direction"], connection["port"], connection["state"]) == ("ingress", 8080, "active")
        assert (connection["connectionsAtLeast"], connection["proved"]) == (1, True)
        assert cart["metadata"]["labels"]["hedgerow.dev/owned-by"] == "controller"

        await seen(2)  # ten connections by now, and a last time that is later
        await seen(3)

        async def grown() -> dict[str, Any]:
            found = await shown()
            return found if found["status"]["connections"][0]["connectionsAtLeast"] == 10 else {}

        cart = await eventually_async(grown)
        await seen(4)
        # somebody writes into it: it is put right, which also shows that a round has passed
        await asyncio.to_thread(server.kubectl, "delete", "hlp", "redis", "-n", namespace)

        async def back() -> bool:
            return "redis" in {
                each["metadata"]["name"] for each in await asyncio.to_thread(mesh.listed, "LearnedPolicy")
            }

        await eventually_async(back)
        again = await shown()
        assert again["metadata"]["resourceVersion"] == cart["metadata"]["resourceVersion"]
        await mesh.engine.set_inventory(inventory(namespace, ("front", "cart")), "test")

        async def left() -> bool:
            return "redis" not in {
                each["metadata"]["name"] for each in await asyncio.to_thread(mesh.listed, "LearnedPolicy")
            }

        await eventually_async(left)
