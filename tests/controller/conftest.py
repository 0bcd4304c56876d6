"""What the tests of a controller share."""

from __future__ import annotations

import pytest

from tests.controller.mesh import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
