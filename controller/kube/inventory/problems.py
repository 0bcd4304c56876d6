"""What could not be followed, and why, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from graph.text import printable

#: Problems that are shown; there may be as many as pods.
MAX_PROBLEMS = 100
#: Characters of one.
MAX_LENGTH = 1_000


class Problems:
    """At most one of each thing. A thing's name begins with its kind and a slash."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}

    def note(self, about: str, problem: str) -> None:
        """Remember it, or, when it is empty, that there is none any more."""
        if problem:
            # it quotes what anybody may have written, such as the name of an owner, which Kubernetes takes as it is
            self._of[about] = printable(problem[:MAX_LENGTH])
        else:
            self._of.pop(about, None)

    def __len__(self) -> int:
        return len(self._of)

    def kinds(self) -> Mapping[str, int]:
        """How many there are, by what they are about."""
        return Counter(about.partition("/")[0] for about in self._of)

    def shown(self) -> tuple[str, ...]:
        """Some of them, when they are many."""
        return tuple(self._of[about] for about in sorted(self._of)[:MAX_PROBLEMS])
