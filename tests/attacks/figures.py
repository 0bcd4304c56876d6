"""What came of the rounds of one attack, and what of it is judged. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20
#: What the sidecar may grow by while it is attacked, bytes.
GROWTH = 50 * MIB
#: How many times longer than without the attack a bystander's p99 may be.
RATIO = 2.0
#: Seconds of the sidecar's own processor time that its loop may be without a turn: a few slices are meant to be in one,
#: and a collection of garbage may be. It is 5 to 20 ms where the machine has others to serve too; what is not sliced at
#: all takes 200 when a thousand do it.
LONGEST = 0.1
#: Descriptors that may be there more than before: a connection to the application is kept for a while.
DESCRIPTORS = 2

#: Requests of bystanders in a round, at least.
ASKED = 10

type Window = tuple[float, float]
#: Whether past the sidecar, when, in how many seconds, whether at all.
type Answer = tuple[bool, float, float, bool]


def slow(taken: list[float], part: float = 0.99) -> float:
    """The slowest but one of a hundred, seconds."""
    taken = sorted(taken)
    return taken[int(part * (len(taken) - 1))]


@dataclass(slots=True)
class Found:
    """
    :param before: the sidecar's state; ``after`` when all is over
    :param quiet: rounds without the attack, from when to when; ``loud`` with it
    :param attack: what the attacker said, summed up
    :param longest: without a turn of the sidecar's loop, seconds of its processor time
    :param grown: bytes that the sidecar had more at the end of a round than before all
    """

    before: dict[str, Any]
    after: dict[str, Any] = field(default_factory=dict)
    quiet: list[Window] = field(default_factory=list)
    loud: list[Window] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    attack: dict[str, float] = field(default_factory=dict)
    longest: float = 0.0
    grown: int = 0

    def took_part(self, state: dict[str, Any], result: dict[str, float]) -> None:
        """One more attack is over."""
        self.longest = max(self.longest, state["longest"])
        self.grown = max(self.grown, state["rss"] - self.before["rss"])
        for key, value in result.items():
            self.attack[key] = self.attack.get(key, 0) + value

    def times(self, *names: str) -> int:
        """How often a limit of one of these names was met, whichever part of the sidecar counted it."""
        return sum(_counted(self.after, name) - _counted(self.before, name) for name in names)

    @property
    def counted(self) -> dict[str, int]:
        """Every limit that was met."""
        names = {name for kind in _KINDS for name in self.after[kind]}
        return {name: times for name in sorted(names) if (times := self.times(name))}

    def p99(self, windows: list[Window], *, past: bool) -> float:
        """Of the answers to requests of those times, seconds; ``past`` the sidecar or through it."""
        taken = [
            took
            for was_past, at, took, _ in self.answers
            if was_past is past and any(begin <= at < end for begin, end in windows)
        ]
        assert taken, "nobody asked"
        return slow(taken)

    @property
    def ratio(self) -> float:
        """How many times longer the bystander's p99 through the sidecar was with the attack than without."""
        return self.p99(self.loud, past=False) / self.p99(self.quiet, past=False)

    @property
    def machine(self) -> float:
        """The same of requests past the sidecar: what the attack took from the machine, and not from the sidecar."""
        return self.p99(self.loud, past=True) / self.p99(self.quiet, past=True)

    @property
    def suffered(self) -> float:
        """How many times longer the bystander's p99 was for what the attack did to the sidecar: less what it did to the
        machine, on which the attacker runs too. What helps those who ask past the sidecar is no excuse."""
        return self.ratio / max(1.0, self.machine)

    def document(self) -> dict[str, Any]:
        """For the results file: milliseconds and MiB. ``measures`` are those with a target, and whether it is met."""
        shown: dict[str, Any] = {
            "asked": len(self.answers),
            "unanswered": self.unanswered,
            "grown_mib": round(self.grown / MIB, 1),
            "longest_turn_ms": round(1000 * self.longest, 1),
            "descriptors": self.after["descriptors"] - self.before["descriptors"],
            "attack": self.attack,
            "counted": self.counted,
        }
        shown["measures"] = [measure("rss_growth", "MiB", self.grown / MIB, GROWTH / MIB, met=self.grown <= GROWTH)]
        if self.quiet:
            shown["measures"].append(measure("bystander_p99", "x", self.suffered, RATIO, met=self.suffered < RATIO))
            shown["loud_p99_ms"] = round(1000 * self.p99(self.loud, past=False), 2)
            shown["quiet_p99_ms"] = round(1000 * self.p99(self.quiet, past=False), 2)
            shown["ratio"] = round(self.ratio, 2)
            shown["ratio_past_the_sidecar"] = round(self.machine, 2)
        return shown

    @property
    def unanswered(self) -> int:
        return sum(not answered for *_, answered in self.answers)

    def check(self) -> None:
        """The bystander was served, and the sidecar neither grew nor stood still, and kept nothing."""
        assert len(self.answers) > ASKED, self.document()
        assert self.unanswered == 0, self.document()
        assert self.grown <= GROWTH, self.document()
        assert self.longest <= LONGEST, self.document()
        assert self.after["descriptors"] <= self.before["descriptors"] + DESCRIPTORS, self.document()
        assert self.after["tasks"] <= self.before["tasks"], self.document()


def measure(name: str, unit: str, value: float, target: float, *, met: bool) -> dict[str, Any]:
    """One figure that there is a target for; less is better."""
    return {"name": name, "unit": unit, "better": "lower", "value": round(value, 2), "target": target, "met": met}


def summary(found: dict[str, dict[str, Any]], rounds: int) -> dict[str, Any]:
    """The results file: every attack, and the worst of each measure over all of them.

    :param found: documents, by attack and port
    """
    worst: dict[str, dict[str, Any]] = {}
    for attack, document in found.items():
        for one in document["measures"]:
            name = one["name"]
            if name not in worst or one["value"] > worst[name]["value"]:
                worst[name] = {**one, "attack": attack}
            worst[name]["met"] = all(
                each["met"] for other in found.values() for each in other["measures"] if each["name"] == name
            )
    return {"rounds": rounds, "worst": list(worst.values()), "attacks": found}


_KINDS = ("malformed", "unobserved", "breaches", "counters")


def _counted(state: dict[str, Any], name: str) -> int:
    return sum(state[kind].get(name, 0) for kind in _KINDS)
