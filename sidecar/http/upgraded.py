"""A connection that went on in another protocol after an HTTP/1.1 upgrade: opaque, and still under its operation.

Its legs give way to nobody: the ``http`` lane never had them do so. Only a leg whose last read took long lets others go
first with the next one, as every leg does (:mod:`sidecar.dataplane.tcp_leg`), and what is merely relayed takes little.
"""

from __future__ import annotations

from graph.model import Direction, Peer
from sidecar.dataplane.leg_relay import LegRelay
from sidecar.dataplane.legs import Leg
from sidecar.dataplane.live import Connection
from sidecar.http.site import HttpSite


class UpgradedRelay(LegRelay):
    """Relays without looking, until the policy denies the operation that opened it.

    :param operation: as rules name it (``WEBSOCKET /chat``)
    """

    __slots__ = ("_operation", "_port", "_site", "_under")

    def __init__(
        self, site: HttpSite, connection: Connection, port: int, operation: str, client: Leg, server: Leg
    ) -> None:
        super().__init__(connection, client, server)
        self._site = site
        self._under = connection
        self._port = port
        self._operation = operation
        site.watch(self, port)

    def sweep(self, now: float) -> None:
        """Only to be forgotten when it is over; how long it may be idle is the connection's matter."""
        if self._under.record.closed:
            self._site.forget(self)

    def judge_again(self) -> None:
        record = self._under.record
        if record.direction is Direction.OUTBOUND:
            self._judge_outbound(record.destination)
            return
        verdicts = self._site.verdicts(record.source, self._port)
        if verdicts.by_operation and not verdicts.of(self._operation).allowed:
            self.reset()

    def _judge_outbound(self, peer: Peer) -> None:
        authority, port = self._site.fabric.authority, self._port
        by_operation = authority.by_operation(peer, port, outbound=True)
        if by_operation and not authority.operation(peer, port, self._operation, outbound=True).allowed:
            self.reset()
