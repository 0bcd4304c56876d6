"""Egress inspection where several processes carry the connections of a pod: each stands in for the host."""

from __future__ import annotations

import pytest

from hedgerow.local.mesh import LocalMesh
from tests.mesh import test_inspection as alone
from tests.mesh.running import set_mode
from tests.mesh.test_inspection import _folder as _folder

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIDECAR = {**alone.SIDECAR, "workers": 2}
workloads = alone.workloads
#: As many connections as make it all but certain that each worker has some.
CALLS = 12


async def test_every_worker_reads_and_judges(mesh: LocalMesh) -> None:
    async def trusted() -> bool:  # the file of another mesh may be there still
        return await alone.call(mesh, "GET", "/v1/17") == ["Hedgerow", "200 GET /v1/17"]

    await mesh.wait_for(trusted, "a call that is read")
    await set_mode(mesh, "shop", "enforce", "strict")
    await alone.allow(mesh, alone.READ)
    for _ in range(CALLS):
        assert await alone.call(mesh, "GET", "/v1/17", "/v1/18") == ["Hedgerow", "200 GET /v1/17", "200 GET /v1/18"]
        assert (await alone.call(mesh, "DELETE", "/v1/17"))[1].startswith("403 ")
