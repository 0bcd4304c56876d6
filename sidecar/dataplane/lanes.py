"""Which lane looks at the bytes of an allowed connection to our application.

Rules:

1. Opaque is what the inventory's ``appProtocol`` or the port says: its bytes are not looked at, and nothing is waited
   for. On any other port the client's first bytes choose (:mod:`sidecar.dataplane.serving`).
2. Where rules by operation hold, bytes that are no operation are judged as the empty one before the application hears
   of the connection. A guess never widens that.
3. A port on which clients have waited for the server several times in a row is not waited for again, unless rules by
   operation hold there.
"""

from __future__ import annotations

import sys

from graph.model import Peer
from sidecar import heap
from sidecar.dataplane.detect import CLIENT_FIRST, OPAQUE, Kind
from sidecar.dataplane.fabric import Fabric
from sidecar.dataplane.lane_context import LaneContext
from sidecar.dataplane.legs import Leg
from sidecar.dataplane.live import Connection


def is_opaque(fabric: Fabric, source: Peer, port: int, *, silent: bool = True) -> bool:
    """Whether the bytes of a connection from ``source`` need not be looked at, and it can be carried at once.

    :param silent: nothing came yet, and would have to be waited for
    """
    authority = fabric.authority
    if fabric.taps.wants(port) or authority.by_operation(source, port):
        return False
    said = authority.protocol(port)
    if said:
        return said in OPAQUE
    if port in fabric.settings.opaque_ports:
        return True
    return silent and fabric.detection.server_first(port, fabric.reactor.loop.time())


def first_byte_wait(fabric: Fabric, source: Peer, port: int) -> float:
    """Seconds to wait for the client's first byte: long where a client is known to speak first, or is refused anyway
    when it does not, so that one on a busy machine is not taken for one that waits for the server."""
    authority, settings = fabric.authority, fabric.settings
    if authority.protocol(port) in CLIENT_FIRST:
        return settings.first_byte_wait
    if authority.by_operation(source, port) and not authority.operation(source, port, "").allowed:
        return settings.first_byte_wait
    return settings.sniff_wait


def is_http(kind: Kind) -> bool:
    """Whether a lane looks at bytes of ``kind``."""
    return kind is Kind.HTTP1 or kind is Kind.HTTP2


def enter_lane(context: LaneContext, kind: Kind, client: Leg) -> None:
    """Give ``client`` the lane that looks at bytes of ``kind``, HTTP of some version, and report the opening."""
    # imported on first use: a pod may never see HTTP
    fabric, port = context.fabric, context.port
    context.connection.by_operation = True
    context.connection.record.protocol = kind.value
    fabric.detection.spoke(port)
    if fabric.taps.wants(port) or (kind is Kind.HTTP2 and context.by_operation):
        first = "sidecar.inspect.lane" not in sys.modules
        from sidecar.inspect.entrance import enter

        if first:
            heap.settle()
        client.lane = enter(context, client, kind)
    elif kind is Kind.HTTP1:
        from sidecar.http.lane import HttpLane

        client.lane = HttpLane(context, client)
    else:
        from sidecar.http.h2 import H2Lane

        client.lane = H2Lane(context, client)
    context.connection.announce()


def opaque_allowed(fabric: Fabric, connection: Connection, port: int, kind: Kind) -> bool:
    """Whether bytes that are no operation may reach the application. If not, the refusal is reported."""
    connection.by_operation = False
    connection.record.protocol = kind.value if kind is not Kind.MORE else Kind.OTHER.value
    authority = fabric.authority
    source = connection.record.source
    if not authority.by_operation(source, port):
        return True
    decision = authority.operation(source, port, "")
    if not decision.allowed:
        connection.refuse(decision)
        return False
    connection.record.decision = decision
    return True
