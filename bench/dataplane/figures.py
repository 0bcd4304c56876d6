"""Ratios of figures that were taken in the same round, and the JSON document made of them. Pure.

A machine's speed changes in phases of seconds, so figures are compared within a round only; the median of the rounds'
ratios is what a target is held against.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.dataplane.measures import AGAIN, DIRECT, OURS, Better, Measure, Requirement

#: Figures by pair, one a round.
type Figures = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours ÷ theirs over all rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Ratio:
        """:raises ValueError: without a value"""
        kept = list(values)
        if not kept:
            raise ValueError("no ratio without a round")
        return cls(statistics.median(kept), min(kept), max(kept))

    def document(self) -> dict[str, float]:
        return {"median": round(self.median, 4), "min": round(self.least, 4), "max": round(self.most, 4)}


def best(peers: Figures, names: Sequence[str], better: Better) -> list[float]:
    """The best figure of ``names`` in each round.

    :raises ValueError: when one of them has another number of rounds, or is not there
    """
    missing = [name for name in names if name not in peers]
    if missing:
        raise ValueError(f"no figures of {', '.join(missing)}")
    choose = max if better is Better.HIGHER else min
    return [choose(values) for values in zip(*(peers[name] for name in names), strict=True)]


def compare(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Ours ÷ theirs, round by round.

    :raises ValueError: when they have different numbers of rounds, or a figure is not above 0: then nothing was
        measured, and a ratio would be invented
    """
    if any(value <= 0 for value in (*ours, *theirs)):
        raise ValueError("a figure that is not above 0 is none")
    return Ratio.of(mine / other for mine, other in zip(ours, theirs, strict=True))


def holds(ratio: Ratio, requirement: Requirement, better: Better) -> bool:
    if better is Better.HIGHER:
        return ratio.median >= requirement.factor
    return ratio.median <= requirement.factor


def row(measure: Measure, figures: Figures, cpu: Figures | None = None) -> dict[str, Any]:
    """The document of one measure.

    :param figures: ours as :data:`~bench.dataplane.measures.OURS`; what no requirement speaks of is kept as a reference
    :param cpu: microseconds of processor time for a request on each side, in the same slices. They are kept beside: a
        busy machine makes every request late, and takes little of the time that it costs
    """
    ours = figures[OURS]
    compared: list[dict[str, Any]] = []
    for requirement in measure.requirements:
        ratio = compare(ours, best(figures, requirement.against, measure.better))
        compared.append(
            {
                "against": list(requirement.against),
                "ratio": ratio.document(),
                "target": requirement.factor,
                "met": holds(ratio, requirement, measure.better),
            }
        )
    named = {name for requirement in measure.requirements for name in requirement.against}
    document = _head(measure) | {
        "ours": list(ours),
        "peers": {name: list(values) for name, values in figures.items() if name in named},
        "ratio": compared[0]["ratio"],
        "target": compared[0]["target"],
        "met": all(each["met"] for each in compared),
        "requirements": compared,
    }
    if AGAIN in figures:
        document["noise"] = compare(ours, figures[AGAIN]).document()
    if DIRECT in figures:
        document["direct"] = list(figures[DIRECT])
    if cpu:
        document["cpu"] = {name: list(values) for name, values in cpu.items() if name == OURS or name in named}
    return document


def skipped(measure: Measure, why: str) -> dict[str, Any]:
    """The document of a measure that could not be taken; it counts as not met."""
    return _head(measure) | {
        "ours": [],
        "peers": {},
        "ratio": None,
        "target": measure.requirements[0].factor,
        "met": False,
        "skipped": why,
    }


def _head(measure: Measure) -> dict[str, Any]:
    return {"name": measure.name, "unit": measure.unit, "better": str(measure.better)}


def document(
    commit: str, machine: Mapping[str, Any], rounds: int, rows: Sequence[Mapping[str, Any]], *, capture: bool
) -> dict[str, Any]:
    """The whole document; the noise floor is the widest of the rows' own.

    :param capture: whether peers were captured as ours are
    """
    floors = [each["noise"] for each in rows if "noise" in each]
    found: dict[str, Any] = {
        "commit": commit,
        "machine": dict(machine),
        "capture": "equal" if capture else "ours-only",
        "rounds": rounds,
        "measures": list(rows),
    }
    if floors:
        found["noise"] = {"min": min(each["min"] for each in floors), "max": max(each["max"] for each in floors)}
    return found


def table(document: Mapping[str, Any]) -> str:
    """The document for people, one line a requirement."""
    head = f"{'measure':<16} {'ours':>12} {'best':>12} {'ratio':>7} {'min–max':>13} {'target':>8}"
    lines = [f"{head}  {'':7} {'noise':<11} cpu"]
    for each in document["measures"]:
        sign = "≥" if each["better"] == "higher" else "≤"
        if "skipped" in each:
            lines.append(f"{each['name']:<16} skipped: {each['skipped']}")
            continue
        noise = f"{each['noise']['min']:.2f}–{each['noise']['max']:.2f}" if "noise" in each else "–"
        for number, requirement in enumerate(each["requirements"]):
            medians = {name: statistics.median(each["peers"][name]) for name in requirement["against"]}
            choose = max if each["better"] == "higher" else min
            name = choose(medians, key=lambda one: medians[one])
            ratio = requirement["ratio"]
            ours = _human(statistics.median(each["ours"]), each["unit"])
            cpu = _cpu(each, requirement["against"])
            lines.append(
                f"{each['name'] if number == 0 else '':<16} {ours:>12} "
                f"{_human(medians[name], each['unit']):>12} {ratio['median']:>7.2f} "
                f"{ratio['min']:>6.2f}–{ratio['max']:<6.2f} {sign + format(requirement['target'], 'g'):>8}  "
                f"{'met' if requirement['met'] else 'NOT MET':7} {noise if number == 0 else '':<11} {cpu:<5} {name}"
            )
    return "\n".join(lines)


def _cpu(row: Mapping[str, Any], against: Sequence[str]) -> str:
    """Processor time for a request, ours ÷ that of the peer that needs least."""
    cpu = row.get("cpu")
    if cpu is None or any(name not in cpu for name in against):
        return "–"
    return f"{compare(cpu[OURS], best(cpu, against, Better.LOWER)).median:.2f}"


def _human(value: float, unit: str) -> str:
    if unit.startswith("bytes"):
        return f"{value / 1e6:,.1f} MB" + unit.removeprefix("bytes")
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.3g}"
