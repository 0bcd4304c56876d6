"""What is to be done to the NetworkPolicies of one namespace, and in which order. Pure.

The governing rules:

1. Every policy that closes something carries in the same object what its pods always need: names, probes, the control
   plane. So no order in which policies arrive, and no half of a set, can cut these.
2. A direction of a workload is closed only when its mode there is ``enforce`` or ``quarantine``, and that of every
   other workload that the same policy would select.
3. Workloads' policies come first and are read back; only then comes the policy that denies to whatever is left. On the
   way out it is the reverse.
4. Ours is what carries our labels and was applied by our field manager. Nothing else is changed or deleted, also when
   it has the name of ours; then nothing of the set is applied.

Source: Kubernetes API reference, NetworkPolicy v1; "Server-Side Apply".
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.compiler.networkpolicy import API_VERSION, WORKLOAD_ANNOTATION
from controller.compiler.reading import select
from controller.kube.client import FIELD_MANAGER
from controller.kube.resources.kinds import OURS, is_ours
from controller.view import WorkloadMode
from graph.model import Direction, Mode, Workload, WorkloadRef

type Manifest = dict[str, Any]

#: Denies to every pod of the namespace what nothing allows. No policy of a workload is called so: those begin with
#: ``hedgerow-``.
DEFAULT_DENY = "hedgerow.default-deny"
#: Namespaces whose pods the cluster itself needs, and ours: no policies are applied there.
PROTECTED = frozenset({"kube-system", "kube-public", "kube-node-lease"})

_CLOSED = (Mode.ENFORCE, Mode.QUARANTINE)
_TYPES = {Direction.INBOUND: ("Ingress", "ingress"), Direction.OUTBOUND: ("Egress", "egress")}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The policies that a namespace should have.

    :param manifests: by name; the one that denies the rest is the last
    :param open: directions of workloads that stay open, and why, for people
    """

    manifests: Mapping[str, Manifest]
    open: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is different. Names, in the order in which things are to be done.

    :param create: and ``change``: to be applied; :data:`DEFAULT_DENY` is done after the rest was read back
    :param delete: ours that are no longer wanted; :data:`DEFAULT_DENY` is deleted before anything else
    :param conflicts: why nothing may be applied, for people
    """

    create: tuple[str, ...] = ()
    change: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()

    @property
    def idle(self) -> bool:
        return not (self.create or self.change or self.delete or self.conflicts)


def wanted_of(
    namespace: str,
    compiled: Iterable[Manifest],
    workloads: Iterable[Workload],
    modes: Mapping[WorkloadRef, WorkloadMode],
    whole: WorkloadMode | None,
) -> Wanted:
    """What a namespace should have.

    :param compiled: the proved policies of its workloads
    :param workloads: all of the namespace
    :param whole: how a workload that comes there is set; None when nothing says so
    """
    members = {workload.ref: workload for workload in workloads if workload.ref.namespace == namespace}
    manifests: dict[str, Manifest] = {}
    open_sides: list[str] = []
    covered: dict[Direction, set[WorkloadRef]] = {direction: set() for direction in Direction}
    for policy in compiled:
        ref = WorkloadRef.parse(policy["metadata"]["annotations"][WORKLOAD_ANNOTATION])
        selected = _selected(policy, members.values())
        closed = []
        for direction, (kind, _) in _TYPES.items():
            learning = [each for each in sorted({*selected, ref}) if _mode(modes, each, direction) not in _CLOSED]
            if not learning:
                closed.append(direction)
                covered[direction].add(ref)
            elif ref in learning:
                open_sides.append(f"{kind.lower()} of {ref}: its mode is {_mode(modes, ref, direction) or 'not set'}")
            else:
                open_sides.append(f"{kind.lower()} of {ref}: {learning[0]} has the same labels, and is not closed")
        if closed:
            manifests[policy["metadata"]["name"]] = _limited(policy, closed)
    sides = [
        direction
        for direction in Direction
        if whole is not None and _side(whole, direction) in _CLOSED and covered[direction] >= set(members)
    ]
    if sides:
        manifests[DEFAULT_DENY] = _default_deny(namespace, sides)
    return Wanted(manifests, tuple(sorted(open_sides)))


def _selected(policy: Manifest, workloads: Iterable[Workload]) -> set[WorkloadRef]:
    selector = policy["spec"]["podSelector"]
    return {workload.ref for workload in workloads if select(selector, dict(workload.labels))}


def _mode(modes: Mapping[WorkloadRef, WorkloadMode], ref: WorkloadRef, direction: Direction) -> Mode | None:
    mode = modes.get(ref)
    return None if mode is None else _side(mode, direction)


def _side(mode: WorkloadMode, direction: Direction) -> Mode:
    return mode.inbound if direction is Direction.INBOUND else mode.outbound


def _limited(policy: Manifest, closed: Sequence[Direction]) -> Manifest:
    """The policy for these directions alone: what it says of one does not depend on the other."""
    made = copy.deepcopy(policy)
    made["metadata"]["labels"] = {**made["metadata"].get("labels", {}), **OURS}
    for direction, (_, key) in _TYPES.items():
        if direction not in closed:
            made["spec"].pop(key, None)
    made["spec"]["policyTypes"] = [_TYPES[direction][0] for direction in Direction if direction in closed]
    return made


def _default_deny(namespace: str, sides: Sequence[Direction]) -> Manifest:
    """It allows nothing, so it adds nothing to what other policies allow: it only closes what none of them selects."""
    return {
        "apiVersion": API_VERSION,
        "kind": "NetworkPolicy",
        "metadata": {"name": DEFAULT_DENY, "namespace": namespace, "labels": dict(OURS)},
        "spec": {"podSelector": {}, "policyTypes": [_TYPES[direction][0] for direction in sides]},
    }


# --- against what there is


def plan_of(wanted: Mapping[str, Manifest], live: Mapping[str, Manifest]) -> Plan:
    """What to do, given all NetworkPolicies of the namespace by name."""
    create, change, conflicts = [], [], []
    for name, manifest in wanted.items():
        held = live.get(name)
        if held is None:
            create.append(name)
            continue
        if not made_by_us(held):
            conflicts.append(f"{name} is there and not ours: rename it, or delete it")
            continue
        rival = rival_of(held)
        if rival:
            conflicts.append(f"{rival} applies {name}, too: let it leave this NetworkPolicy to us, or set it to off")
        elif not says(held, manifest):
            change.append(name)
    delete = [name for name, held in live.items() if name not in wanted and is_ours(held) and made_by_us(held)]
    return Plan(_ordered(create), _ordered(change), tuple(reversed(_ordered(delete))), tuple(conflicts))


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """The one that denies the rest is the last."""
    return tuple(sorted(names, key=lambda name: (name == DEFAULT_DENY, name)))


def made_by_us(document: Mapping[str, Any]) -> bool:
    """Whether what it says was applied by our field manager."""
    return any(
        each.get("manager") == FIELD_MANAGER
        and each.get("operation") == "Apply"
        and not each.get("subresource")
        and "f:spec" in (each.get("fieldsV1") or {})
        for each in _managed(document)
    )


def rival_of(document: Mapping[str, Any]) -> str:
    """Another manager that applies what it says; empty when there is none. A person who edited it is none."""
    return next(
        (
            str(each.get("manager"))
            for each in _managed(document)
            if each.get("manager") != FIELD_MANAGER
            and each.get("operation") == "Apply"
            and "f:spec" in (each.get("fieldsV1") or {})
        ),
        "",
    )


def editor_of(document: Mapping[str, Any]) -> str:
    """Who changed it last without being us, as far as it says."""
    others = [each for each in _managed(document) if each.get("manager") != FIELD_MANAGER]
    latest = max(others, key=lambda each: str(each.get("time", "")), default=None)
    return "" if latest is None else str(latest.get("manager", ""))


def trimmed(document: dict[str, Any]) -> dict[str, Any]:
    """What is held of a policy: all of it, but of each manager's fields only whether they are in its specification.

    They take more room than the rest, and every policy of the cluster is held.
    """
    meta = document.get("metadata") or {}
    managed = [
        {**each, "fieldsV1": dict.fromkeys(fields) if isinstance(fields := each.get("fieldsV1"), dict) else {}}
        for each in meta.get("managedFields") or ()
        if isinstance(each, dict)
    ]
    return {**document, "metadata": {**meta, "managedFields": managed}}


def _managed(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return (document.get("metadata") or {}).get("managedFields") or ()


def says(held: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    """Whether a policy of the API server says what it should, and carries our marks."""
    meta, wanted = held["metadata"], manifest["metadata"]
    return all(
        (meta.get(part) or {}).get(key) == value
        for part in ("labels", "annotations")
        for key, value in (wanted.get(part) or {}).items()
    ) and normal(held["spec"]) == normal(manifest["spec"])


def normal(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec with what the API server writes into it: empty lists away, protocols named."""
    made: dict[str, Any] = {"podSelector": dict(spec.get("podSelector") or {})}
    made["policyTypes"] = sorted(spec.get("policyTypes") or ())
    for key, side in (("ingress", "from"), ("egress", "to")):
        made[key] = [
            {
                side: list(rule.get(side) or ()),
                "ports": [{"protocol": "TCP", **port} for port in rule.get("ports") or ()],
            }
            for rule in spec.get(key) or ()
        ]
    return made


# --- those of others


def foreign_of(
    namespace: str, live: Mapping[str, Manifest], wanted: Mapping[str, Manifest], workloads: Iterable[Workload]
) -> tuple[str, ...]:
    """Policies of others that select pods which ours close, and what they add: NetworkPolicies only ever add up."""
    members = tuple(workload for workload in workloads if workload.ref.namespace == namespace)
    closed: dict[str, set[WorkloadRef]] = {"Ingress": set(), "Egress": set()}
    for name, manifest in wanted.items():
        if name == DEFAULT_DENY:
            continue
        for kind in manifest["spec"]["policyTypes"]:
            closed[kind] |= _selected(manifest, members)
    said = []
    for name, held in sorted(live.items()):
        if name in wanted or (is_ours(held) and made_by_us(held)):
            continue
        for kind, key in (("Ingress", "ingress"), ("Egress", "egress")):
            common = sorted(_selected(held, members) & closed[kind]) if held["spec"].get(key) else []
            if common and kind in (held["spec"].get("policyTypes") or ()):
                shown = ", ".join(str(ref) for ref in common[:3]) + (", …" if len(common) > 3 else "")
                said.append(f"{name} adds {key} of {shown}")
    return tuple(said)
