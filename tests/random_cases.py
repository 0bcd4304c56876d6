"""How hypothesis draws its cases in every suite.

No test judges the machine's speed, hypothesis included. Where ``HEDGEROW_SAME_CASES`` is set, the cases are the same
each time: a submission is not refused for what others wrote.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings


def load() -> None:
    """Make that the rule of this process."""
    same = "HEDGEROW_SAME_CASES" in os.environ
    settings.register_profile("hedgerow", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=same)
    settings.load_profile("hedgerow")
