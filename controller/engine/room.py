"""Room for overrides: how many can be in force, of all namespaces and of each."""

from __future__ import annotations

from collections import Counter

from controller import overrides
from controller.declarations import key_of
from controller.engine.state import State
from controller.errors import InvalidRequest
from controller.view import OverrideState

#: The code of a refusal for want of room.
TOO_MANY = "too-many"


class Room:
    """How many overrides hold, of each namespace, and how many more can. Counted when it is first asked: that takes
    time, and is seldom needed."""

    def __init__(self, state: State, now: float) -> None:
        self._state = state
        self._now = now
        self._held: Counter[str] | None = None
        self._most = state.settings.max_overrides
        self._share = overrides.share_of_namespace(self._most)

    def _counted(self) -> Counter[str]:
        if self._held is None:
            active = (each for each in self._state.overrides.values() if each.state(self._now) is OverrideState.ACTIVE)
            self._held = Counter(namespace_of_key(key_of(each.id)) for each in active)
        return self._held

    def left(self, namespace: str) -> int:
        """How many more a namespace can have."""
        held = self._counted()
        return min(self._most - held.total(), self._share - held[namespace])

    def take(self, namespace: str) -> None:
        """Take a place for one of a namespace.

        :raises InvalidRequest: when there is none
        """
        if self.left(namespace) <= 0:
            whole = self._counted().total() >= self._most
            many = f"{self._most} active overrides" if whole else f"{self._share} active overrides of {namespace}"
            raise InvalidRequest(
                f"there are {many}",
                remedy="delete those that are no longer needed; this one then comes into force",
                code=TOO_MANY,
            )
        self._counted()[namespace] += 1


def namespace_of_key(key: str) -> str:
    return key.split("/")[1]
