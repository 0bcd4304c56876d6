"""A small shop to compile, and random meshes that are as awkward as the vocabulary permits."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from controller.compiler import PolicyInput
from controller.view import WorkloadMode
from graph.model import (
    InboundTls,
    Instance,
    Mode,
    Origin,
    PortRange,
    Protocol,
    Rule,
    Selector,
    Transport,
    Verdict,
    Workload,
    WorkloadRef,
)


def ref(text: str) -> WorkloadRef:
    return WorkloadRef.parse(text)


def workload(name: str, *, labels: dict[str, str] | None = None, **more: object) -> Workload:
    target = ref(name)
    given = {"app": target.name} if labels is None else labels
    return Workload(target, labels=tuple(sorted(given.items())), **more)


def instance(name: str, address: str, *, number: int = 1) -> Instance:
    target = ref(name)
    return Instance(f"{target.name}-{number}", target, address)


def learned(source: str, destination: str, port: int, protocol: Protocol = Protocol.TCP) -> Rule:
    return Rule(
        f"learned/{source}->{destination}:{port}/{protocol}",
        Selector.of(ref(source)),
        Selector.of(ref(destination)),
        (PortRange.single(port),),
        protocol,
        owner="learner",
    )


def override(effect: Verdict, source: Selector, destination: Selector, *ports: int, name: str = "1", **more) -> Rule:
    return Rule(
        f"override/{name}",
        source,
        destination,
        tuple(PortRange.single(port) for port in ports),
        effect=effect,
        origin=Origin.OVERRIDE,
        owner="kim",
        **more,
    )


def shop(*extra: Rule, **changes: object) -> PolicyInput:
    """Front, cart, a database without a sidecar, and an old client without one."""
    fields: dict[str, object] = {
        "trust_domain": "hedgerow.local",
        "workloads": (
            workload("shop/front"),
            workload("shop/cart", service_account="cart"),
            workload("shop/db", meshed=False),
            workload("legacy/client", meshed=False),
        ),
        "instances": (
            instance("shop/front", "10.0.0.1"),
            instance("shop/front", "10.0.0.2", number=2),
            instance("shop/cart", "10.0.0.3"),
            instance("shop/db", "10.0.0.4"),
            instance("legacy/client", "10.0.1.1"),
        ),
        "modes": {},
        "rules": (
            learned("shop/front", "shop/cart", 8080),
            learned("shop/cart", "shop/db", 5432),
            *extra,
        ),
    }
    return PolicyInput(**{**fields, **changes})


_NAMESPACES = ("shop", "ops")
_NAMES = ("a", "b", "c")
_REFS = [WorkloadRef(namespace, name) for namespace in _NAMESPACES for name in _NAMES]
_ACCOUNTS = ("default", "special")
_LABELS = st.dictionaries(st.sampled_from(["app", "tier", "pod-template-hash"]), st.sampled_from("xy"), max_size=3)
_ADDRESSES = [f"10.0.0.{n}" for n in range(1, 9)] + ["127.0.0.1", "fd00::1", "fd00::2"]
_CIDRS = ("", "10.0.0.0/30", "10.0.0.2/32", "10.0.0.0/8", "192.0.2.0/24", "192.0.2.7/32", "0.0.0.0/0", "fd00::/64")
_PORTS = st.sampled_from([(), (PortRange.single(80),), (PortRange(80, 443),), (PortRange.single(15020),)])
_OPERATIONS = st.sampled_from([(), (), (), ("GET /",), ("GET /", "PUT /")])

_identities = st.one_of(
    st.just(("", "", "")),
    st.sampled_from(_NAMESPACES).map(lambda namespace: (namespace, "", "")),
    st.tuples(st.sampled_from(_NAMESPACES), st.sampled_from([*_NAMES, "gone"]), st.just("")),
    st.tuples(st.sampled_from(_NAMESPACES), st.just(""), st.sampled_from(_ACCOUNTS)),
)
_selectors = st.builds(
    lambda identity, cidr: Selector(*identity, cidr=cidr),
    _identities,
    st.one_of(st.just(""), st.just(""), st.sampled_from(_CIDRS)),
)


_outside = st.sampled_from(_CIDRS[1:]).map(lambda cidr: Selector(cidr=cidr, outside=True))
_hosts = st.builds(
    lambda host, cidr: Selector(host=host, cidr=cidr),
    st.sampled_from(["api.example.com", "*.example.com", "*.a.example.com", "b.a.example.com", "example.com"]),
    st.sampled_from(["", "", "10.0.0.0/8", "192.0.2.0/24", "0.0.0.0/0"]),
)


@st.composite
def rules(draw: st.DrawFn) -> tuple[Rule, ...]:
    found = []
    for number in range(draw(st.integers(0, 6))):
        origin = draw(st.sampled_from([Origin.LEARNED, Origin.STATIC, Origin.OVERRIDE]))
        effects = [Verdict.ALLOW] if origin is Origin.LEARNED else list(Verdict)
        found.append(
            Rule(
                f"{origin}/{number}",
                draw(st.one_of(_selectors, _selectors, _selectors, _outside)),
                draw(st.one_of(_selectors, _selectors, _hosts, _outside)),
                draw(_PORTS),
                draw(st.sampled_from([Protocol.TCP, Protocol.TCP, Protocol.UDP])),
                draw(_OPERATIONS),
                draw(st.sampled_from(effects)),
                origin,
                expires_at=draw(st.sampled_from([0.0, 0.0, 50.0, 150.0])),
            )
        )
    return tuple(found)


@st.composite
def meshes(draw: st.DrawFn) -> PolicyInput:
    """Shared addresses, loopback, twins, workloads without sidecars and with another mesh's proxy, names, quarantine
    and strict TLS among them."""
    refs = draw(st.lists(st.sampled_from(_REFS), unique=True, min_size=1, max_size=5))
    workloads = tuple(
        Workload(
            target,
            service_account=draw(st.sampled_from(_ACCOUNTS)),
            labels=tuple(sorted(draw(_LABELS).items())),
            meshed=draw(st.booleans()),
            transport=draw(st.sampled_from([Transport.TUNNEL, Transport.TUNNEL, Transport.MTLS])),
        )
        for target in refs
    )
    proving = [(each.ref.namespace, each.service_account) for each in workloads if each.meshed]
    workloads = tuple(
        replace(each, account_identity=draw(st.booleans()))
        if each.transport is Transport.MTLS and proving.count((each.ref.namespace, each.service_account)) == 1
        else each
        for each in workloads
    )
    instances = tuple(
        Instance(f"{target.name}-{number}", target, address)
        for target in refs
        for number, address in enumerate(draw(st.lists(st.sampled_from(_ADDRESSES), unique=True, max_size=3)))
    )
    modes = st.builds(
        WorkloadMode, st.sampled_from(Mode), st.sampled_from(Mode), st.sampled_from([InboundTls.STRICT, *InboundTls])
    )
    return PolicyInput(
        "hedgerow.local",
        workloads,
        instances,
        modes={target: draw(modes) for target in refs if draw(st.booleans())},
        rules=draw(rules()),
        resolvers=draw(st.sampled_from([(), ("192.0.2.53",), ("10.0.0.2", "fd00::53")])),
        networks=draw(st.sampled_from([(), ("10.0.0.0/8",), ("10.0.0.0/24", "192.0.2.0/25", "fd00::/64")])),
    )
