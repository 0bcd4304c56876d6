"""What is kept in mind of one request in HTTP/2, until it is reported."""

from __future__ import annotations

from sidecar.http.grpc_messages import Messages


class Call:
    """One request on its stream."""

    __slots__ = (
        "agent",
        "answers",
        "began",
        "grpc",
        "grpc_status",
        "host",
        "method",
        "name",
        "path",
        "questions",
        "received",
        "request_id",
        "sent",
        "status",
    )

    def __init__(self, began: float) -> None:
        self.began = began
        self.name = self.method = self.path = ""
        self.host = self.agent = self.request_id = ""
        self.grpc = False
        self.questions: Messages | None = None  # counts the request's messages, if it has some
        self.answers: Messages | None = None
        self.status = 0
        self.grpc_status = -1
        self.sent = 0
        self.received = 0
