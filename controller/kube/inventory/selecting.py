"""Kubernetes' label selectors ("Labels and Selectors"): what is not understood selects nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.kube.inventory.reading import Labels, Object, labels, parts, word, words


@dataclass(frozen=True, slots=True)
class Requirement:
    """One of ``matchExpressions``. An operator that is not known holds for nothing."""

    key: str
    operator: str
    values: tuple[str, ...]

    def holds(self, given: Mapping[str, str]) -> bool:
        match self.operator:
            case "In":
                return given.get(self.key) in self.values
            case "NotIn":
                return given.get(self.key) not in self.values
            case "Exists":
                return self.key in given
            case "DoesNotExist":
                return self.key not in given
            case _:
                return False


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """``matchLabels`` and ``matchExpressions``, all of which must hold."""

    labels: Labels = ()
    requirements: tuple[Requirement, ...] = ()

    @classmethod
    def read(cls, document: Object) -> LabelSelector:
        return cls(
            labels(document, "matchLabels"),
            tuple(
                Requirement(word(each, "key"), word(each, "operator"), words(each, "values"))
                for each in parts(document, "matchExpressions")
            ),
        )

    def selects(self, given: Labels) -> bool:
        mine = dict(given)
        return all(mine.get(key) == value for key, value in self.labels) and all(
            each.holds(mine) for each in self.requirements
        )
