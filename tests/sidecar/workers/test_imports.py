"""A worker's memory is decided by what it imports."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("grpc", "mitmproxy", "yaml", "networkx", "kubernetes", "sqlalchemy", "aiohttp", "h2", "sidecar.observer")


def test_a_worker_imports_nothing_heavy():
    program = f"import sys, sidecar.workers.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_one_process_does_without_all_this():
    program = "import sys, sidecar.app; print([name for name in sys.modules if name.startswith('sidecar.workers')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_by_hand_it_says_who_starts_it():
    done = subprocess.run([sys.executable, "-m", "sidecar.workers"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "`workers:`" in done.stderr
