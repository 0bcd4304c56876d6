"""A worker's part of the memory that all workers may use."""

from __future__ import annotations

from sidecar.dataplane.memory import Gauge


class SharedGauge(Gauge):
    """As :class:`~sidecar.dataplane.memory.Gauge`, for one of several processes that share a limit.

    :param limit: bytes of all of them together; 0: what the control group allows
    :param count: how many they are
    """

    __slots__ = ()

    def __init__(self, limit: int, count: int) -> None:
        super().__init__(limit)
        self.limit //= count
