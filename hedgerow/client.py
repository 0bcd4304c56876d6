"""A client of the controller's web API (``docs/api.md``), used by the command and by the local mesh.

Where the controller is and which token opens it come from arguments, else from ``HEDGEROW_SERVER``,
``HEDGEROW_TOKEN_FILE`` and ``HEDGEROW_TOKEN``. A token never appears in a message, a log or an address.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

DEFAULT_SERVER = "http://127.0.0.1:8080"

Query = Mapping[str, str | int | float | None]


class ClientError(Exception):
    """The call did not succeed. ``remedy`` says what to do next."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class Unreachable(ClientError):
    """Nothing answered at the controller's address."""


class Refused(ClientError):
    """The token is missing, unknown, or has too small a role."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The body of an error answer."""

    status: int
    code: str
    field: str
    message: str
    remedy: str


class ApiError(ClientError):
    """The controller refused the request and said why."""

    def __init__(self, problem: Problem) -> None:
        prefix = f"{problem.field}: " if problem.field else ""
        super().__init__(prefix + problem.message, problem.remedy)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Access:
    """Where the controller is, and the token that opens it."""

    server: str
    token: str = ""

    def __repr__(self) -> str:
        return f"Access(server={self.server!r}, token={'set' if self.token else 'unset'})"

    @classmethod
    def find(
        cls, server: str = "", token_file: Path | None = None, environment: Mapping[str, str] = os.environ
    ) -> Self:
        """Arguments first, then the environment.

        :raises ClientError: when a token file is named that cannot be read
        """
        path = token_file or (
            Path(environment["HEDGEROW_TOKEN_FILE"]) if environment.get("HEDGEROW_TOKEN_FILE") else None
        )
        token = environment.get("HEDGEROW_TOKEN", "") if token_file is None else ""
        if path is not None and not token:
            try:
                token = path.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not a token"
                raise ClientError(
                    f"the token file {path} cannot be read: {reason}",
                    "name the controller's STATE_DIR/operator.token, or run as a user who may read it",
                ) from None
        return cls((server or environment.get("HEDGEROW_SERVER") or DEFAULT_SERVER).rstrip("/"), token)


class Client:
    """Calls the web API. Use as an asynchronous context manager.

    :param timeout: seconds that a call may take; streams are not limited
    :param connector: makes the sockets, where the controller is not in this process' network
    """

    def __init__(
        self, access: Access, timeout: float = 30.0, connector: Callable[[], aiohttp.BaseConnector] | None = None
    ) -> None:
        self._access = access
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._connector = connector
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {self._access.token}"} if self._access.token else {}
        connector = self._connector() if self._connector is not None else None
        self._session = aiohttp.ClientSession(headers=headers, timeout=self._timeout, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, query: Query | None = None) -> Any:
        return await self._call("GET", path, query=query)

    async def get_text(self, path: str, query: Query | None = None) -> str:
        """The body as it came, for answers that are not JSON."""
        return str(await self._call("GET", path, query=query, text=True))

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return await self._call("POST", path, body=body)

    async def delete(self, path: str, query: Query | None = None) -> Any:
        return await self._call("DELETE", path, query=query)

    async def events(self, path: str, query: Query | None = None) -> AsyncIterator[tuple[str, Any]]:
        """Server-sent events as ``(event, data)``, until the controller closes the stream.

        :raises ClientError: as every other call
        """
        session = self._open_session()
        try:
            async with session.get(
                self._url(path), params=_clean(query), timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)
            ) as response:
                await self._check(response)
                event = "message"
                data: list[str] = []
                async for raw in response.content:
                    line = raw.decode("utf-8").rstrip("\r\n")
                    if not line:
                        if data:
                            yield event, json.loads("\n".join(data))
                        event, data = "message", []
                    elif line.startswith("event:"):
                        event = line[6:].strip()
                    elif line.startswith("data:"):
                        data.append(line[5:].removeprefix(" "))
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            raise self._unreachable(error) from error

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("Client is used outside its `async with` block")
        return self._session

    def _url(self, path: str) -> str:
        return f"{self._access.server}/api/v1{path}"

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Mapping[str, Any] | None = None,
        text: bool = False,
    ) -> Any:
        session = self._open_session()
        try:
            async with session.request(method, self._url(path), params=_clean(query), json=body) as response:
                await self._check(response)
                return await response.text() if text else await response.json()
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            raise self._unreachable(error) from error
        except aiohttp.InvalidURL:
            raise ClientError(
                f"{self._access.server!r} is not an address", "write --server as http://127.0.0.1:8080"
            ) from None
        except (aiohttp.ClientError, json.JSONDecodeError) as error:
            raise ClientError(
                f"{self._access.server} did not answer as a controller does: {error}", "check --server"
            ) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        reason = "it took too long" if isinstance(error, TimeoutError) else str(error)
        return Unreachable(
            f"no controller answers at {self._access.server}: {reason}",
            "start one (hedgerow controller, or hedgerow demo), or name it with --server or HEDGEROW_SERVER",
        )

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status < 400:
            return
        try:
            error = (await response.json())["error"]
            problem = Problem(
                response.status,
                str(error.get("code", "")),
                str(error.get("field") or ""),
                str(error.get("message", "")),
                str(error.get("remedy") or ""),
            )
        except (aiohttp.ContentTypeError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise ClientError(
                f"{self._access.server} answered {response.status} {response.reason}", "check --server"
            ) from None
        if response.status in (401, 403):
            raise Refused(
                problem.message,
                problem.remedy or "name a token with --token-file or HEDGEROW_TOKEN_FILE (STATE_DIR/operator.token)",
            )
        raise ApiError(problem)


def _clean(query: Query | None) -> dict[str, str]:
    return {key: str(value) for key, value in (query or {}).items() if value is not None and value != ""}
