"""What a run of the demo measured, whether it is good enough, and how people and programs read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from graph.flow import EdgeKey
from hedgerow.local.attacks import Attack


@dataclass(frozen=True, slots=True)
class OverrideTrial:
    """What an override that opens one forbidden connection did.

    :param push_ms: from the request to the acknowledgement of every sidecar that it concerns
    :param cut_after_expiry: the connection that was open when it expired was ended
    """

    edge: EdgeKey
    denied_before: bool
    allowed_after: bool
    push_ms: float
    denied_after_expiry: bool
    cut_after_expiry: bool

    @property
    def as_meant(self) -> bool:
        return self.denied_before and self.allowed_after and self.denied_after_expiry and self.cut_after_expiry


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Everything in it was measured.

    :param confinement: how the mesh was kept apart: ``root``, ``user-namespace`` or ``none``
    :param edges_observed: over which a connection was allowed, without the one that the override opened
    :param mtls_ratio: of the connections between meshed pods
    :param false_denies: connections on expected edges that were refused, or would have been in audit
    :param errors: what the clients of the shop said of their failed requests
    :param cannot_show: what this way of running leaves unproved
    """

    confinement: str
    services: int
    instances: int
    edges_expected: frozenset[EdgeKey]
    edges_observed: frozenset[EdgeKey]
    mtls_ratio: float
    mtls_connections: int
    false_denies: int
    attacks: tuple[Attack, ...]
    override: OverrideTrial
    network_policies: int
    requests: int
    failed_requests: int
    errors: tuple[str, ...]
    seconds: float
    cannot_show: tuple[str, ...] = field(default=())

    @property
    def edges_missing(self) -> frozenset[EdgeKey]:
        return self.edges_expected - self.edges_observed

    @property
    def edges_unexpected(self) -> frozenset[EdgeKey]:
        return self.edges_observed - self.edges_expected

    def failures(self) -> list[str]:
        """Why this run is not good enough; empty when it is."""
        found = [f"expected and not observed: {edge}" for edge in sorted(self.edges_missing)]
        found += [f"observed and not expected: {edge}" for edge in sorted(self.edges_unexpected)]
        if self.mtls_ratio < 1:
            found.append(f"only {self.mtls_ratio:.4f} of {self.mtls_connections} connections were mutual TLS")
        if self.false_denies:
            found.append(f"{self.false_denies} connections on expected edges were refused")
        for attack in self.attacks:
            name = f"{attack.source} -> {attack.destination}:{attack.port}"
            if not attack.blocked:
                found.append(f"an attack got through: {name} ({attack.how})")
            elif not attack.witnessed:
                found.append(f"no sidecar reported that it refused {name}, so nothing proves that it did")
        if not self.override.as_meant:
            found.append(f"the override did not do what it should: {self.override}")
        if not self.network_policies:
            found.append("no NetworkPolicy was made")
        if not self.requests:
            found.append("there was no traffic")
        if self.failed_requests:
            found.append(f"{self.failed_requests} of {self.requests} requests failed: {'; '.join(self.errors)}")
        return found

    def document(self) -> dict[str, Any]:
        """The JSON object of ``hedgerow demo --json``."""
        return {
            "ok": not self.failures(),
            "failures": self.failures(),
            "confinement": self.confinement,
            "services": self.services,
            "instances": self.instances,
            "edges_expected": _edges(self.edges_expected),
            "edges_observed": _edges(self.edges_observed),
            "edges_missing": _edges(self.edges_missing),
            "edges_unexpected": _edges(self.edges_unexpected),
            "mtls_ratio": self.mtls_ratio,
            "mtls_connections": self.mtls_connections,
            "false_denies": self.false_denies,
            "attacks": [
                {
                    "from": attack.source,
                    "to": attack.destination,
                    "port": attack.port,
                    "blocked": attack.blocked,
                    "witnessed": attack.witnessed,
                    "how": attack.how,
                }
                for attack in self.attacks
            ],
            "override": {
                **_edge(self.override.edge),
                "denied_before": self.override.denied_before,
                "allowed_after": self.override.allowed_after,
                "push_ms": round(self.override.push_ms, 1),
                "denied_after_expiry": self.override.denied_after_expiry,
                "cut_after_expiry": self.override.cut_after_expiry,
            },
            "network_policies": self.network_policies,
            "requests": self.requests,
            "failed_requests": self.failed_requests,
            "errors": list(self.errors),
            "seconds": round(self.seconds, 1),
            "cannot_show": list(self.cannot_show),
        }


def _edge(edge: EdgeKey) -> dict[str, Any]:
    return {
        "from": str(edge.source),
        "to": str(edge.destination),
        "port": edge.port,
        "protocol": str(edge.protocol),
    }


def _edges(edges: Iterable[EdgeKey]) -> list[dict[str, Any]]:
    return [_edge(edge) for edge in sorted(edges)]


def show(result: Result, console: Console) -> None:
    """Print the result for people."""
    edges = Table("edge", "learned", title="The edges", title_justify="left")
    for edge in sorted(result.edges_expected | result.edges_observed):
        if edge not in result.edges_observed:
            verdict = "[red]missing"
        else:
            verdict = "[green]yes" if edge in result.edges_expected else "[red]unexpected"
        edges.add_row(_name(edge), verdict)
    console.print(edges)

    attacks = Table("attack", "how", "outcome", title="The attacks", title_justify="left")
    for attack in result.attacks:
        outcome = "[green]refused" if attack.blocked and attack.witnessed else "[red]refused, no witness"
        name = f"{attack.source} → {attack.destination}:{attack.port}"
        attacks.add_row(name, escape(attack.how), outcome if attack.blocked else "[red]GOT THROUGH")
    console.print(attacks)

    trial = result.override
    steps = [
        ("before", "refused", trial.denied_before),
        (f"allowed ({trial.push_ms:.0f} ms)", "answered", trial.allowed_after),
        ("expired", "refused", trial.denied_after_expiry),
        ("the open connection", "cut", trial.cut_after_expiry),
    ]
    said = " · ".join(f"{step}: {word if met else f'[red]not {word}[/]'}" for step, word, met in steps)
    console.print(f"[bold]The override[/] {_name(trial.edge)}: {said}")

    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("services, instances", f"{result.services}, {result.instances}"),
        ("mutual TLS", f"{result.mtls_ratio:.0%} of {result.mtls_connections} connections between meshed pods"),
        ("refused by mistake", f"{result.false_denies}"),
        ("requests", f"{result.requests}, of which {result.failed_requests} failed"),
        ("NetworkPolicies", f"{result.network_policies}"),
        ("time", f"{result.seconds:.0f} s"),
    ):
        facts.add_row(name, value)
    console.print(facts)
    for limit in result.cannot_show:
        console.print(f"[yellow]Not shown here:[/] {escape(limit)}")
    failures = result.failures()
    if failures:
        console.print(Panel(escape("\n".join(failures)), title="This run failed", border_style="red"))
    else:
        console.print("[bold green]Everything that was expected works, and nothing else does.")


def _name(edge: EdgeKey) -> str:
    return f"{edge.source} → {edge.destination}:{edge.port}"
