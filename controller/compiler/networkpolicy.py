"""``networking.k8s.io/v1`` NetworkPolicies from the intermediate form: one a workload, closed in both directions.

They are made from what the form *allows*, so that a denied peer is left out wherever that can be said. Ports are the
pods' own, as a NetworkPolicy sees traffic behind the service's translation. ``learn`` and ``audit`` make no difference
here: the policy is the fence as it will be. No policy is made for the controller and for ``kube-system``: what they
need was not observed, and cutting it cuts the cluster.

A host has no addresses that could be written down: its ports are opened to all addresses outside the cluster's own
networks, or to all there are where those are not known. It is the sidecar that holds to the name. The policy says so
itself, in an annotation, to whoever reads it on the cluster.

A peer is a namespace and pods of it in one entry; two entries would mean "or". Source: Kubernetes API reference,
NetworkPolicy v1, and "Network Policies" in the Kubernetes concepts.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.compiler.baseline import CLUSTER_DNS, CONTROL_PLANE
from controller.compiler.evaluate import Cell, Side, address_of, intervals
from controller.compiler.form import Form, Subject, parsed
from controller.compiler.labels import PodSelector
from controller.compiler.ports import ALL_PORTS, PortSpace
from graph.model import Direction, Verdict, WorkloadRef

API_VERSION = "networking.k8s.io/v1"
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
MANAGED_BY = ("app.kubernetes.io/managed-by", "hedgerow")
WORKLOAD_ANNOTATION = "hedgerow.dev/workload"
GENERATION_ANNOTATION = "hedgerow.dev/generation"
#: What of the rules this policy can not say, and the sidecars hold.
NAMES_ANNOTATION = "hedgerow.dev/names"
_NAMES_SHOWN = 20
MAX_NAME = 253  # RFC 1123 subdomain, as Kubernetes limits names

type Manifest = dict[str, object]


def fenced(form: Form, subject: Subject) -> bool:
    """Whether a workload gets a policy."""
    controller = form.input.control_plane or CONTROL_PLANE
    return subject.listed and subject.ref != controller and subject.ref.namespace != CLUSTER_DNS.namespace


def policy_name(workload: str) -> str:
    """``hedgerow-<workload>``; a name that would be too long is cut and ends in a hash of the whole."""
    name = f"hedgerow-{workload}"
    if len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(workload.encode()).hexdigest()[:16]
    return f"{name[: MAX_NAME - 17].rstrip('-.')}-{digest}"


def policy_of(form: Form, subject: Subject, selectors: Mapping[WorkloadRef, PodSelector]) -> Manifest:
    """The policy of one workload."""
    inbound, outbound = (Side(form, subject, direction) for direction in Direction)
    ids = sorted({clause.rule.id for side in (inbound, outbound) for clause in side.clauses})
    return {
        "apiVersion": API_VERSION,
        "kind": "NetworkPolicy",
        "metadata": {
            "name": policy_name(subject.ref.name),
            "namespace": subject.ref.namespace,
            "labels": dict([MANAGED_BY]),
            "annotations": {
                WORKLOAD_ANNOTATION: str(subject.ref),
                GENERATION_ANNOTATION: hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16],
                **_names(outbound),
            },
        },
        "spec": {
            "podSelector": selectors[subject.ref].manifest(),
            "policyTypes": ["Ingress", "Egress"],
            "ingress": _entries(inbound, form.subjects.values(), selectors),
            "egress": _entries(outbound, form.subjects.values(), selectors),
        },
    }


def _names(side: Side) -> dict[str, str]:
    """The annotation about hosts, where ports are open for some."""
    hosts = sorted(
        {clause.peer.host for clause in side.clauses if clause.peer.host and clause.rule.effect is Verdict.ALLOW}
    )
    if not hosts:
        return {}
    more = f" and {len(hosts) - _NAMES_SHOWN} more" if len(hosts) > _NAMES_SHOWN else ""
    where = "outside the cluster's networks" if side.form.networks else "there is"
    return {
        NAMES_ANNOTATION: f"{', '.join(hosts[:_NAMES_SHOWN])}{more}: a NetworkPolicy knows no names, so that it opens "
        f"their ports to every address {where}; the sidecar holds to the names"
    }


@dataclass(frozen=True, slots=True)
class _Block:
    """Addresses from ``first`` to ``last``, as numbers, and the port cells that are open to all of them."""

    version: int
    first: int
    last: int
    mask: int

    def holds(self, address: str) -> bool:
        if not address:
            return False
        known = parsed(address)
        return known.version == self.version and self.first <= int(known) <= self.last

    def networks(self) -> list[str]:
        ends = parsed(address_of(self.version, self.first)), parsed(address_of(self.version, self.last))
        return [str(block) for block in ipaddress.summarize_address_range(*ends)]


def _entries(side: Side, subjects: Iterable[Subject], selectors: Mapping[WorkloadRef, PodSelector]) -> list[Manifest]:
    """What one side allows, peers with the same ports in one entry."""
    anybody = side.some(Cell())
    blocks = _blocks(side, anybody)
    peers: dict[int, list[Manifest]] = {}
    for block in blocks:
        peers.setdefault(block.mask, []).extend({"ipBlock": {"cidr": cidr}} for cidr in block.networks())
    for subject in subjects:
        mask = _by_name(side, subject, blocks)
        if mask & ~anybody:
            peers.setdefault(mask, []).append(_peer(subject.ref, selectors[subject.ref]))
    entries: list[Manifest] = [{"ports": port_entries(side.space, anybody)}] if anybody else []
    key = "from" if side.inbound else "to"
    for mask, members in peers.items():
        distinct = {_text(member): member for member in members}  # twins have the same selector
        entries.append(
            {key: [distinct[text] for text in sorted(distinct)], "ports": port_entries(side.space, mask, known=anybody)}
        )
    return sorted(entries, key=_text)


def _peer(ref: WorkloadRef, selector: PodSelector) -> Manifest:
    return {
        "namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: ref.namespace}},
        "podSelector": selector.manifest(),
    }


def _by_name(side: Side, subject: Subject, blocks: list[_Block]) -> int:
    """What has to be open to a workload by its labels: what rules about identities open (an address may change), and
    whatever else is open to it that no address block opens already."""
    mask = 0
    for cell in side.cells_of(subject):
        covered = 0
        for block in blocks:
            covered |= block.mask if block.holds(cell.address) else 0
        mask |= side.some(cell, by_name=True) | (side.some(cell) & ~covered)
    return mask


def _blocks(side: Side, anybody: int) -> list[_Block]:
    """What is open to addresses, whoever is there, beyond what is open to anybody. Neighbours are joined."""
    blocks: list[_Block] = []
    for version, first, last in intervals(side.networks()):
        mask = 0
        for host in ("", *side.hosts):
            mask |= side.some(Cell(None, address_of(version, first), host=host))
        if not mask & ~anybody:
            continue
        before = blocks[-1] if blocks else None
        if before and (before.version, before.last + 1, before.mask) == (version, first, mask):
            blocks[-1] = _Block(version, before.first, last, mask)
        else:
            blocks.append(_Block(version, first, last, mask))
    return blocks


def port_entries(space: PortSpace, mask: int, *, known: int = 0) -> list[Manifest]:
    """A mask as NetworkPolicyPort objects, without the ranges that are in ``known`` as a whole."""
    entries: list[Manifest] = []
    for protocol, ports in space.ranges(mask):
        if not space.mask(protocol, (ports,)) & ~known:
            continue
        entry: Manifest = {"protocol": str(protocol)}
        if ports != ALL_PORTS:
            entry["port"] = ports.first
            if ports.last != ports.first:
                entry["endPort"] = ports.last
        entries.append(entry)
    return entries


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest, sort_keys=True)
