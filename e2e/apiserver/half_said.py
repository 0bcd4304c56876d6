"""Reviews of which the injector has heard half, so that it answers others meanwhile or shows that it does not."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from controller.injection.webhook_configuration import NAME
from e2e.apiserver.injector import HOOKS, RunningInjector
from e2e.harness.programs import until


class HalfSaid:
    """So many of them, each on a connection of its own, from the beginning of the block on.

    :param given: the pod of each
    """

    def __init__(self, injector: RunningInjector, namespace: str, given: dict[str, Any], count: int) -> None:
        self._injector = injector
        request = {
            "uid": "705ab4f5",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "operation": "CREATE",
            "namespace": namespace,
            "object": given,
        }
        body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
        self._body = json.dumps(body).encode()
        self._half = len(self._body) // 2
        self._count = count
        self._connections: list[ssl.SSLSocket] = []
        self._open = ExitStack()

    def __enter__(self) -> Self:
        hook = self._injector.apiserver.request("GET", f"{HOOKS}/{NAME}")["webhooks"][0]
        roots = base64.b64decode(hook["clientConfig"]["caBundle"]).decode()
        tls = ssl.create_default_context(cadata=roots)
        head = "POST /inject HTTP/1.1\r\nHost: injector\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(self._body)}\r\n\r\n"
        try:
            for _ in range(self._count):
                plain = self._open.enter_context(socket.create_connection((self._injector.address, 443), 60))
                name = f"{NAME}.{self._injector.namespace}.svc"
                made = self._open.enter_context(tls.wrap_socket(plain, server_hostname=name))
                made.sendall(head.encode() + self._body[: self._half])
                self._connections.append(made)
            expected = self._count * self._half
            until(lambda: self._injector.metric("hedgerow_injector_buffered_bytes") >= expected, "all of them heard")
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def say_the_rest(self) -> list[dict[str, Any]]:
        """What each of them is answered; of one that was not waited for, :class:`AssertionError`."""
        for each in self._connections:
            each.sendall(self._body[self._half :])
        return [_answered(each) for each in self._connections]


def _answered(connection: ssl.SSLSocket) -> dict[str, Any]:
    answer = http.client.HTTPResponse(connection)
    try:
        answer.begin()
        content = answer.read()
    finally:
        answer.close()
    assert answer.status == 200, f"{answer.status} {content[:200]!r}"
    said: dict[str, Any] = json.loads(content)["response"]
    return said
