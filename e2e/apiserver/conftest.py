"""What every test of this suite has: parts that ask an API server again soon after it was away."""

from __future__ import annotations

import pytest

from controller.kube import supervision


@pytest.fixture(autouse=True, scope="session")
def soon() -> None:
    """Waits between two tries grow to a second here and to ten elsewhere: tests take API servers away for seconds."""
    supervision.LONGEST = 1.0
