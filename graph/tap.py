"""What a person may watch of a workload's requests, and what is shown of one. Pure.

The bounds are here, so that the controller refuses what is too much and the sidecar does not have to believe it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from graph.errors import InvalidValue
from graph.model import Verdict, WorkloadRef

#: Seconds that a tap may last.
MAX_SECONDS: Final = 3600.0
#: Events of one tap in a second and from one sidecar.
MAX_EVENTS: Final = 500
#: Bytes of a body that are shown.
MAX_BODY: Final = 65_536
MAX_COUNT: Final = 1_000_000
MAX_PORTS: Final = 64
#: Bytes of the fields of one head that are shown.
MAX_FIELDS: Final = 32_768

_ID: Final = re.compile(r"[a-z0-9-]{1,64}")


def read_status(text: str, field: str = "tap.status") -> tuple[int, int]:
    """The first and the last of ``503``, ``5xx`` or ``400-499``.

    :raises InvalidValue: naming ``field``
    """
    written = text.lower()
    first, dash, last = written.partition("-")
    if len(written) == 3 and written[0] in "12345" and written[1:] == "xx":
        return int(written[0]) * 100, int(written[0]) * 100 + 99
    ends = (first, last if dash else first)
    if (
        all(end.isascii() and end.isdigit() and len(end) == 3 for end in ends)
        and 100 <= int(ends[0]) <= int(ends[1]) <= 599
    ):
        return int(ends[0]), int(ends[1])
    raise InvalidValue(field, f"{text[:20]!r} is no status", "write it as 503, 5xx or 400-499")


@dataclass(frozen=True, slots=True)
class TapSpec:
    """Which requests to a workload are shown, and how much of them.

    :param seconds: from its start in the sidecar to its end
    :param source: the client; None: every one
    :param ports: of our application; empty: every one
    :param operation: as rules of the policy name it, or the beginning of one before a final ``*``; empty: every one
    :param status: first and last, as ``(500, 599)``; None: every one
    :param body_bytes: of each body that are shown where ``bodies`` are
    :param events: in a second and from one sidecar; what is more is left out and counted
    :param count: events after which it ends; 0: none
    """

    id: str
    seconds: float
    source: WorkloadRef | None = None
    ports: tuple[int, ...] = ()
    operation: str = ""
    status: tuple[int, int] | None = None
    bodies: bool = False
    body_bytes: int = 8192
    events: int = 100
    count: int = 0

    def __post_init__(self) -> None:
        def check(good: bool, field: str, problem: object, remedy: str) -> None:
            if not good:
                raise InvalidValue(f"tap.{field}", f"{problem!r:.80}", remedy)

        check(_ID.fullmatch(self.id) is not None, "id", self.id, "use lower-case letters, digits and '-'")
        check(0 < self.seconds <= MAX_SECONDS, "for", self.seconds, f"use up to {MAX_SECONDS:g} seconds")
        check(len(self.ports) <= MAX_PORTS, "ports", len(self.ports), f"name at most {MAX_PORTS} ports")
        check(all(0 < port <= 65535 for port in self.ports), "ports", self.ports, "use ports from 1 to 65535")
        check(len(self.operation) <= 512 and self.operation.isprintable(), "operation", self.operation,
              "write it as GET /cart/{id}, or GET /cart*")  # fmt: skip
        if self.status is not None:
            first, last = self.status
            check(100 <= first <= last <= 599, "status", self.status, "write it as 503, 5xx or 400-499")
        check(1 <= self.body_bytes <= MAX_BODY, "body_bytes", self.body_bytes, f"use 1 to {MAX_BODY}")
        check(1 <= self.events <= MAX_EVENTS, "rate", self.events, f"use 1 to {MAX_EVENTS} a second")
        check(0 <= self.count <= MAX_COUNT, "count", self.count, f"use up to {MAX_COUNT}")

    def of_port(self, port: int) -> bool:
        """Whether connections to our application's ``port`` are watched."""
        return not self.ports or port in self.ports

    def of_request(self, source: WorkloadRef | None, port: int, operation: str) -> bool:
        """Whether a request is watched, as far as it can be said before it is answered."""
        if not self.of_port(port) or (self.source is not None and source != self.source):
            return False
        if not self.operation:
            return True
        if self.operation.endswith("*"):
            return operation.startswith(self.operation[:-1])
        return operation == self.operation

    def of_status(self, status: int) -> bool:
        """Whether an answered request is watched."""
        return self.status is None or self.status[0] <= status <= self.status[1]


type Fields = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Message:
    """A request or a response as it is shown: already redacted.

    :param size: bytes of the whole body
    :param body: the beginning of it, or nothing
    :param withheld: why there is no body, or not all of it; empty: there is all that there was
    """

    fields: Fields = ()
    trailers: Fields = ()
    size: int = 0
    body: bytes = b""
    withheld: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """One request that was watched.

    :param tap: the tap's id
    :param at: when it began, seconds since the epoch
    :param source: ``namespace/name`` or ``-/address``; ``destination`` likewise
    :param path: with its query, redacted
    :param response: None when there was none
    :param shed: events of this tap that were left out since the one before
    """

    tap: str
    at: float
    source: str
    source_address: str
    destination: str
    port: int
    operation: str
    protocol: str
    method: str
    path: str
    host: str
    status: int
    grpc_status: int
    verdict: Verdict
    pending: Verdict
    reason: str
    rule_id: str
    seconds: float
    request: Message
    response: Message | None
    shed: int = 0
