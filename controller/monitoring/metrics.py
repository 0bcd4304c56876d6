"""The controller's state as numbers, in Prometheus' text format 0.0.4.

Pure: a page is made of one view and of what the process says of itself. Labels have values from closed sets, and no
workload, instance or person is named: the endpoint is open to the cluster.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from controller.cluster_state import PROBLEM_KINDS, ClusterState, WatchState
from controller.learner import EdgeState
from controller.view import OverrideState, View
from graph.model import Mode, Origin, Verdict

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

type Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What the kernel says of this process. Times in seconds, memory in bytes.

    :param started_at: since the epoch
    :param blocks: of memory that are in use (``sys.getallocatedblocks``), without those that the allocator keeps
    """

    cpu_seconds: float
    resident_bytes: int
    open_files: int
    started_at: float
    blocks: int


def page(view: View, version: str, process: ProcessState, cluster: ClusterState | None = None) -> str:
    """The whole page.

    :param cluster: None without one
    """
    return "".join(f"{line}\n" for line in _lines(view, version, process, cluster))


def _lines(view: View, version: str, process: ProcessState, cluster: ClusterState | None) -> Iterator[str]:
    yield from _family("hedgerow_controller_build_info", "gauge", "The version that runs.", [({"version": version}, 1)])
    yield from _one("hedgerow_controller_ready", "gauge", "1 when the stored state has been loaded.", int(view.ready))
    yield from _one(
        "hedgerow_controller_changes_total", "counter", "Stored changes, also over restarts.", view.generation
    )
    yield from _inventory(view)
    yield from _sidecars(view)
    yield from _policy(view)
    entries = view.audit_head.sequence if view.audit_head else 0
    yield from _one("hedgerow_controller_audit_entries_total", "counter", "Entries of the audit log.", entries)
    if cluster is not None:
        yield from _cluster(cluster)
    text = "Blocks of memory that are in use."
    yield from _one("hedgerow_controller_memory_blocks", "gauge", text, process.blocks)
    yield from _one("process_cpu_seconds_total", "counter", "User and system time.", process.cpu_seconds)
    yield from _one("process_resident_memory_bytes", "gauge", "Resident memory.", process.resident_bytes)
    yield from _one("process_open_fds", "gauge", "Open descriptors.", process.open_files)
    yield from _one("process_start_time_seconds", "gauge", "When it started, since the epoch.", process.started_at)


def _inventory(view: View) -> Iterator[str]:
    inventory = view.inventory
    meshed = Counter(workload.meshed for workload in inventory.workloads.values())
    ready = Counter(instance.ready for instance in inventory.instances.values())
    yield from _family(
        "hedgerow_controller_workloads",
        "gauge",
        "Workloads, by whether they have sidecars.",
        _flagged("meshed", meshed),
    )
    yield from _family("hedgerow_controller_instances", "gauge", "Replicas, by readiness.", _flagged("ready", ready))
    yield from _one("hedgerow_controller_services", "gauge", "Services.", len(inventory.services))


def _sidecars(view: View) -> Iterator[str]:
    sidecars = view.sidecars.values()
    connected = Counter(sidecar.connected for sidecar in sidecars)
    yield from _family(
        "hedgerow_controller_sidecars", "gauge", "Sidecars that were heard of.", _flagged("connected", connected)
    )
    live = [sidecar for sidecar in sidecars if sidecar.connected]
    behind = sum(sidecar.held_version < sidecar.pushed_version for sidecar in live)
    text = "Connected sidecars that have not acknowledged what they were sent last."
    yield from _one("hedgerow_controller_sidecars_behind", "gauge", text, behind)
    text = "Connected sidecars that refused the last policy."
    yield from _one("hedgerow_controller_sidecars_refusing", "gauge", text, sum(bool(sidecar.nack) for sidecar in live))
    text = "Flows that the sidecars now known dropped because they found no room."
    yield from _one("hedgerow_controller_flows_shed", "gauge", text, sum(sidecar.shed for sidecar in sidecars))
    text = "Flows that the sidecars now known reported and were not entitled to."
    yield from _one("hedgerow_controller_flows_refused", "gauge", text, sum(sidecar.refused for sidecar in sidecars))


