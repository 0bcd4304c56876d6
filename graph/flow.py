"""What sidecars report: one aggregated observation, and the key of the edge that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from graph.errors import InvalidValue
from graph.model import Direction, Protocol, Verdict, WorkloadRef


@dataclass(frozen=True, slots=True, order=True)
class EdgeKey:
    """All flows from one workload to another on one port and protocol."""

    source: WorkloadRef
    destination: WorkloadRef
    port: int
    protocol: Protocol = Protocol.TCP

    def __str__(self) -> str:
        return f"{self.source}->{self.destination}:{self.port}/{self.protocol}"

    @classmethod
    def parse(cls, text: str) -> EdgeKey:
        """Read what ``str()`` writes, such as ``shop/front->shop/cart:8080/TCP``.

        :raises InvalidValue: naming the part that is wrong
        """
        source, arrow, rest = text.partition("->")
        destination, colon, tail = rest.rpartition(":")
        number, _, protocol = tail.partition("/")
        digits = number.isascii() and number.isdigit() and len(number) <= 5
        if not arrow or not colon or not digits or not 1 <= int(number) <= 65535:
            raise InvalidValue("edge", f"{text!r} is not an edge", "write it as shop/front->shop/cart:8080/TCP")
        try:
            transport = Protocol(protocol or "TCP")
        except ValueError:
            raise InvalidValue("edge", f"{protocol!r} is not a protocol", "use TCP, UDP or SCTP") from None
        return cls(
            WorkloadRef.parse(source, field="edge.source"),
            WorkloadRef.parse(destination, field="edge.destination"),
            int(number),
            transport,
        )


@dataclass(frozen=True, slots=True)
class Flow:
    """One aggregated observation, reported by the sidecar of one end.

    Counters are what was added since the sidecar's last report of the same flow, so that reports add up.

    :param reporter: the instance that reports
    :param direction: which end the reporter is: ``outbound`` when it is the source
    :param verified: whether mutual TLS proved the other end's identity
    :param verdict: what happened
    :param pending: what the pending policy would do
    :param reason: one of :class:`graph.policy.Reason`
    :param connections: connections opened (or refused, when ``verdict`` is deny)
    :param failed: connections that were allowed but did not reach the application
    :param bytes_sent: bytes from source to destination
    :param bytes_received: bytes from destination to source
    :param requests: requests of ``operation``. A flow with an operation counts requests alone; the connections that
        carried them and their bytes are in the flow without one
    :param first_seen: seconds since the epoch; also ``last_seen``
    """

    source: WorkloadRef
    destination: WorkloadRef
    port: int
    protocol: Protocol
    direction: Direction
    reporter: str
    verified: bool
    verdict: Verdict
    pending: Verdict
    reason: str
    rule_id: str = ""
    operation: str = ""
    source_identity: str = ""
    destination_identity: str = ""
    connections: int = 0
    failed: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    first_seen: float = 0.0
    last_seen: float = 0.0
    requests: int = 0

    @property
    def edge(self) -> EdgeKey:
        return EdgeKey(self.source, self.destination, self.port, self.protocol)
