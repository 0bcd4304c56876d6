"""A namespace whose writes the API server refuses, or fails to judge: nobody else's resources, statuses and
NetworkPolicies wait for it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.apiserver.custom_resources import access_override, path_of, put, segmentation_mode
from e2e.apiserver.meshes import Mesh, eventually, eventually_async, inventory, running
from e2e.apiserver.network_policies import OURS, applied, close, message, policies, said
from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError
from graph.model import Verdict

_GROUPS = {"networkpolicies": "networking.k8s.io", "learnedpolicies/status": "hedgerow.dev"}
#: What refuses a dry run of what it stands before; the binding narrows it to one namespace.
_WRITES = {"apiVersions": ["*"], "operations": ["CREATE", "UPDATE"]}


class Barrier:
    """Something at the API server that keeps resources of one namespace from being written."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.namespace = namespace
        self._server = server
        self._made: list[str] = []

    def _apply(self, kind: str, document: dict[str, Any]) -> None:
        name = document["metadata"]["name"]
        self._server.kubectl("apply", "-f", "-", stdin=json.dumps(document))
        self._made.append(f"{kind}/{name}")

    def _rule(self, *resources: str) -> dict[str, Any]:
        groups = sorted({_GROUPS.get(each, "hedgerow.dev") for each in resources})
        return {**_WRITES, "apiGroups": groups, "resources": list(resources)}

    def break_down(self, *resources: str) -> None:
        """An admission webhook that nobody answers for: the API server says 500."""
        hook = {
            "name": "broken.hedgerow.test",
            "clientConfig": {"url": "https://127.0.0.1:9/"},
            "rules": [self._rule(*resources)],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}},
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 1,
        }
        kind = "ValidatingWebhookConfiguration"
        self._apply(kind, _object(kind, f"{self.namespace}-broken", webhooks=[hook]))

    def refuse(self, *resources: str) -> None:
        """A rule that says no."""
        name = f"{self.namespace}-refused"
        spec = {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [self._rule(*resources)]},
            "validations": [{"expression": "false", "message": "not in this namespace"}],
        }
        self._apply("ValidatingAdmissionPolicy", _object("ValidatingAdmissionPolicy", name, spec=spec))
        bound = {
            "policyName": name,
            "validationActions": ["Deny"],
            "matchResources": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.namespace}},
            },
        }
        kind = "ValidatingAdmissionPolicyBinding"
        self._apply(kind, _object(kind, name, spec=bound))

    def stands(self, document: dict[str, Any], path: str) -> bool:
        """Whether the API server goes by it yet."""
        try:
            self._server.request(
                "PATCH",
                f"{path}?fieldManager=test&dryRun=All&force=true",
                document,
                content_type="application/apply-patch+yaml",
            )
        except ApiError as error:
            return any(word in str(error) for word in ("not in this namespace", "broken.hedgerow.test"))
        return False

    def lift(self) -> None:
        for each in self._made:
            self._server.kubectl("delete", each, "--ignore-not-found")
        self._made.clear()


def _object(kind: str, name: str, **parts: Any) -> dict[str, Any]:
    return {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, **parts}


@pytest.fixture
def barrier(server: ApiServer) -> Iterator[Barrier]:
    """Around a fresh namespace whose name comes before all others."""
    name = server.create_namespace(name=f"a-{secrets.token_hex(4)}")
    made = Barrier(server, name)
    yield made
    made.lift()
    server.delete_namespace(name)


async def _stands(barrier: Barrier, *documents: dict[str, Any]) -> None:
    for document in documents:
        meta = document["metadata"]
        path = path_of(document["kind"], meta["namespace"], meta["name"])
        path += "/status" if "status" in document else ""

        async def stands(document: dict[str, Any] = document, path: str = path) -> bool:
            return await asyncio.to_thread(barrier.stands, document, path)

        await eventually_async(stands)


def _policy(namespace: str) -> dict[str, Any]:
    meta = {"name": "probe", "namespace": namespace}
    spec = {"podSelector": {}, "policyTypes": ["Ingress"]}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


async def _close_both(mesh: Mesh, other: str) -> None:
    """Ask for both to be closed, the broken one first."""
    wanted = segmentation_mode(other, ingress="enforce", egress="enforce", networkPolicy="apply")
    await asyncio.to_thread(put, mesh.server, wanted)
    await close(mesh)


async def _condition(mesh: Mesh, namespace: str) -> dict[str, Any]:
    path = path_of("SegmentationMode", namespace, "default")
    status = (await asyncio.to_thread(mesh.server.request, "GET", path)).get("status") or {}
    found = (each for each in status.get("conditions") or () if each["type"] == "NetworkPolicies")
    return dict(next(found, {}))


