"""The words that rules, flows and workloads are described in, spelled as people and protocols spell them."""

from __future__ import annotations

from enum import StrEnum


class Protocol(StrEnum):
    """A transport protocol, spelled as Kubernetes spells it."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class Mode(StrEnum):
    """What a workload's sidecar does with a connection that no rule speaks of."""

    LEARN = "learn"
    AUDIT = "audit"
    ENFORCE = "enforce"
    QUARANTINE = "quarantine"


class Verdict(StrEnum):
    """What is done to a connection; also the effect of a rule."""

    ALLOW = "allow"
    DENY = "deny"


class Origin(StrEnum):
    """Where a rule comes from."""

    LEARNED = "learned"
    OVERRIDE = "override"
    STATIC = "static"
    BASELINE = "baseline"


class Direction(StrEnum):
    """A connection as seen from the workload whose sidecar judges it."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"


class InboundTls(StrEnum):
    """Whether a workload takes connections that are not mutual TLS (Istio's PeerAuthentication modes)."""

    PERMISSIVE = "permissive"
    STRICT = "strict"


class Transport(StrEnum):
    """How a meshed endpoint takes connections."""

    TUNNEL = ""
    """A Hedgerow sidecar: yamux tunnels, ALPN ``hedgerow/1``."""
    MTLS = "mtls"
    """Another mesh's proxy: SPIFFE mutual TLS, one TLS connection for each connection."""
