"""One request and its response, as they are judged, reported and shown. Pure: times are arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from graph.policy import Decision
from sidecar.dataplane.contracts import Record, Request

#: gRPC's status codes that we give (https://grpc.github.io/grpc/core/md_doc_statuscodes.html).
PERMISSION_DENIED: Final = 7
INTERNAL: Final = 13
#: What is kept of a field for people, characters.
_LONGEST: Final = 512

REASON_HEADER: Final = b"x-hedgerow-reason"


@dataclass(slots=True)
class Exchange:
    """What is known of a request so far.

    :param started: seconds of a clock that does not go back
    :param streamed: its head went to the application, and its body follows as it comes
    :param done: it was reported
    """

    operation: str
    decision: Decision
    protocol: str
    started: float
    method: str
    path: str
    host: str = ""
    user_agent: str = ""
    request_id: str = ""
    request_bytes: int = 0
    response_bytes: int = 0
    status: int = 0
    grpc_status: int = -1
    detail: str = ""
    streamed: bool = False
    done: bool = False

    @property
    def grpc(self) -> bool:
        return self.protocol == "grpc"

    def report(self, record: Record, name: str, now: float) -> Request:
        """The account of it, once.

        :param name: under which the operation is reported: of too many, not all have their own
        """
        self.done = True
        return Request(
            record,
            name,
            self.decision,
            self.protocol,
            self.status,
            max(0.0, now - self.started),
            self.request_bytes,
            self.response_bytes,
            self.grpc_status,
            self.method,
            self.path[:_LONGEST],
            self.host[:_LONGEST],
            self.user_agent[:_LONGEST],
            self.request_id[:_LONGEST],
            self.detail,
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Our own answer in place of the application's.

    :param reason: one word, or a few with ``-`` between them
    """

    status: int
    reason: str
    grpc_status: int = PERMISSION_DENIED

    @classmethod
    def of(cls, decision: Decision) -> Refusal:
        """For a request that the policy denies."""
        return cls(403, str(decision.reason))

    def head(self, *, grpc: bool, http2: bool) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Status, fields and body of the answer. gRPC's is one head with END_STREAM (trailers-only)."""
        reason = self.reason.encode("ascii", "replace")
        if grpc:
            message = b"hedgerow: " + reason
            fields = [
                (b"content-type", b"application/grpc"),
                (b"grpc-status", b"%d" % self.grpc_status),
                (b"grpc-message", message),
                (REASON_HEADER, reason),
            ]
            return 200, fields, b""
        body = b"refused by hedgerow: %s\n" % reason
        fields = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (REASON_HEADER, reason),
        ]
        return self.status, fields, body


def grpc_status_of(value: bytes) -> int:
    """The number in a ``grpc-status`` field; -1 when there is none."""
    return int(value) if value.isdigit() and len(value) <= 9 else -1


#: A request that is no operation: its form is refused before anybody is asked.
UNREADABLE: Final = Refusal(400, "unreadable-request", INTERNAL)
ADDON_FAILED: Final = Refusal(500, "addon-failed", INTERNAL)
