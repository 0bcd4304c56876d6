"""A destination that moves, and a clock, for those who ask a directory."""

from __future__ import annotations

from graph.directory import Destination, Endpoint
from graph.model import WorkloadRef
from tests.sidecar.fake_controller import IDENTITY

PAYMENT = Destination(
    "10.77.0.9",
    443,
    workload=WorkloadRef("shop", "payment"),
    service="payment.shop",
    meshed=True,
    endpoints=(Endpoint("10.77.0.9", 8443, "payment-1", str(IDENTITY)),),
    version=1,
)
MOVED = Destination("10.77.0.9", 443, workload=PAYMENT.workload, meshed=True, version=2)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now
