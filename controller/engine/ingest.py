"""Flow batches: whose word counts, for what, and once.

A sidecar is believed about connections of its own workload only: as the source when it says ``outbound``, as the
destination when it says ``inbound``. What is asked over them, only the destination's sidecar judges, so only that one
reports it, and of hosts outside that its workload inspects the source's; it is counted and never teaches anything.
Everything else in a report is refused, counted, and audited (at most once a minute for each sidecar, so that nobody can
fill the log). Clocks are not believed: times after now are now.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from controller.engine.state import State
from controller.engine.timers import Due
from controller.errors import IngestError
from controller.inventory import Inventory
from controller.learner import observe, step
from controller.store import Position
from controller.view import SidecarState
from graph.flow import Flow
from graph.model import Direction, Instance, Mode, WorkloadRef
from graph.operations import MAX_LENGTH
from graph.policy import Reason

MAX_FLOWS = 50_000
MAX_BOOT_ID = 128
#: The largest integer that the store keeps.
MAX_COUNT = 2**63 - 1
#: How many boots of one instance are remembered.
BOOTS = 4


def key_of(instance: Instance) -> str:
    """The name of an instance in :attr:`controller.view.View.sidecars`."""
    return f"{instance.workload.namespace}/{instance.name}"


def ingest(
    state: State,
    now: float,
    instance: Instance,
    boot_id: str,
    sequence: int,
    policy_version: int,
    flows: Sequence[Flow],
    shed: int,
) -> int:
    """Count a batch; see :meth:`controller.engine.Engine.ingest`."""
    _check_batch(boot_id, sequence, policy_version, flows, shed)
    key = key_of(instance)
    position = state.positions.get(key, {}).get(boot_id)
    if position is not None and sequence <= position.sequence:
        return position.sequence
    refused: dict[str, int] = {}
    accepted = []
    for flow in flows:
        judged = judge(flow, instance, state.inventory, now, state.settings.oldest_flow)
        if isinstance(judged, str):
            refused[judged] = refused.get(judged, 0) + 1
        else:
            accepted.append(judged)
    state.graph.ingest(accepted, now)
    for flow in accepted:
        if not flow.operation:
            _learn(state, flow, now)
    state.flows.extend(accepted)
    state.put_position(key, boot_id, Position(sequence, now))
    if position is None:
        _forget_old_boots(state, key)
    _note_sidecar(state, key, instance, now, sum(refused.values()), shed)
    if refused:
        held = state.refusals.setdefault(key, {})
        for reason, times in refused.items():
            held[reason] = held.get(reason, 0) + times
        state.timers.at(now, Due.REFUSALS, key)
    return sequence


def judge(flow: Flow, instance: Instance, inventory: Inventory, now: float, oldest: float) -> Flow | str:
    """The flow as it counts, with addresses attributed to workloads; or why it is refused, in one word."""
    source = inventory.attributed(flow.source)
    destination, port = _attributed_destination(flow, inventory)
    outbound = flow.direction is Direction.OUTBOUND
    if (source if outbound else destination) != instance.workload:
        return "not-its-end"
    if source.host:
        return "source-is-a-host"  # nobody is called from a name
    other = destination if outbound else source
    for ref in (instance.workload, other):
        if not ref.is_external and ref not in inventory.workloads:
            return "unknown-workload"
    counters = (flow.connections, flow.failed, flow.bytes_sent, flow.bytes_received)
    if not 1 <= port <= 65535 or not all(0 <= count <= MAX_COUNT for count in (*counters, flow.requests)):
        return "out-of-range"
    if flow.operation or flow.requests:
        wrong = _bad_operation(flow)
        if wrong or (outbound and not other.is_external):
            return wrong or "operation-of-another-end"
    if not (math.isfinite(flow.first_seen) and math.isfinite(flow.last_seen)):
        return "out-of-range"
    last = min(max(flow.last_seen, now - oldest), now)
    first = min(max(flow.first_seen, now - oldest), last)
    return replace(
        flow,
        source=source,
        destination=destination,
        port=port,
        reporter=instance.name,
        first_seen=first,
        last_seen=last,
    )


def _bad_operation(flow: Flow) -> str:
    """What is wrong with a report of requests, in one word."""
    name = flow.operation
    if not 0 < len(name) <= MAX_LENGTH or not name.isprintable() or name != name.strip():
        return "bad-operation"
    moved = flow.connections or flow.failed or flow.bytes_sent or flow.bytes_received
    return "mixed-counters" if moved or not flow.requests else ""


def _attributed_destination(flow: Flow, inventory: Inventory) -> tuple[WorkloadRef, int]:
    """The workload behind the destination; a service's port becomes that of its instances."""
    destination = inventory.attributed(flow.destination)
    service = inventory.service_at(flow.destination.name) if flow.destination.is_external else None
    if service is not None:
        for entry in service.ports:
            if entry.port == flow.port and entry.protocol is flow.protocol:
                return destination, entry.target_port
    return destination, flow.port


