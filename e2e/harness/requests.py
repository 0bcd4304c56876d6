"""Requests to an API server without a client library: suites judge that library's use, and kubectl is slow to start."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.parse
from pathlib import Path
from typing import Any

from e2e.harness.errors import ApiError, HarnessError
from e2e.harness.pki import Pair

_TIMEOUT = 30.0


class ApiUnreachable(HarnessError):
    """Nobody answered; told apart from a refusal."""


class Api:
    """An API server as one user sees it. A connection a request, so that a restart of the server needs no care.

    :param pair: the user's certificate, or
    :param token: the user's token; neither is anonymous
    """

    def __init__(self, url: str, ca: Path, *, pair: Pair | None = None, token: str = "") -> None:
        parts = urllib.parse.urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._tls = ssl.create_default_context(cafile=str(ca))
        if pair is not None:
            self._tls.load_cert_chain(pair.certificate, pair.key)
        self._token = token

    def call(
        self, method: str, path: str, body: object = None, *, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """One request, its answer decoded.

        :param body: sent as JSON when it is not None
        :raises ApiError: when the server refused it
        :raises ApiUnreachable: when nobody answered
        """
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
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT, context=self._tls)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ApiUnreachable(f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            connection.close()
