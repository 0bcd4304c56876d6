"""Every fuzz target, by name. ``python -m tests.fuzz`` runs them."""

from __future__ import annotations

from tests.fuzz import connections, http1, http2, messages
from tests.fuzz.target import Target


def _planted(data: bytes) -> None:
    """Fails at one word, which only coverage leads to: proof that the way from a fault to a report works."""
    if len(data) != 6 or data[0] != 0x48:
        return
    if data[1] != 0x45:
        return
    if data[2] != 0x44:
        return
    assert data[3] != 0x47, "the planted fault"


TARGETS: dict[str, Target] = {
    target.name: target for target in (*connections.TARGETS, *http1.TARGETS, *http2.TARGETS, *messages.TARGETS)
}
PLANTED = Target("planted", _planted, lambda: (b"HAAAAA",), 16)
