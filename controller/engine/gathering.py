"""Keeps one namespace's changes from filling the audit log, and from pushing out what others did.

Who may write resources in a namespace can do so in a loop, and each change is an entry for ever. So each namespace has
a share: so many entries in a row, and one more every so many seconds. What goes beyond is gathered: how many changes of
each kind, from when to when, and the newest of the things that changed last. That is stored with the change itself, and
becomes one entry when the pause is over.

What a person does through us is no namespace's, and always an entry of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from controller.audit import canonical

#: Things whose last change a gathered entry tells, and characters of each.
MAX_LAST: Final = 10
MAX_CHARACTERS: Final = 500


@dataclass(slots=True)
class Shares:
    """How many entries each namespace has left. Times are seconds since the epoch.

    :param burst: entries in a row
    :param refill: seconds for one more
    """

    burst: int
    refill: float
    _spent: dict[str, tuple[float, float]] = field(default_factory=dict)  # by namespace: how many, and when

    def take(self, namespace: str, now: float) -> bool:
        """Take one of a namespace's. :return: whether there was one"""
        spent = self._at(namespace, now)
        if spent + 1 > self.burst:
            return False
        self._spent[namespace] = (spent + 1, now)
        return True

    def exhaust(self, namespace: str, now: float) -> None:
        """It has none left."""
        self._spent[namespace] = (float(self.burst), now)

    def forget(self, now: float) -> None:
        """Forget those that have all of theirs again."""
        self._spent = {each: held for each, held in self._spent.items() if self._at(each, now) > 0}

    def _at(self, namespace: str, now: float) -> float:
        spent, at = self._spent.get(namespace, (0.0, now))
        return max(0.0, spent - max(0.0, now - at) / self.refill)


@dataclass(frozen=True, slots=True)
class Gathered:
    """Changes of one namespace that have no entries of their own.

    :param since: of the first, ``until`` of the last
    :param actions: how many, by what was done
    :param last: of the things that changed last, their newest change, the last one last
    """

    since: float
    until: float
    actions: Mapping[str, int] = field(default_factory=dict)
    last: tuple[Mapping[str, Any], ...] = ()

    def also(self, now: float, actor: str, action: str, subject: str, detail: Mapping[str, object]) -> Gathered:
        """With one more change."""
        said = {"at": now, "actor": actor, "action": action, "subject": subject}
        said["detail"] = canonical(detail)[:MAX_CHARACTERS]
        others = tuple(each for each in self.last if each.get("subject") != subject)
        counts = {**self.actions, action: self.actions.get(action, 0) + 1}
        return Gathered(self.since, max(now, self.until), counts, (*others, said)[-MAX_LAST:])

    def to_dict(self) -> dict[str, Any]:
        return {
            "since": self.since,
            "until": self.until,
            "actions": dict(self.actions),
            "last": [dict(each) for each in self.last],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """:raises ValueError, TypeError, KeyError: when it is not one"""
        actions = {str(action): int(count) for action, count in dict(document["actions"]).items()}
        return cls(
            float(document["since"]), float(document["until"]), actions, tuple(dict(each) for each in document["last"])
        )
