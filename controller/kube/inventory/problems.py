"""What could not be followed, and why, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, islice, zip_longest

from graph.text import printable

#: Problems that are shown; there may be as many as pods.
MAX_PROBLEMS = 100
#: Characters of one.
MAX_LENGTH = 1_000


class Problems:
    """At most one of each thing. A thing's name is its kind, its namespace and what it is there, with slashes."""

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

    def __iter__(self) -> Iterator[str]:
        """What there are problems of."""
        return iter(self._of)

    def kinds(self) -> Mapping[str, int]:
        """How many there are, by what they are about."""
        return Counter(about.partition("/")[0] for about in self._of)

    def shown(self, *others: Problems) -> tuple[str, ...]:
        """Some of them, and of others', when they are many: of each namespace as many, so that none hides the rest."""
        every: dict[str, str] = {}
        for each in (self, *others):
            every |= each._of
        spaces: dict[str, list[str]] = {}
        for about in sorted(every):
            spaces.setdefault(about.split("/")[1], []).append(about)
        in_turn = (about for about in chain.from_iterable(zip_longest(*spaces.values())) if about is not None)
        return tuple(every[about] for about in sorted(islice(in_turn, MAX_PROBLEMS)))
