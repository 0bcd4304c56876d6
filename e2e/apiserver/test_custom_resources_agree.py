"""Resources in a real API server and what is in force agree in the end, whatever is done on either side."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from controller.errors import Conflict, InvalidRequest
from e2e.apiserver.custom_resources import access_override, put, segmentation_mode
from e2e.apiserver.meshes import WORKLOADS, Mesh, away, eventually, inventory, running
from e2e.harness.apiserver import ApiServer
from graph.model import Mode, Verdict

#: What the author may answer when the other side was faster.
REFUSALS = (Conflict, InvalidRequest, LookupError)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
async def test_store_and_resources_agree_whatever_is_done_on_either_side(
    server: ApiServer, namespace: str, tmp_path: Path, seed: int
) -> None:
    """Random changes by kubectl and by the author, with API servers and controllers that go away in between."""
    dice = random.Random(seed)
    for _ in range(3):
        async with running(server, namespace, tmp_path, known=inventory(namespace)) as mesh:
            await eventually(lambda mesh=mesh: mesh.sync.synced)
            for _ in range(10):
                await _something(mesh, dice)
            if dice.random() < 0.5:
                async with away(server):
                    pass
                await _something(mesh, dice)
            await asyncio.wait_for(_agree(mesh), 60)
        for _ in range(3):  # nobody listens
            await _by_kubectl(mesh, dice)
    async with running(server, namespace, tmp_path) as mesh:
        await eventually(lambda: mesh.sync.synced)
        await asyncio.wait_for(_agree(mesh), 60)


async def _something(mesh: Mesh, dice: random.Random) -> None:
    if dice.random() < 0.5:
        await _by_kubectl(mesh, dice)
        return
    choice = dice.randrange(3)
    if choice == 0:
        await mesh.author.create_override(mesh.asked(port=dice.randint(1, 60000), effect=dice.choice(list(Verdict))))
    elif choice == 1 and (found := mesh.active()):
        try:
            await mesh.author.revoke_override(dice.choice(found).id, "anna", "dice")
        except REFUSALS:
            return  # kubectl was faster
    else:
        target = dice.choice([mesh.namespace, *(mesh.ref(name) for name in WORKLOADS)])
        try:
            await mesh.author.set_mode(mesh.mode(target, dice.choice(list(Mode))))
        except REFUSALS:
            return  # a resource of somebody else says otherwise


async def _by_kubectl(mesh: Mesh, dice: random.Random) -> None:
    name = f"k{dice.randrange(4)}"
    match dice.randrange(4):
        case 0:
            await mesh.deleted("AccessOverride", name)
            spec = {"ttl": "1h", "owner": f"o{dice.randrange(3)}", "port": dice.randint(1, 60000)}
            await asyncio.to_thread(put, mesh.server, access_override(mesh.namespace, name, **spec))
        case 1:
            await mesh.deleted("AccessOverride", name)
        case 2:
            spec = {"ingress": str(dice.choice(list(Mode))), "workload": None}
            await asyncio.to_thread(put, mesh.server, segmentation_mode(mesh.namespace, name, **spec))
        case _:
            await mesh.deleted("SegmentationMode", name)


async def _agree(mesh: Mesh) -> None:
    """Wait until what is in force is what the resources say, read anew and put together here by other means."""
    while True:
        overrides = await asyncio.to_thread(mesh.listed, "AccessOverride")
        items = await asyncio.to_thread(mesh.listed, "SegmentationMode")
        wanted = {(each["spec"]["effect"], each["spec"]["port"], each["spec"]["owner"]) for each in overrides}
        found = {(str(each.effect), each.port, each.owner) for each in mesh.active()}
        modes = {name: mesh.engine.view.modes[mesh.ref(name)].inbound for name in WORKLOADS}
        if found == wanted and modes == {name: _expected(items, name) for name in WORKLOADS}:
            return
        await asyncio.sleep(0.1)


def _expected(items: list[dict[str, Any]], workload: str) -> Mode:
    """The ingress mode of a workload by the documented rules."""
    modes = [each for each in items if "ingress" in each["spec"]]
    modes.sort(key=lambda each: (each["metadata"]["creationTimestamp"], each["metadata"]["name"]))
    about = [each["spec"]["ingress"] for each in modes if each["spec"].get("workload") == workload]
    about += [each["spec"]["ingress"] for each in modes if "workload" not in each["spec"]]
    if "quarantine" in about:
        return Mode.QUARANTINE
    return Mode(about[0]) if about else Mode.LEARN
