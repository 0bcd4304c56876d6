"""Counts of requests and failures, written as one JSON object a line so that anybody can follow a program's log."""

from __future__ import annotations

import json
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """What a client of the shop has counted since it started.

    :param errors: the last few failures, for people
    """

    requests: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)

    def succeeded(self) -> None:
        self.requests += 1
        self._say()

    def failed_with(self, error: str) -> None:
        self.requests += 1
        self.failed += 1
        self.errors = [*self.errors, error][-5:]
        self._say()

    def _say(self) -> None:
        print(json.dumps({"requests": self.requests, "failed": self.failed, "errors": self.errors}), flush=True)

    @classmethod
    def read(cls, line: str) -> Tally | None:
        """Read a line that a tally wrote; None when it is something else."""
        try:
            data = json.loads(line)
            return cls(int(data["requests"]), int(data["failed"]), list(data["errors"]))
        except (ValueError, KeyError, TypeError):
            return None
