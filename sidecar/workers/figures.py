"""Statistics and metrics of all workers, as one sidecar's.

What counts up never goes back: what a worker had counted when it ended is kept. What a worker tells is numbers;
anything else in it is left out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from sidecar.metrics import sums
from sidecar.metrics.istio import IstioMetrics
from sidecar.workers.frames import Broken, Frame, number
from sidecar.workers.process import WorkerProcess

#: Statistics that are added up, as they stand in what a worker tells; with whether they only ever grow.
_ADDED: Final[Mapping[str, bool]] = {
    "tunnels": False,
    "streams": False,
    "detection": True,
    "limits": True,
    "access_log": True,
    "telemetry": True,
    "egress_inspection": True,
}
_ALONE: Final[Mapping[str, bool]] = {"connections": False, "unbound_claims": True, "buffered": False}

type Numbers = Mapping[str, int | float]


class Figures:
    """Of all workers.

    :param istio: where their metrics are added up; None: nowhere
    """

    def __init__(self, istio: IstioMetrics | None, mode: str) -> None:
        self._istio = istio
        #: What the access log tells.
        self.mode = mode
        self._past: dict[str, int | float] = {}
        self._restarts: dict[int, int] = {}
        self._pages: dict[tuple[WorkerProcess, int], object] = {}

    def take(self, worker: WorkerProcess, frame: Frame) -> tuple[int, int]:
        """REPORT; its open connections, and all that it has heard of.

        :raises Broken: when it is none
        """
        stats, new = frame.head.get("stats"), frame.head.get("sums")
        if not isinstance(stats, dict) or not isinstance(new, dict):
            raise Broken("REPORT: no statistics")
        worker.stats = stats
        if self._istio is not None:
            try:
                sums.add(self._istio, new)
            except sums.NoSums as error:
                raise Broken(f"REPORT: {error}") from None
        flows = _numbers(stats.get("flows"))
        return int(flows.get("live", 0)), int(flows.get("records", 0))

    def ended(self, worker: WorkerProcess) -> None:
        """A worker has ended: keep what it had counted."""
        self._restarts[worker.index] = self._restarts.get(worker.index, -1) + 1
        for path, value in _flat(worker.stats, only_growing=True).items():
            self._past[path] = self._past.get(path, 0) + value
        for key in [key for key in self._pages if key[0] is worker]:
            del self._pages[key]

    def stats(self, workers: Mapping[int, WorkerProcess]) -> dict[str, object]:
        """As one data plane's, and what each worker does."""
        totals = dict(self._past)
        for worker in workers.values():
            for path, value in _flat(worker.stats).items():
                totals[path] = totals.get(path, 0) + value
        stats: dict[str, object] = {
            "tunnels": {"outbound": 0, "inbound": 0},
            "streams": {"outbound": 0, "inbound": 0},
            "connections": 0,
            "unbound_claims": 0,
            "buffered": 0,
        }
        for path, value in totals.items():
            section, _, name = path.partition(".")
            if name:
                held = stats.setdefault(section, {})
                assert isinstance(held, dict)
                held[name] = value
            else:
                stats[section] = value
        limits = stats.setdefault("limits", {})
        assert isinstance(limits, dict)
        limits["shedding"] = any(_section(worker, "limits").get("shedding") is True for worker in workers.values())
        stats["workers"] = [self._one(worker) for _, worker in sorted(workers.items())]
        return stats

    def _one(self, worker: WorkerProcess) -> dict[str, object]:
        told = {name: _numbers(worker.stats.get(name)) for name in ("flows", "tunnels", "process", "access_log")}
        return {
            "worker": worker.index,
            "process": worker.pid,
            "listening": worker.listening,
            "seconds": round(time.monotonic() - worker.began_at, 3),
            "starts": self._restarts.get(worker.index, -1) + 2,
            "connections": _numbers(worker.stats).get("connections", 0),
            "records": told["flows"].get("records", 0),
            "tunnels": told["tunnels"],
            "resident_bytes": told["process"].get("resident_bytes", 0),
            "cpu_seconds": told["process"].get("cpu_seconds", 0),
            "access_log": told["access_log"],
        }

    # pages

    def page(self, worker: WorkerProcess, frame: Frame) -> None:
        """SHOWN.

        :raises Broken: when it is none
        """
        if len(self._pages) < 64:
            self._pages[(worker, number(frame, "id"))] = frame.head.get("what")

    def shown(self, worker: WorkerProcess, asked: int) -> dict[str, object]:
        """What a worker has shown; an error when it did not in time."""
        page = self._pages.pop((worker, asked), None)
        return page if isinstance(page, dict) else {"error": "it did not answer in time"}


def _section(worker: WorkerProcess, name: str) -> Mapping[str, object]:
    section = worker.stats.get(name)
    return section if isinstance(section, dict) else {}


def _numbers(value: object) -> Numbers:
    if not isinstance(value, Mapping):
        return {}
    return {str(name): one for name, one in value.items() if isinstance(one, int | float) and not isinstance(one, bool)}


def _flat(stats: Mapping[str, object], *, only_growing: bool = False) -> dict[str, int | float]:
    flat: dict[str, int | float] = {}
    for section, growing in _ADDED.items():
        if growing or not only_growing:
            flat |= {f"{section}.{name}": value for name, value in _numbers(stats.get(section)).items()}
    for name, growing in _ALONE.items():
        if (growing or not only_growing) and name in (found := _numbers(stats)):
            flat[name] = found[name]
    return flat
