"""HTTP/2 and gRPC, observed: the bytes are passed on as they are, and read beside that (:mod:`sidecar.http.frames2`).

No verdict depends on what is read here: where operations have to be judged, another lane takes the connection. So when
rules by operation come into force later, the connection is judged as one whose operations are not known.
"""

from __future__ import annotations

from sidecar.dataplane.leg_relay import LegRelay
from sidecar.dataplane.legs import Leg
from sidecar.dataplane.serving import NOBODY, LaneContext
from sidecar.http.site import HttpSite


class H2Lane(LegRelay):
    """The lane of ``client`` and of one connection of the application."""

    __slots__ = ("_port", "_site", "_under")

    def __init__(self, context: LaneContext, client: Leg, site: HttpSite | None = None) -> None:
        self._site = site if site is not None else HttpSite.of(context.fabric)
        self._under = context.connection
        self._port = context.port
        server = context.dial(NOBODY)
        if server is None:
            client.reset()
            context.connection.finish(failed=True)
            return
        super().__init__(context.connection, client, server)
        self._site.watch(self)

    def sweep(self, now: float) -> None:
        """Only to be forgotten when it is over."""
        if self._under.record.closed:
            self._site.forget(self)

    def judge_again(self) -> None:
        verdicts = self._site.verdicts(self._under.record.source, self._port)
        if verdicts.by_operation and not verdicts.of("").allowed:
            self.reset()
