"""What a lane is told of an allowed connection, and how it calls the application.

Lanes (:mod:`sidecar.http`, :mod:`sidecar.inspect`) stand on this; which of them a connection gets is decided above
them, in :mod:`sidecar.dataplane.lanes`.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass

from graph.model import Direction
from sidecar.dataplane import sockets
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.legs import Lane, Leg
from sidecar.dataplane.live import Connection
from sidecar.dataplane.socket_leg import SocketLeg
from sidecar.dataplane.sockets import Address


def _nothing() -> None:
    """A client that is not behind a tunnel can be told nothing but a reset."""


@dataclass(slots=True, eq=False)
class LaneContext:
    """One allowed connection, as a lane is told of it. Not frozen only because that makes it three times as dear,
    for every connection; nobody changes it.

    :param port: the one that policy speaks of
    :param application: where our application listens
    :param accept: tells the client, where it can be told, that its connection has reached the application
    :param unreached: has a reset tell the client, where it can be told, that the application could not be called
    :param server: of a connection of our application to what is outside the mesh: that, connected, and paused. It is
        then what everything else here calls the application
    :param tls: what is said to ``server`` is within TLS, which ends here for the client and begins anew
    """

    fabric: Fabric
    connection: Connection
    port: int
    application: Address
    accept: Callable[[], None]
    server: Leg | None = None
    tls: bool = False
    unreached: Callable[[], None] = _nothing

    @property
    def by_operation(self) -> bool:
        """Whether every operation has to be judged."""
        record = self.connection.record
        if record.direction is Direction.OUTBOUND:
            return self.fabric.authority.by_operation(record.destination, self.port, outbound=True)
        return self.fabric.authority.by_operation(record.source, self.port)

    def dial(self, lane: Lane) -> Leg | None:
        """Begin to connect to the application. What is written meanwhile is held; ``lane.lost`` tells of a failure.

        :return: None when it failed at once
        """
        fabric = self.fabric
        if self.server is not None:
            self.server.lane = lane
            self.server.resume()
            return self.server
        sock = connect(fabric, self.application)
        if sock is None:
            self.unreached()
            return None
        if sockets.is_connected(sock):  # as it mostly is, on one machine
            self.accept()
            return SocketLeg(fabric.reactor, sock, fabric.budget, lane)
        return SocketLeg(
            fabric.reactor,
            sock,
            fabric.budget,
            lane,
            connecting=fabric.settings.connect_timeout,
            connected=self.accept,
            unreached=self.unreached,
        )


def connect(fabric: Fabric, application: Address) -> socket.socket | None:
    """Begin to connect to our application; None when that failed at once."""
    try:
        sock = sockets.outgoing(application.family, fabric.settings.mark)
    except OSError as error:
        fabric.complaints.say(logging.ERROR, "cannot open a socket to the application: %s", error.strerror)
        return None
    if sock.connect_ex(application) not in sockets.CONNECTING:
        sock.close()
        return None
    return sock