async def test_a_namespace_whose_policies_can_not_be_written_keeps_no_other_waiting(
    server: ApiServer, namespace: str, barrier: Barrier, tmp_path: Path
) -> None:
    bad = barrier.namespace
    barrier.break_down("networkpolicies")
    await _stands(barrier, _policy(bad))
    known = inventory(namespace, also=bad)
    async with running(server, namespace, tmp_path, known=known, fencing=True) as mesh:
        await _close_both(mesh, bad)
        await applied(mesh)

        async def told() -> dict[str, Any]:
            found = await _condition(mesh, bad)
            return found if found.get("reason") == "Failed" else {}

        condition = await eventually_async(told)
        assert condition["status"] == "False"
        assert "broken.hedgerow.test" in condition["message"]
        (problem,) = mesh.keeper.problems.shown()
        assert problem.startswith(f"namespace {bad}: NetworkPolicies: "), problem
        assert "broken.hedgerow.test" in problem
        # the others are repaired
        await asyncio.to_thread(server.request, "DELETE", path_of("NetworkPolicy", namespace, "hedgerow-cart"))
        await applied(mesh)
        # changed
        await mesh.deleted("AccessOverride", "front-cart")
        await eventually(lambda: len(mesh.engine.view.fences[namespace].sets) == 2)
        # and rolled back
        await mesh.engine.pin_network_policies(namespace, "previous", "anna", "cart is needed")
        assert "anna went back to revision 1" in message(await said(mesh, "RolledBack"))
        assert mesh.keeper.problems.kinds() == {"network-policies": 1}
        assert [each.failures for each in mesh.supervision.parts] == [0, 0, 0], "no part was begun again for it"
        # it is tried again, without anybody doing anything else
        await asyncio.to_thread(barrier.lift)

        async def there() -> bool:
            listed = await asyncio.to_thread(server.request, "GET", path_of("NetworkPolicy", bad))
            return {each["metadata"]["name"] for each in listed["items"]} == OURS

        await eventually_async(there, 180)
        await eventually(lambda: mesh.keeper.problems.shown() == (), 180)


@pytest.mark.parametrize("how", ["refuse", "break_down"])
async def test_a_namespace_whose_statuses_can_not_be_written_has_its_policies_and_keeps_no_other_waiting(
    server: ApiServer, namespace: str, barrier: Barrier, tmp_path: Path, how: str
) -> None:
    bad = barrier.namespace
    resources = [f"{each}/status" for each in ("segmentationmodes", "accessoverrides", "learnedpolicies")]
    await asyncio.to_thread(getattr(barrier, how), *resources)
    known = inventory(namespace, also=bad)
    async with running(server, namespace, tmp_path, fencing=False, known=known) as mesh:
        probe = segmentation_mode(bad, "probe", workload="none", ingress="enforce")
        await asyncio.to_thread(put, server, probe)
        written = {**probe, "status": {"state": "Rejected"}}
        del written["spec"]
        await _stands(barrier, written)
        await mesh.deleted("SegmentationMode", "probe")
    (tmp_path / "again").mkdir()
    async with running(server, namespace, tmp_path / "again", known=known, fencing=True) as mesh:
        await asyncio.to_thread(put, server, access_override(bad, "first"))
        await _close_both(mesh, bad)
        assert set(await applied(mesh)) == OURS

        async def there() -> bool:
            listed = await asyncio.to_thread(server.request, "GET", path_of("NetworkPolicy", bad))
            return {each["metadata"]["name"] for each in listed["items"]} == OURS

        await eventually_async(there)
        # what is said there is in force, whether or not it can be told
        assert any(each.destination.namespace == bad for each in mesh.engine.view.overrides.values())
        await mesh.told("AccessOverride", "front-cart", "Active")
        made = access_override(namespace, "later", effect="deny")
        await asyncio.to_thread(put, server, made)
        await mesh.told("AccessOverride", "later", "Active")
        assert any(each.effect is Verdict.DENY for each in mesh.active())
        assert await _condition(mesh, bad) == {}
        assert [each.failures for each in mesh.supervision.parts] == [0, 0, 0], "no part was begun again for it"
        if how == "break_down":  # one that is refused is told of in the log
            (problem,) = mesh.keeper.problems.shown()
            assert problem.startswith(f"namespace {bad}: NetworkPolicies: its SegmentationMode can not be told"), (
                problem
            )
        assert set(await policies(mesh)) == OURS