def _policy(view: View) -> Iterator[str]:
    states = Counter(str(edge.state) for edge in view.edges.values())
    yield from _family(
        "hedgerow_controller_edges",
        "gauge",
        "Edges by what the learner thinks of them.",
        _counted("state", EdgeState, states),
    )
    refused = sum(edge.denied > 0 for edge in view.traffic.values())
    yield from _one("hedgerow_controller_edges_refused", "gauge", "Edges on which something was refused.", refused)
    rules = Counter((str(rule.origin), str(rule.effect)) for rule in view.rules.values())
    both = [
        ({"origin": str(origin), "effect": str(effect)}, rules[str(origin), str(effect)])
        for origin in Origin
        for effect in Verdict
    ]
    yield from _family("hedgerow_controller_rules", "gauge", "Rules in force.", both)
    overrides = Counter(str(override.state(view.at)) for override in view.overrides.values())
    yield from _family(
        "hedgerow_controller_overrides", "gauge", "What people decided.", _counted("state", OverrideState, overrides)
    )
    modes: Counter[tuple[str, str]] = Counter()
    for mode in view.modes.values():
        modes["inbound", str(mode.inbound)] += 1
        modes["outbound", str(mode.outbound)] += 1
    each = [
        ({"direction": direction, "mode": str(mode)}, modes[direction, str(mode)])
        for direction in ("inbound", "outbound")
        for mode in Mode
    ]
    yield from _family("hedgerow_controller_workload_modes", "gauge", "Workloads by mode.", each)


#: Of each kind of object that is followed: the metric, its type, what it says, and where that is from.
_WATCHED: tuple[tuple[str, str, str, Callable[[WatchState], float | None]], ...] = (
    ("objects", "gauge", "Objects that are held.", lambda watch: watch.objects),
    ("watch_events_total", "counter", "Changes that the API server told of.", lambda watch: watch.events),
    ("watch_lists_total", "counter", "How often all of them were read.", lambda watch: watch.lists),
    ("watches_total", "counter", "How often a watch began.", lambda watch: watch.watches),
    ("watch_expired_total", "counter", "Watches that were too old to go on.", lambda watch: watch.expired),
    ("unreadable_total", "counter", "Objects that were passed over.", lambda watch: watch.unreadable),
    (
        "watch_quiet_seconds",
        "gauge",
        "Since the API server last said anything, bookmarks included.",
        lambda watch: watch.heard,
    ),
)


def _cluster(cluster: ClusterState) -> Iterator[str]:
    prefix = "hedgerow_controller_cluster"
    synced: list[tuple[Labels, float]] = [({"part": part.name}, int(part.synced)) for part in cluster.parts]
    yield from _family(f"{prefix}_part_synced", "gauge", "1 when it has done its first round.", synced)
    failures: list[tuple[Labels, float]] = [({"part": part.name}, part.failures) for part in cluster.parts]
    yield from _family(f"{prefix}_part_failures_total", "counter", "How often it was begun again.", failures)
    for name, kind, text, value in _WATCHED:
        found = ((watch.resource, value(watch)) for watch in cluster.watches)
        samples: list[tuple[Labels, float]] = [({"resource": of}, is_) for of, is_ in found if is_ is not None]
        yield from _family(f"{prefix}_{name}", kind, text, samples)
    text = "What can not be attributed or followed, by what it is about."
    yield from _family(f"{prefix}_problems", "gauge", text, _counted("about", PROBLEM_KINDS, Counter(cluster.troubles)))
    text = "Inventories that were put together."
    yield from _one(f"{prefix}_inventories_total", "counter", text, cluster.inventories)
    text = "What the last inventory took to put together and to take."
    yield from _one(f"{prefix}_inventory_seconds", "gauge", text, cluster.seconds)


def _flagged(label: str, counts: Mapping[bool, int]) -> list[tuple[Labels, float]]:
    return [({label: str(value).lower()}, counts[value]) for value in (True, False)]


def _counted(label: str, values: Iterable[object], counts: Mapping[str, int]) -> list[tuple[Labels, float]]:
    return [({label: str(value)}, counts[str(value)]) for value in values]


def _one(name: str, kind: str, text: str, value: float) -> Iterator[str]:
    return _family(name, kind, text, [({}, value)])


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        inner = ",".join(f'{key}="{_escaped(word)}"' for key, word in labels.items())
        shown = f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        yield f"{name}{{{inner}}} {shown}" if inner else f"{name} {shown}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
