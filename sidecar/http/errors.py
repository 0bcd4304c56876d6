"""What can be wrong with a message."""

from __future__ import annotations

from sidecar.errors import SidecarError


class Malformed(SidecarError):
    """Bytes that two readers could understand differently, or none at all. The sender is to blame.

    :param reason: short and stable, without anything that the sender wrote; it goes into a header, a metric and a log
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
