"""Hypothesis strategies for the vocabulary. Small pools of names, so that things meet."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from graph.directory import Destination, Endpoint, Transport
from graph.flow import Flow
from graph.model import (
    Connection,
    Direction,
    InboundTls,
    Mode,
    Origin,
    Peer,
    PortRange,
    Protocol,
    Rule,
    Selector,
    Snapshot,
    Verdict,
    WorkloadRef,
)
from graph.policy import Reason

NAMES = st.sampled_from(["front", "cart", "db", "a-b.c", "x0"])
NAMESPACES = st.sampled_from(["shop", "ops"])
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.1.2", "192.0.2.7", "2001:db8::7"])
CIDRS = st.sampled_from(["10.0.0.0/8", "10.0.0.0/24", "10.0.0.1/32", "0.0.0.0/0", "2001:db8::/32", "::/0"])
PORTS = st.sampled_from([1, 80, 443, 8080, 65535])
OPERATIONS = st.sampled_from(["GET /cart", "POST /cart"])
HOSTS = st.sampled_from(["api.example.com", "example.com", "badexample.com", "a.b.example.com"])
HOST_PATTERNS = st.sampled_from(["api.example.com", "*.example.com", "*.b.example.com", "badexample.com"])
TIMES = st.floats(min_value=0, max_value=1e10, allow_nan=False)
COUNTS = st.integers(min_value=0, max_value=2**48)
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=40)

workloads = st.builds(WorkloadRef, NAMESPACES, NAMES)
externals = st.builds(WorkloadRef.external, ADDRESSES)
hosts = st.builds(WorkloadRef.external_host, HOSTS)
refs = st.one_of(workloads, externals, hosts)


@st.composite
def selectors(draw: st.DrawFn) -> Selector:
    namespace = draw(st.one_of(st.just(""), NAMESPACES))
    cidr = draw(st.one_of(st.just(""), st.just(""), CIDRS))
    return Selector(
        namespace,
        draw(st.one_of(st.just(""), NAMES)) if namespace else "",
        draw(st.sampled_from(["", "", "default", "robot"])) if namespace else "",
        cidr,
        "" if namespace else draw(st.one_of(st.just(""), st.just(""), HOST_PATTERNS)),
        outside=draw(st.booleans()) if cidr and not namespace else False,
    )


port_ranges = st.one_of(
    PORTS.map(PortRange.single), st.tuples(PORTS, PORTS).map(lambda pair: PortRange(min(pair), max(pair)))
)


@st.composite
def rules(draw: st.DrawFn, ids: st.SearchStrategy[str] | None = None, effect: Verdict | None = None) -> Rule:
    """:param effect: what every one has; None draws it"""
    denying = (Origin.OVERRIDE, Origin.STATIC)
    origin = draw(st.sampled_from(denying if effect is Verdict.DENY else tuple(Origin)))
    effects = [effect] if effect is not None else list(Verdict) if origin in denying else [Verdict.ALLOW]
    return Rule(
        id=draw(ids or st.uuids().map(lambda each: f"{origin}/{each}")),
        source=draw(selectors()),
        destination=draw(selectors()),
        ports=tuple(draw(st.lists(port_ranges, max_size=2))),
        protocol=draw(st.sampled_from([Protocol.TCP, Protocol.TCP, Protocol.UDP])),
        operations=tuple(draw(st.lists(OPERATIONS, max_size=2))),
        effect=draw(st.sampled_from(effects)),
        origin=origin,
        owner=draw(TEXTS),
        reason=draw(TEXTS),
        expires_at=draw(st.sampled_from([0.0, 0.0, 50.0, 150.0])),
        evidence=tuple(draw(st.lists(TEXTS, max_size=2))),
        essential=origin is Origin.BASELINE and draw(st.booleans()),
    )


snapshots = st.builds(
    Snapshot,
    workload=workloads,
    trust_domain=st.just("hedgerow.local"),
    version=st.integers(1, 2**63 - 1),
    inbound_mode=st.sampled_from(Mode),
    outbound_mode=st.sampled_from(Mode),
    inbound_tls=st.sampled_from(InboundTls),
    rules=st.lists(rules(), max_size=6).map(tuple),
    issued_at=TIMES,
    protocols=st.dictionaries(PORTS, st.sampled_from(["http", "tcp", "kubernetes.io/h2c"]), max_size=3).map(
        lambda each: tuple(each.items())
    ),
)


@st.composite
def peers(draw: st.DrawFn) -> Peer:
    workload = draw(st.one_of(st.none(), workloads, workloads))
    return Peer(
        workload,
        workload.namespace if workload else draw(st.one_of(st.just(""), NAMESPACES)),
        draw(st.sampled_from(["", "default", "robot"])),
        draw(st.one_of(st.just(""), ADDRESSES)),
        draw(st.booleans()),
        "" if workload else draw(st.one_of(st.just(""), HOSTS)),
    )


@st.composite
def connections(draw: st.DrawFn, workload: WorkloadRef | None = None) -> Connection:
    """:param workload: the end that is judged, when it shall be the snapshot's"""
    direction = draw(st.sampled_from(Direction))
    source, destination = draw(peers()), draw(peers())
    if workload is not None:
        mine = Peer(workload, workload.namespace, "default", "10.0.0.1", True)
        source, destination = (source, mine) if direction is Direction.INBOUND else (mine, destination)
    return Connection(
        direction,
        source,
        destination,
        draw(PORTS),
        draw(st.sampled_from([Protocol.TCP, Protocol.TCP, Protocol.UDP])),
        draw(st.one_of(st.just(""), OPERATIONS)),
    )


identities = st.one_of(st.just(""), st.just("spiffe://hedgerow.local/ns/shop/sa/default/wl/cart"))

connection_flows = st.builds(
    Flow,
    source=refs,
    destination=refs,
    port=PORTS,
    protocol=st.sampled_from(Protocol),
    direction=st.sampled_from(Direction),
    reporter=st.sampled_from(["front-0", "front-1", "cart-0"]),
    verified=st.booleans(),
    verdict=st.sampled_from(Verdict),
    pending=st.sampled_from(Verdict),
    reason=st.sampled_from(Reason),
    rule_id=TEXTS,
    source_identity=identities,
    destination_identity=identities,
    connections=COUNTS,
    failed=COUNTS,
    bytes_sent=COUNTS,
    bytes_received=COUNTS,
    first_seen=TIMES,
    last_seen=TIMES,
)

#: Requests, which count nothing else.
request_flows = st.builds(
    lambda flow, operation, requests: replace(
        flow, operation=operation, requests=requests, connections=0, failed=0, bytes_sent=0, bytes_received=0
    ),
    connection_flows,
    OPERATIONS,
    st.integers(1, 2**48),
)
flows = st.one_of(connection_flows, connection_flows, request_flows)

endpoints = st.builds(
    Endpoint,
    ADDRESSES,
    PORTS,
    NAMES,
    identities,
    st.booleans(),
    st.sampled_from(Transport),
    st.one_of(st.none(), workloads),
)
destinations = st.builds(
    Destination,
    address=ADDRESSES,
    port=PORTS,
    protocol=st.sampled_from(Protocol),
    workload=workloads,
    service=st.one_of(st.just(""), NAMES),
    meshed=st.booleans(),
    endpoints=st.lists(endpoints, max_size=4).map(tuple),
    version=st.integers(0, 2**63 - 1),
)
