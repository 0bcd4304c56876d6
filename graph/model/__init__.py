"""The vocabulary that every part of Hedgerow shares: workloads, peers, flows, rules and snapshots.

Everything here is immutable and knows no I/O and no clock: times are arguments, in seconds since the Unix epoch.
Protobuf forms of these types are made and read in :mod:`graph.wire.codec` and nowhere else.
"""

from graph.model.connections import Connection, Peer
from graph.model.names import EXTERNAL_NAMESPACE, InspectedHost, WorkloadRef, is_host
from graph.model.rules import PortRange, Rule, Selector, Snapshot
from graph.model.services import Service, ServiceEndpoint, ServicePort
from graph.model.words import Direction, InboundTls, Mode, Origin, Protocol, Transport, Verdict
from graph.model.workloads import Instance, Port, Workload

__all__ = [
    "EXTERNAL_NAMESPACE",
    "Connection",
    "Direction",
    "InboundTls",
    "InspectedHost",
    "Instance",
    "Mode",
    "Origin",
    "Peer",
    "Port",
    "PortRange",
    "Protocol",
    "Rule",
    "Selector",
    "Service",
    "ServiceEndpoint",
    "ServicePort",
    "Snapshot",
    "Transport",
    "Verdict",
    "Workload",
    "WorkloadRef",
    "is_host",
]