def _check_batch(boot_id: str, sequence: int, policy_version: int, flows: Sequence[Flow], shed: int) -> None:
    def refuse(field: str, problem: str, remedy: str) -> IngestError:
        return IngestError(problem, field=field, remedy=remedy)

    if not boot_id or len(boot_id) > MAX_BOOT_ID or not boot_id.isprintable():
        raise refuse("boot_id", f"not 1 to {MAX_BOOT_ID} printable characters", "send a random id of this boot")
    if not 1 <= sequence <= MAX_COUNT:
        raise refuse("sequence", f"{sequence} is out of range", "count batches from 1 within a boot")
    if not 0 <= policy_version <= MAX_COUNT:
        raise refuse("policy_version", f"{policy_version} is out of range", "send the version that is held, or 0")
    if len(flows) > MAX_FLOWS:
        raise refuse("flows", f"{len(flows)} flows in one batch", f"send at most {MAX_FLOWS}")
    if not 0 <= shed <= MAX_COUNT:
        raise refuse("shed_flows", f"{shed} is out of range", "send how many flows were dropped, or 0")


def _learn(state: State, flow: Flow, now: float) -> None:
    if _contradicts_mode(state, flow):
        return
    before = state.edges.get(flow.edge)
    if before is None and state.graph.edge(flow.edge) is None:
        return  # beyond the graph's bounds: counted there as shed, and never a reason to remember more here
    replicas = len(state.inventory.instances_of(flow.source))
    after = observe(before, flow, now, source_replicas=replicas)
    if after is None or after is before:
        return
    after = step(
        after, state.gate_of_edge(flow.edge), now, destination_meshed=destination_meshed(state, flow.destination)
    )
    state.put_edge(after, now)
    if before is None or before.state is not after.state:
        was = str(before.state) if before is not None else ""
        state.log(now, "learner", f"edge.{after.state}", str(after.key), was=was, evidence=list(after.evidence()))


def _contradicts_mode(state: State, flow: Flow) -> bool:
    """Whether a sidecar says that its mode let a connection through, and that mode is a closed one now: an old report,
    or a sidecar that was broken into and would have us open what is closed."""
    outbound = flow.direction is Direction.OUTBOUND
    mode = state.mode_of(flow.source if outbound else flow.destination)
    closed = (mode.outbound if outbound else mode.inbound) in (Mode.ENFORCE, Mode.QUARANTINE)
    return closed and flow.reason in (Reason.LEARNING, Reason.AUDIT)


def destination_meshed(state: State, ref: WorkloadRef) -> bool:
    """What the learner wants to know of the far end; in doubt True, which asks for the better proof."""
    workload = state.inventory.workloads.get(ref)
    return workload is None or workload.has_sidecar


def _forget_old_boots(state: State, key: str) -> None:
    boots = state.positions[key]
    for boot_id in sorted(boots, key=lambda boot_id: boots[boot_id].at, reverse=True)[BOOTS:]:
        state.put_position(key, boot_id, None)


def _note_sidecar(state: State, key: str, instance: Instance, now: float, refused: int, shed: int) -> None:
    present = state.sidecars.get(key) or SidecarState(instance.name, instance.workload)
    state.put_sidecar(key, replace(present, last_seen=now, refused=present.refused + refused, shed=present.shed + shed))
