"""``python -m e2e.harness.permitted``: whether a cluster can be made on this machine; exits with the reason when not.

For CI, which runs the cluster's suite where it can. The suite itself never asks: it fails where it cannot.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hedgerow.local.sandbox import Confinement, probe


def reason() -> str:
    """Why no cluster can be made here; empty when one can."""
    permitted = probe()
    if permitted.confinement is not Confinement.ROOT:
        return permitted.why_not
    groups = [path for path in Path("/sys/fs/cgroup").glob("*/cgroup.procs") if os.access(path, os.W_OK)]
    if not groups and not os.access("/sys/fs/cgroup/cgroup.procs", os.W_OK):
        return "the control groups below /sys/fs/cgroup cannot be written"
    return ""


if __name__ == "__main__":
    why_not = reason()
    if why_not:
        sys.exit(f"no cluster here: {why_not}")
