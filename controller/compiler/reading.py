"""Reads NetworkPolicies back, as a cluster would, to tell what they allow. It knows nothing of how they were made.

Source: Kubernetes API reference, NetworkPolicy v1. A pod that no policy selects for a direction is open in it; one that
is selected is open to the union of what the entries say. An entry without peers speaks of everybody, one without ports
of every port; a port without a protocol is TCP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from controller.compiler.errors import CompileError
from controller.compiler.evaluate import Cell
from controller.compiler.form import Subject, within
from controller.compiler.networkpolicy import NAMESPACE_LABEL
from controller.compiler.ports import PortSpace
from graph.model import Direction, PortRange, Protocol

type Policy = Mapping[str, Any]


def ranges_of(policies: Iterable[Policy]) -> list[tuple[Protocol, PortRange]]:
    """Every range of ports that the policies name."""
    return [
        _ports(entry)
        for policy in policies
        for key in ("ingress", "egress")
        for rule in policy["spec"].get(key, ())
        for entry in rule.get("ports", ())
        if "port" in entry
    ]


def blocks_of(policies: Iterable[Policy]) -> list[str]:
    """Every network that the policies name."""
    found: set[str] = set()
    for policy in policies:
        for key, side in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(key, ()):
                for block in (peer["ipBlock"] for peer in rule.get(side, ()) if "ipBlock" in peer):
                    found |= {block["cidr"], *block.get("except", ())}
    return sorted(found)


def select(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector picks these labels.

    :raises CompileError: on an operator that Kubernetes does not have
    """
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", ()):
        value, values = labels.get(expression["key"]), expression.get("values", ())
        match expression["operator"]:
            case "Exists":
                holds = value is not None
            case "DoesNotExist":
                holds = value is None
            case "In":
                holds = value in values
            case "NotIn":
                holds = value not in values
            case other:
                raise CompileError(f"{other!r} is no operator", field="matchExpressions", remedy="use In, NotIn, …")
        if not holds:
            return False
    return True


class Reading:
    """What the policies that apply to one workload's pods allow them."""

    def __init__(self, policies: Iterable[Policy], subject: Subject, direction: Direction, space: PortSpace) -> None:
        inbound = direction is Direction.INBOUND
        kind, key, self._peers_key = ("Ingress", "ingress", "from") if inbound else ("Egress", "egress", "to")
        applying = [
            policy
            for policy in policies
            if policy["metadata"]["namespace"] == subject.ref.namespace
            and kind in policy["spec"]["policyTypes"]
            and select(policy["spec"]["podSelector"], dict(subject.labels))
        ]
        self._open = space.full if not applying else 0
        self._namespace = subject.ref.namespace
        self._entries: list[tuple[Sequence[Mapping[str, Any]], int]] = [
            (entry.get(self._peers_key, ()), _mask(entry, space))
            for policy in applying
            for entry in policy["spec"].get(key, ())
        ]

    def allowed(self, cell: Cell) -> int:
        """The port cells that are open to a peer."""
        mask = self._open
        for peers, ports in self._entries:
            if ports & ~mask and (not peers or any(self._is(peer, cell) for peer in peers)):
                mask |= ports
        return mask

    def _is(self, peer: Mapping[str, Any], cell: Cell) -> bool:
        if "ipBlock" in peer:
            block = peer["ipBlock"]
            return within(cell.address, block["cidr"]) and not any(
                within(cell.address, hole) for hole in block.get("except", ())
            )
        if cell.subject is None:
            return False
        if "namespaceSelector" in peer:
            if not select(peer["namespaceSelector"], {NAMESPACE_LABEL: cell.subject.ref.namespace}):
                return False
        elif cell.subject.ref.namespace != self._namespace:
            return False
        return select(peer.get("podSelector", {}), dict(cell.subject.labels))


def _ports(entry: Mapping[str, Any]) -> tuple[Protocol, PortRange]:
    first = entry["port"]
    if not isinstance(first, int):
        raise CompileError(f"{first!r} is a named port", field="ports", remedy="policies are written with numbers")
    return Protocol(entry.get("protocol", "TCP")), PortRange(first, entry.get("endPort", first))


def _mask(entry: Mapping[str, Any], space: PortSpace) -> int:
    if not entry.get("ports"):
        return space.full
    mask = 0
    for port in entry["ports"]:
        if "port" in port:
            protocol, ports = _ports(port)
            mask |= space.mask(protocol, (ports,))
        else:
            mask |= space.mask(Protocol(port.get("protocol", "TCP")))
    return mask
