"""Two whole sidecars with workers."""

from __future__ import annotations

import pytest

from tests.sidecar.workers.whole import running


@pytest.fixture
async def mesh(controller, tmp_path):
    async with running(controller, tmp_path) as made:
        yield made
