"""Connections to an address that turns out to be a workload's: what is said of the workload is said of them."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from graph.directory import Destination, Endpoint
from graph.model import Mode, Origin, Rule, Selector, Verdict, WorkloadRef
from tests.ports import free_port
from tests.sidecar.fake_controller import WORKLOAD, snapshot
from tests.sidecar.processes import CART_ADDRESS, FRONT, REPLICA_ADDRESS, Mesh, echo
from tests.sidecar.workers.whole import MANY, WORKERS, Held, ask, settled

DENY = Rule("deny", Selector.of(FRONT), Selector.of(WORKLOAD), effect=Verdict.DENY, origin=Origin.OVERRIDE)


class Pod:
    """One without a sidecar, which the controller does not know yet."""

    def __init__(self, mesh):
        self.mesh = mesh
        self.port = free_port(CART_ADDRESS)
        self.stranger = Destination(CART_ADDRESS, mesh.service)
        mesh.controller.answer(self.stranger)

    def known(self, *workloads):
        """The controller comes to know it, as a pod or as a service of these."""
        places = zip((CART_ADDRESS, REPLICA_ADDRESS), workloads, strict=False)
        endpoints = tuple(Endpoint(address, self.port, one.name, workload=one) for address, one in places)
        service = "shop/cart" if len(workloads) > 1 else ""
        workload = workloads[0] if len(workloads) == 1 else None
        self.mesh.controller.answer(replace(self.stranger, workload=workload, service=service, endpoints=endpoints))

    async def heard(self):
        """Whether every worker knows it: connections from now on go to the endpoint that was named."""
        return set(await asyncio.gather(*(ask(self.mesh.entrance) for _ in range(MANY)))) == {b"known"}

    def push(self, version, *rules):
        self.mesh.controller.push(snapshot(version, *rules, mode=Mode.LEARN, workload=FRONT), FRONT)


async def known(reader, writer):
    await reader.read()
    writer.write(b"known")
    writer.close()


@contextlib.asynccontextmanager
async def pod_of(controller, directory, workers, *rules, **settings):
    mesh = Mesh(controller, directory)
    mesh.front.document |= {"workers": workers} | settings
    pod = Pod(mesh)
    pod.push(1, *rules)
    stranger = await asyncio.start_server(echo, CART_ADDRESS, mesh.service)
    endpoint = await asyncio.start_server(known, CART_ADDRESS, pod.port)
    async with stranger, endpoint, mesh.front:
        await mesh.front.ready()
        yield pod


@pytest.fixture(params=[1, WORKERS], ids=["one", "workers"])
def workers(request):
    return request.param


async def test_a_connection_ends_when_it_turns_out_to_reach_who_is_denied(controller, tmp_path, workers):
    async with pod_of(controller, tmp_path, workers, DENY) as pod, Held(pod.mesh.entrance) as held:
        pod.known(WORKLOAD)
        await held.ended()
        assert await ask(pod.mesh.entrance) == b""


async def test_one_that_is_allowed_stays_until_a_policy_denies_whom_it_reaches(controller, tmp_path, workers):
    async with pod_of(controller, tmp_path, workers) as pod, Held(pod.mesh.entrance) as held:
        pod.known(WORKLOAD)
        await settled(pod.heard)
        await held.use()
        pod.push(2, replace(DENY, destination=Selector.of(WorkloadRef("shop", "other"))))
        await held.use()
        pod.push(3, DENY)
        await held.ended()


async def test_one_to_a_service_of_several_ends_because_nobody_knows_whom_it_has_reached(controller, tmp_path, workers):
    async with pod_of(controller, tmp_path, workers) as pod, Held(pod.mesh.entrance) as held:
        pod.known(WORKLOAD, WorkloadRef("shop", "other"))
        await held.ended()
