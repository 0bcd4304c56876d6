"""AccessOverrides about networks and names outside the mesh, in a real API server and an engine that goes by them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.errors import InvalidRequest
from controller.view import Override
from e2e.apiserver.custom_resources import access_override, path_of, put
from e2e.apiserver.meshes import Mesh, eventually, inventory, running
from e2e.harness.apiserver import ApiServer
from graph.model import Connection, Direction, Mode, Peer
from graph.outside import parse_end
from graph.policy import Reason, decide

FRONT: dict[str, Any] = {"workload": "front"}


def outward(mesh: Mesh, peer: Peer, port: int = 443) -> Reason:
    """Why the sidecar of ``front`` lets something out, or not, once it enforces."""
    me = Peer(mesh.ref("front"), mesh.namespace, "default", "10.9.0.1", verified=True)
    snapshot = replace(mesh.engine.view.snapshots[mesh.ref("front")], outbound_mode=Mode.ENFORCE)
    return decide(snapshot, Connection(Direction.OUTBOUND, me, peer, port), 0.0).reason


async def declared(mesh: Mesh, name: str, **spec: Any) -> Override:
    """Create an AccessOverride and wait until it is in force."""
    await asyncio.to_thread(put, mesh.server, access_override(mesh.namespace, name, **spec))
    status = await mesh.told("AccessOverride", name, "Active")
    return mesh.engine.view.overrides[status["override"]]


async def refused(mesh: Mesh, name: str, **spec: Any) -> str:
    """Create one that the schema lets through and the controller does not; what it is told."""
    await asyncio.to_thread(put, mesh.server, access_override(mesh.namespace, name, **spec))
    (accepted,) = (await mesh.told("AccessOverride", name, "Refused"))["conditions"]
    assert (accepted["type"], accepted["status"]) == ("Accepted", "False")
    return str(accepted["message"])


async def test_what_is_outside_is_opened_closed_and_ended(server: ApiServer, namespace: str, tmp_path: Path) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        named = Peer(address="203.0.113.200", host="api.example.com")
        assert outward(mesh, Peer(address="203.0.113.9")) is Reason.NO_RULE

        network = await declared(mesh, "network", **{"from": FRONT}, to={"cidr": "203.0.113.0/25"}, port=443)
        below = await declared(mesh, "below", **{"from": FRONT}, to={"host": "*.example.com"}, port=443)
        assert (network.destination, below.destination) == (parse_end("-/203.0.113.0/25"), parse_end("-/*.example.com"))
        assert outward(mesh, Peer(address="203.0.113.9")) is Reason.ALLOW_OVERRIDE
        assert outward(mesh, Peer(address="203.0.113.9"), 80) is Reason.NO_RULE
        assert outward(mesh, named) is Reason.ALLOW_OVERRIDE
        assert outward(mesh, Peer(address="203.0.113.200", host="example.com")) is Reason.NO_RULE
        workload = Peer(mesh.ref("cart"), namespace, address="203.0.113.9")
        assert outward(mesh, workload) is Reason.NO_RULE, "an address is no way to a workload"

        await declared(mesh, "closed", effect="deny", **{"from": FRONT}, to={"cidr": "0.0.0.0/0"}, port=None)
        assert outward(mesh, Peer(address="203.0.113.9")) is Reason.DENY_OVERRIDE
        await asyncio.to_thread(server.request, "DELETE", path_of("AccessOverride", namespace, "closed"))
        await eventually(lambda: outward(mesh, Peer(address="203.0.113.9")) is Reason.ALLOW_OVERRIDE)

        status = mesh.found("AccessOverride", "network")["status"]
        assert (status["from"], status["to"]) == (f"{namespace}/front", "-/203.0.113.0/25")
        listed = await asyncio.to_thread(server.kubectl, "get", "hao", "-n", namespace)
        assert "-/*.example.com" in listed

        ending = access_override(namespace, "network", **{"from": FRONT}, to={"cidr": "203.0.113.0/25"}, port=443)
        ending["spec"]["ttl"] = "1s"
        await asyncio.to_thread(put, server, ending)
        await mesh.told("AccessOverride", "network", "Expired")
        assert outward(mesh, Peer(address="203.0.113.9")) is Reason.NO_RULE
        assert outward(mesh, named) is Reason.ALLOW_OVERRIDE


async def test_who_comes_from_a_network_is_let_in_where_no_workload_could_pretend(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:

        def inward(address: str) -> Reason:
            me = Peer(mesh.ref("cart"), namespace, "default", "10.9.0.2", verified=True)
            snapshot = replace(mesh.engine.view.snapshots[mesh.ref("cart")], inbound_mode=Mode.ENFORCE)
            return decide(snapshot, Connection(Direction.INBOUND, Peer(address=address), me, 8080), 0.0).reason

        await declared(mesh, "customers", **{"from": {"cidr": "198.51.100.0/24"}})
        assert inward("198.51.100.7") is Reason.ALLOW_OVERRIDE
        said = await refused(mesh, "everybody", **{"from": {"cidr": "10.0.0.0/8"}})
        assert "spec.from: " in said
        assert "could come without proving who it is" in said
        assert "clusterNetworks" in said

        known = replace(inventory(namespace), networks=("10.9.0.0/16",))
        await mesh.engine.set_inventory(known, "test")
        await mesh.told("AccessOverride", "everybody", "Active")
        assert inward("10.1.2.3") is Reason.ALLOW_OVERRIDE
        assert inward("10.9.0.99") is Reason.NO_RULE
        # and somebody moves in, beside the networks that are known
        moved = {**known.instances}
        key = f"{namespace}/redis-0"
        moved[key] = replace(moved[key], address="10.77.0.1")
        await mesh.engine.set_inventory(replace(known, instances=moved), "test")
        await mesh.told("AccessOverride", "everybody", "Refused")
        assert inward("10.1.2.3") is Reason.NO_RULE
        assert inward("198.51.100.7") is Reason.ALLOW_OVERRIDE


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"to": {"cidr": "203.0.113.7/24"}}, ("spec.to.cidr", "write 203.0.113.0/24, or the address alone")),
        ({"to": {"cidr": "10.9.0.0/24"}}, ("spec.to", "inside the cluster's own networks", "goes by identity")),
        ({"to": {"cidr": "::ffff:203.0.113.0/120"}}, ("spec.to.cidr", "IPv4 in IPv6 form")),
        ({"to": {"cidr": ":::/64"}}, ("spec.to.cidr", "203.0.113.0/24 or 2001:db8::/32")),
        ({"to": {"host": "*.github.io"}}, ("spec.to", "below github.io anybody has names", "*.example.github.io")),
        ({"to": {"host": "*.svc.cluster.local"}}, ("spec.to", "services of the cluster", "name the workloads")),
    ],
)
async def test_what_the_schema_can_not_judge_the_status_tells(
    server: ApiServer, namespace: str, tmp_path: Path, spec: dict[str, Any], words: tuple[str, ...]
) -> None:
    known = replace(inventory(namespace), networks=("10.9.0.0/16",))
    async with running(server, namespace, tmp_path, known=known) as mesh:
        said = await refused(mesh, "one", **{"from": FRONT}, **spec)
        for word in words:
            assert word in said
        assert not mesh.engine.view.overrides


async def test_what_people_ask_of_the_command_becomes_a_resource(
    server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
        await eventually(lambda: mesh.sync.synced)
        for end, field in (
            ("203.0.113.0/24", {"cidr": "203.0.113.0/24"}),
            ("2001:db8::/32", {"cidr": "2001:db8::/32"}),
            ("*.example.com", {"host": "*.example.com"}),
            ("api.example.com", {"host": "api.example.com"}),
            ("192.0.2.7", {"address": "192.0.2.7"}),
        ):
            made = await mesh.author.create_override(_to(mesh, end))
            assert made.destination == parse_end(f"-/{end}")
            found = [each["spec"]["to"] for each in mesh.listed("AccessOverride")]
            assert field in found
        with pytest.raises(InvalidRequest, match="anybody has names"):
            await mesh.author.create_override(_to(mesh, "*.co.uk"))
        assert len(mesh.listed("AccessOverride")) == 5


def _to(mesh: Mesh, end: str) -> Any:
    return replace(mesh.asked(), destination=parse_end(f"-/{end}"), port=443)
