"""A mesh for each module of tests that names its ``workloads()``; it starts once and serves them all.

A module may also have ``CONTROLLER`` and ``SIDECAR``, settings beside those given here. Its tests and its asynchronous
fixtures run on one event loop: ``pytestmark = pytest.mark.asyncio(loop_scope="module")``.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

pytest.register_assert_rewrite("tests.mesh.running")

from hedgerow.local.mesh import LocalMesh  # noqa: E402 - after the line above
from hedgerow.local.sandbox import Confinement, confinement  # noqa: E402 - likewise
from tests.mesh.attacking import close_scene, use  # noqa: E402 - likewise
from tests.mesh.running import LEARNING, REPORT_INTERVAL  # noqa: E402 - likewise

#: What no program of ours may log while it is used as it is meant to be.
_FAULT = re.compile(r"Traceback|a fault in the data path|never awaited|\bCRITICAL\b")


@pytest.fixture(scope="session")
def _namespaces() -> None:
    """Real programs need real pods: addresses of their own, captured traffic, users of their own."""
    if os.geteuid() != 0:
        pytest.skip("makes network namespaces as root")
    if confinement() is not Confinement.ROOT:
        pytest.fail("needs the sandbox of tests/sandbox_plugin.py: run pytest by its command, as root", pytrace=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(request: pytest.FixtureRequest, _namespaces: None) -> AsyncIterator[LocalMesh]:
    module = request.module
    running = LocalMesh(
        module.workloads(),
        controller_settings={"learning": LEARNING, **getattr(module, "CONTROLLER", {})},
        sidecar_settings={"report_interval": REPORT_INTERVAL, **getattr(module, "SIDECAR", {})},
    )
    async with running:
        yield running
        faults = [name for name, text in _logs(running) if "(application)" not in name and _FAULT.search(text)]
        said = {name: text[-4000:] for name, text in _logs(running) if name in faults}
    assert not said, "\n".join(f"{name}:\n{text}" for name, text in said.items())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def closed_scene(mesh: LocalMesh) -> AsyncIterator[None]:
    """The scene of ``attacking.py`` in force, for modules that attack it."""
    await close_scene(mesh)
    yield
    assert await use(mesh) == "knock", "the attacks must not have cost the victim its client"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show what the mesh's programs said last beside a test that failed: their logs are gone afterwards."""
    report = yield
    running = getattr(item, "funcargs", {}).get("mesh")
    if report.failed and isinstance(running, LocalMesh):
        for name, text in _logs(running):
            if text:
                last = "\n".join(text.splitlines()[-20:])
                report.sections.append((f"last words of {name}", last))
    return report


def _logs(running: LocalMesh) -> Iterator[tuple[str, str]]:
    processes = [running.controller]
    for pod in running.pods.values():
        processes += [pod.sidecar, pod.application]
    for process in processes:
        if process.log.exists():
            yield process.name, process.log.read_text(errors="replace")
