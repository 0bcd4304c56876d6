"""What every sidecar imports at its start brings no mitmproxy: its memory is decided by what it imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("mitmproxy", "h2", "hpack", "wsproto", "h11", "OpenSSL")


@pytest.mark.parametrize(
    "module", ["hub", "taps", "settings", "rates", "redact", "frame_guard", "exchange", "linger", "tap_client"]
)
def test_the_light_half(module):
    program = f"import sys, sidecar.inspect.{module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
