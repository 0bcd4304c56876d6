"""Requests to an API server without a client library: suites judge that library's use, and kubectl is slow to start."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from e2e.harness.errors import ApiError, HarnessError
from e2e.harness.pki import Pair

#: Longer than an API server itself waits for anything that it answers (60 s), seconds.
_TIMEOUT = 90.0
#: The server asks to be asked again (API Priority and Fairness; "storage is (re)initializing"), as every client does.
_LATER, _PAUSE = 429, 0.5


class ApiUnreachable(HarnessError):
    """Nobody answered; told apart from a refusal."""


class _LocalConnection(http.client.HTTPConnection):
    """To a server that listens on a path."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(str(self._path))


class Api:
    """An API server as one user sees it. A connection a request, so that a restart of the server needs no care."""

    def __init__(self, connect: Callable[[], http.client.HTTPConnection], token: str = "") -> None:
        self._connect = connect
        self._token = token

    @classmethod
    def at(cls, url: str, ca: Path, *, pair: Pair | None = None, token: str = "") -> Self:
        """Straight at the server.

        :param pair: the user's certificate, or
        :param token: the user's token; neither is anonymous
        """
        parts = urllib.parse.urlsplit(url)
        tls = ssl.create_default_context(cafile=str(ca))
        if pair is not None:
            tls.load_cert_chain(pair.certificate, pair.key)
        host, port = parts.hostname or "", parts.port or 443
        return cls(lambda: http.client.HTTPSConnection(host, port, timeout=_TIMEOUT, context=tls), token)

    @classmethod
    def through(cls, proxy: Path) -> Self:
        """Through ``kubectl proxy`` on a path, which proves who the user is by whatever their kubeconfig says."""
        return cls(lambda: _LocalConnection(proxy))

    def call(
        self, method: str, path: str, body: object = None, *, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """One request, its answer decoded.

        :param body: sent as JSON when it is not None
        :raises ApiError: when the server refused it
        :raises ApiUnreachable: when nobody answered
        """
        status, content = self._request(method, path, body, content_type)
        deadline = time.monotonic() + _TIMEOUT
        while status == _LATER and time.monotonic() < deadline:  # nothing was done, as its caches begin anew
            time.sleep(_PAUSE)
            status, content = self._request(method, path, body, content_type)
        try:
            answer = json.loads(content) if content else {}
        except ValueError:
            answer = {"message": content.decode(errors="replace")}
        if status >= 400:
            reason = str(answer.get("reason", ""))
            raise ApiError(method, path, status, reason, str(answer.get("message", answer)))
        return answer

    def status(self, path: str) -> int:
        """The status of a GET.

        :raises ApiUnreachable: when nobody answered
        """
        return self._request("GET", path, None, "")[0]

    def _request(self, method: str, path: str, body: object, content_type: str) -> tuple[int, bytes]:
        headers = {"Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if body is not None:
            headers["Content-Type"] = content_type
        connection = self._connect()
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ApiUnreachable(f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            connection.close()
