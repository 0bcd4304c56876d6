"""NetworkPolicies applied to a real API server: what they allow (by the independent evaluator), in which order they
come and go, and that nothing of others is touched."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from controller.kube.client import FIELD_MANAGER
from controller.kube.network_policy_plan import DEFAULT_DENY
from controller.kube.settings import KubernetesSettings
from e2e.apiserver.custom_resources import path_of, put, segmentation_mode
from e2e.apiserver.meshes import away, eventually, eventually_async, inventory, running
from e2e.apiserver.network_policies import (
    OURS,
    applied,
    check_needs,
    close,
    judged,
    kubectl,
    message,
    policies,
    said,
    witnessed,
)
from e2e.harness.apiserver import ApiServer
from tests.controller.running import running as controller_running


async def test_a_closed_namespace_gets_policies_in_an_order_that_cuts_nothing_it_needs(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    known = inventory(namespace)
    async with (
        witnessed(server, namespace) as seen,
        running(server, namespace, tmp_path, known=known, fencing=True) as mesh,
    ):
        await close(mesh)
        found = await applied(mesh)
        cluster = judged(namespace, list(found.values()))
        front, cart, redis, intruder = (f"{namespace}/{name}" for name in ("front-0", "cart-0", "redis-0", "intruder"))
        assert cluster.pod_to_pod(front, cart, 8080)
        for source, destination, port in (
            (front, cart, 8081),
            (redis, cart, 8080),
            (cart, front, 8080),
            (intruder, cart, 8080),
            ("web/front-0", cart, 8080),
            (front, redis, 6379),
            (redis, intruder, 80),
        ):
            assert not cluster.pod_to_pod(source, destination, port), (source, destination, port)
        assert not cluster.pod_to_address(redis, "192.0.2.1", 443)
        assert not cluster.pod_to_address(intruder, "192.0.2.1", 443)
        for each in found.values():
            assert each["metadata"]["labels"]["hedgerow.dev/owned-by"] == "controller"
            assert {one["manager"] for one in each["metadata"]["managedFields"]} == {FIELD_MANAGER}
        status = await said(mesh, "Applied")
        assert status["networkPolicies"]["applied"] == 4
        assert status["networkPolicies"]["revision"] == 1
        coming = len(seen.steps)
        assert seen.steps[coming - 1] == ("ADDED", DEFAULT_DENY)

        # and the way out is the reverse
        report = segmentation_mode(namespace, ingress="enforce", egress="enforce", networkPolicy="report")
        await asyncio.to_thread(put, server, report)
        status = await said(mesh, "Reported")
        assert set(status["networkPolicies"]["create"]) == OURS
        assert await policies(mesh) == {}
        await eventually(lambda: len(seen.steps) >= coming + 4)
        assert seen.steps[coming] == ("DELETED", DEFAULT_DENY)
    for state in seen.states:
        check_needs(namespace, state)


async def test_only_what_is_enforced_is_closed(server: ApiServer, namespace: str, tmp_path: Path) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace), fencing=True) as mesh:
        learning = segmentation_mode(namespace, "redis", workload="redis", egress="learn")
        await asyncio.to_thread(put, server, learning)
        await close(mesh)
        found = await applied(mesh)
        assert found["hedgerow-redis"]["spec"]["policyTypes"] == ["Ingress"]
        assert found[DEFAULT_DENY]["spec"]["policyTypes"] == ["Ingress"]
        cluster = judged(namespace, list(found.values()))
        assert cluster.pod_to_address(f"{namespace}/redis-0", "192.0.2.1", 443)
        assert not cluster.pod_to_address(f"{namespace}/cart-0", "192.0.2.1", 443)
        assert (await said(mesh, "Applied"))["networkPolicies"]["open"] == [
            f"egress of {namespace}/redis: its mode is learn"
        ]
        await asyncio.to_thread(server.kubectl, "delete", "hsm", "redis", "-n", namespace)

        async def closed() -> bool:
            return (await policies(mesh))["hedgerow-redis"]["spec"]["policyTypes"] == ["Ingress", "Egress"]

        await eventually_async(closed)


async def test_what_somebody_edits_or_deletes_comes_back_and_is_audited(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace), fencing=True) as mesh:
        await close(mesh)
        before = await applied(mesh)
        opened = json.dumps({"spec": {"ingress": [{}]}})
        await kubectl(mesh, "patch", "netpol", "hedgerow-cart", "--type=merge", "-p", opened)

        async def repaired() -> bool:
            found = await policies(mesh)
            return {name: each["spec"] for name, each in found.items()} == {
                name: each["spec"] for name, each in before.items()
            }

        await eventually_async(repaired)
        await asyncio.to_thread(server.kubectl, "delete", "netpol", "--all", "-n", namespace)
        await eventually_async(repaired)
        await kubectl(mesh, "label", "netpol", "hedgerow-cart", "hedgerow.dev/owned-by-")

        async def labelled() -> bool:
            return "hedgerow.dev/owned-by" in (await policies(mesh))["hedgerow-cart"]["metadata"]["labels"]

        await eventually_async(labelled)
        entries = (await mesh.engine.audit(50)).entries
        repairs = [json.loads(each.detail) for each in entries if each.action == "network-policies.repair"]
        assert any(each["edited"] == ["hedgerow-cart"] and each["by"] for each in repairs)
        assert any(set(each["deleted"]) == OURS for each in repairs)


async def test_a_policy_of_somebody_else_is_never_touched(server: ApiServer, namespace: str, tmp_path: Path) -> None:
    theirs = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": "hedgerow-cart",
            "namespace": namespace,
            "labels": {"hedgerow.dev/owned-by": "controller"},
        },
        "spec": {"podSelector": {"matchLabels": {"app": "cart"}}, "ingress": [{"ports": [{"port": 9}]}]},
    }
    await asyncio.to_thread(put, server, theirs)
    wide = {**theirs, "metadata": {"name": "wide", "namespace": namespace}}
    wide["spec"] = {"podSelector": {}, "ingress": [{}], "policyTypes": ["Ingress"]}
    await asyncio.to_thread(put, server, wide)
    async with running(server, namespace, tmp_path, known=inventory(namespace), fencing=True) as mesh:
        untouched = await policies(mesh)
        await close(mesh)
        status = await said(mesh, "Conflict")
        assert "hedgerow-cart is there and not ours" in message(status)
        assert await policies(mesh) == untouched, "nothing may be half applied"
        await asyncio.to_thread(server.kubectl, "delete", "netpol", "hedgerow-cart", "-n", namespace)
        found = await applied(mesh, OURS | {"wide"})
        assert found["wide"] == untouched["wide"]
        foreign = (await said(mesh, "Applied"))["networkPolicies"]["foreign"]
        assert foreign == [f"wide adds ingress of {namespace}/cart, {namespace}/front, {namespace}/redis"]
        off = segmentation_mode(namespace, ingress="enforce", egress="enforce", networkPolicy="off")
        await asyncio.to_thread(put, server, off)
        await said(mesh, "Off")
        assert await policies(mesh) == {"wide": untouched["wide"]}


async def test_another_field_manager_is_a_conflict_and_not_a_fight(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace), fencing=True) as mesh:
        await close(mesh)
        await applied(mesh)
        rival = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "hedgerow-cart", "namespace": namespace},
            "spec": {"podSelector": {"matchLabels": {"app": "cart"}}, "ingress": [{}], "policyTypes": ["Ingress"]},
        }
        await asyncio.to_thread(
            server.kubectl, "apply", "--server-side", "--force-conflicts", "--field-manager=gitops", "-f", "-",
            stdin=json.dumps(rival),
        )  # fmt: skip
        status = await said(mesh, "Conflict")
        assert "gitops applies hedgerow-cart, too" in message(status)
        assert (await policies(mesh))["hedgerow-cart"]["spec"]["ingress"] == [{}]


async def test_going_back_to_the_set_before_and_on_again(server: ApiServer, namespace: str, tmp_path: Path) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace), fencing=True) as mesh:
        await close(mesh)
        first = await applied(mesh)
        await asyncio.to_thread(server.kubectl, "delete", "hao", "front-cart", "-n", namespace)
        front, cart = f"{namespace}/front-0", f"{namespace}/cart-0"

        async def open_now() -> bool:
            return judged(namespace, list((await policies(mesh)).values())).pod_to_pod(front, cart, 8080)

        async def shut_now() -> bool:
            return not await open_now()

        await eventually_async(shut_now)
        await eventually(lambda: len(mesh.engine.view.fences[namespace].sets) == 2)
        await mesh.engine.pin_network_policies(namespace, "previous", "anna", "cart is needed")
        status = await said(mesh, "RolledBack")
        assert status["networkPolicies"]["pinned"] == 1
        assert {name: each["spec"] for name, each in (await policies(mesh)).items()} == {
            name: each["spec"] for name, each in first.items()
        }
        assert "anna went back to revision 1" in message(status)
    async with running(server, namespace, tmp_path, fencing=True) as mesh:  # it stays so over a restart
        await eventually(lambda: mesh.keeper.synced)
        assert await open_now()
        # a quarantine is heard all the same
        stop = segmentation_mode(namespace, "stop", workload="cart", ingress="quarantine")
        await asyncio.to_thread(put, server, stop)
        await eventually_async(shut_now)
        await kubectl(mesh, "delete", "hsm", "stop")
        await eventually_async(open_now)
        await mesh.engine.pin_network_policies(namespace, "newest", "anna", "no longer")
        await eventually_async(shut_now)
        await said(mesh, "Applied")


async def test_the_policy_of_a_workload_that_has_gone_goes_later(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace), fencing=True) as mesh:
        await close(mesh)
        await applied(mesh)
        await mesh.engine.set_inventory(inventory(namespace, ("front", "cart")), "test")
        await applied(mesh, OURS - {"hedgerow-redis"})


async def test_an_api_server_that_was_away_finds_the_set_as_it_was(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace), fencing=True) as mesh:
        await close(mesh)
        before = await applied(mesh)
        async with away(server):
            pass
        await asyncio.to_thread(server.kubectl, "delete", "netpol", "hedgerow-cart", "-n", namespace)
        after = await applied(mesh)
        assert {name: each["spec"] for name, each in after.items()} == {
            name: each["spec"] for name, each in before.items()
        }


async def test_people_see_what_would_change(server: ApiServer, namespace: str, tmp_path: Path) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace), fencing=True) as mesh:
        await close(mesh, networkPolicy=None)
        await mesh.told("SegmentationMode", "default", "Active")
        await eventually(lambda: mesh.keeper.synced)

        async def reported() -> list[dict[str, Any]]:
            (found,) = await mesh.keeper.report(namespace)
            return [found] if len(found["create"]) == 4 else []

        (found,) = await eventually_async(reported)
        assert (found["mode"], found["conflicts"], found["delete"]) == ("report", [], [])
        assert await policies(mesh) == {}


async def test_who_changes_a_policy_again_and_again_is_named_and_let_be(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace), fencing=True) as mesh:
        await close(mesh)
        await applied(mesh)
        opened = json.dumps({"spec": {"ingress": [{}]}})

        async def contested() -> bool:
            if (await policies(mesh))["hedgerow-cart"]["spec"]["ingress"] != [{}]:
                await kubectl(mesh, "patch", "netpol", "hedgerow-cart", "--type=merge", "-p", opened)
            document = await asyncio.to_thread(mesh.found, "SegmentationMode", "default")
            return any(each["reason"] == "Contested" for each in document["status"]["conditions"])

        await eventually_async(contested)
        assert "hedgerow-cart was put back 5 times" in message(await said(mesh, "Contested"))


async def test_people_ask_a_whole_controller_by_command(server: ApiServer, namespace: str, tmp_path: Path) -> None:
    """The web API and the command in front of it, with a controller that follows the cluster."""
    kubernetes = KubernetesSettings(kubeconfig=server.kubeconfig)
    async with controller_running(tmp_path, inventory=None, kubernetes=kubernetes) as run:
        engine = run.controller.engine
        await eventually(lambda: namespace in engine.view.inventory.namespaces and engine.view.declared)
        environment = {
            "HEDGEROW_SERVER": run.url,
            "HEDGEROW_TOKEN_FILE": str(run.settings.state_dir / "operator.token"),
        }

        async def hedgerow(*arguments: str) -> tuple[int, str]:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "hedgerow", *arguments,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, **environment},
            )  # fmt: skip
            out, _ = await asyncio.wait_for(process.communicate(), 240)
            assert process.returncode is not None
            return process.returncode, out.decode()

        code, out = await hedgerow("mode", "set", namespace, "enforce", "--network-policy", "report", "--reason", "try")
        assert (code, "enforce, NetworkPolicies report: no workload yet" in out) == (0, True), out
        spec = server.request("GET", path_of("SegmentationMode", namespace, "hedgerow-namespace"))["spec"]
        assert (spec["ingress"], spec["networkPolicy"], spec["reason"]) == ("enforce", "report", "try")
        code, out = await hedgerow("allow", f"{namespace}/front", f"{namespace}/cart:8080", "--reason", "try")
        assert (code, "there is no workload" in out) == (1, True), out
        await eventually(lambda: run.controller.cluster is not None and run.controller.cluster.network_policies.synced)
        code, out = await hedgerow("policy", "diff", "--network-policies", "-n", namespace)
        assert (code, out.splitlines()[0]) == (0, f"{namespace}: report"), out
        code, out = await hedgerow("rollback", "network-policies", namespace, "--reason", "try")
        assert (code, f"nothing was applied to {namespace}" in out) == (1, True), out
        code, out = await hedgerow("rollback", "network-policies", namespace, "--to", "report", "--reason", "try")
        assert code == 0, out
