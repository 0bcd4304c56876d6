"""A client of the controller's web API (``docs/api.md``), used by the command and by the local mesh.

Where the controller is and which token opens it come from arguments, else from ``HEDGEROW_SERVER``,
``HEDGEROW_TOKEN_FILE`` and ``HEDGEROW_TOKEN``. A token never appears in a message, a log or an address.

aiohttp takes as long to import as everything else of the command together, so it is imported by the first client.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import aiohttp

DEFAULT_SERVER = "http://127.0.0.1:8080"

Query = Mapping[str, str | int | float | None]

#: What goes into a header as it is (RFC 6750, section 2.1).
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{1,4096}")
_NAME_A_TOKEN = (
    "name the controller's STATE_DIR/operator.token with --token-file or HEDGEROW_TOKEN_FILE; "  # noqa: S105  # advice
    "docs/kubernetes.md says how to get the one of a cluster"
)


class ClientError(Exception):
    """The call did not succeed. ``remedy`` says what to do next."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class BadAddress(ClientError):
    """The controller's address is none."""


class Unreachable(ClientError):
    """No controller answered at the controller's address."""


class Refused(ClientError):
    """The token is missing, unreadable, unknown, or has too small a role."""


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

        :raises Refused: when a token file is named that cannot be read, or what is given is no token
        """
        path = token_file or (
            Path(environment["HEDGEROW_TOKEN_FILE"]) if environment.get("HEDGEROW_TOKEN_FILE") else None
        )
        token = environment.get("HEDGEROW_TOKEN", "") if token_file is None else ""
        source = "HEDGEROW_TOKEN"
        if path is not None and not token:
            source = f"the token file {path}"
            try:
                with path.open("rb") as file:
                    token = file.read(8192).decode("ascii").strip()
            except OSError as error:
                raise Refused(
                    f"{source} cannot be read: {error.strerror}",
                    "name the controller's STATE_DIR/operator.token, or run as a user who may read it",
                ) from None
            except UnicodeDecodeError:
                raise Refused(f"{source} holds no token", _NAME_A_TOKEN) from None
        if token and not _TOKEN.fullmatch(token):
            raise Refused(f"{source} holds no token", _NAME_A_TOKEN)
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
        self._timeout = timeout
        self._connector = connector
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        import aiohttp

        headers = {"Authorization": f"Bearer {self._access.token}"} if self._access.token else {}
        connector = self._connector() if self._connector is not None else None
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        self._session = aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)
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

    async def events(
        self, path: str, query: Query | None = None, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[tuple[str, Any]]:
        """Server-sent events as ``(event, data)``, until the controller closes the stream.

        :param body: asked for with POST and this, where it is given
        :raises ClientError: as every other call
        """
        import aiohttp

        session = self._open_session()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        with self._translated():
            async with session.request(
                "GET" if body is None else "POST",
                self._url(path),
                params=_clean(query),
                json=body,
                timeout=timeout,
                allow_redirects=False,
                read_bufsize=1 << 20,
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
        with self._translated():
            async with session.request(
                method, self._url(path), params=_clean(query), json=body, allow_redirects=False
            ) as response:
                await self._check(response)
                return await response.text() if text else await response.json()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The errors of aiohttp and of reading JSON become ours."""
        import aiohttp

        server = self._access.server
        try:
            yield
        except aiohttp.ClientConnectorCertificateError as error:
            raise Unreachable(
                f"the certificate of {server} is not trusted: {error.certificate_error}",
                "put the PEM file of its authority into SSL_CERT_FILE",
            ) from error
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            raise Unreachable(
                f"no controller answers at {server}: {_reason(error)}",
                "start one (hedgerow controller, or hedgerow demo), forward a port to the one in a cluster (kubectl -n "
                "hedgerow-system port-forward deployment/hedgerow-controller 8080), or name it with --server or "
                "HEDGEROW_SERVER",
            ) from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise BadAddress(f"{server!r} is not an address", "write --server as http://127.0.0.1:8080") from None
        except aiohttp.ClientPayloadError as error:
            raise Unreachable(f"{server} went away in the middle of an answer", "ask again") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise Unreachable(
                f"{server} did not answer as a controller does: {_reason(error)}", "check --server and HEDGEROW_SERVER"
            ) from error

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status < 300:
            return
        try:
            error = json.loads(await response.read())["error"]
            problem = Problem(
                response.status,
                str(error.get("code", "")),
                str(error.get("field") or ""),
                str(error.get("message", "")),
                str(error.get("remedy") or ""),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Unreachable(
                f"{self._access.server} did not answer as a controller does: {response.status} {response.reason}",
                "check --server and HEDGEROW_SERVER",
            ) from None
        if response.status == 401:
            what = "does not know this token" if self._access.token else "wants a token"
            raise Refused(f"the controller at {self._access.server} {what}", _NAME_A_TOKEN)
        if response.status == 403:
            raise Refused(problem.message, problem.remedy or _NAME_A_TOKEN)
        raise ApiError(problem)


def _reason(error: Exception) -> str:
    """What went wrong with a connection, in a few words."""
    if isinstance(error, TimeoutError):
        return "it took too long"
    cause = getattr(error, "os_error", None)
    if reason := getattr(cause, "reason", ""):  # of an ssl.SSLError, whose number is no errno
        return f"no TLS with it ({reason})"
    if isinstance(cause, OSError) and cause.errno and cause.errno > 0:
        return os.strerror(cause.errno)
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def _clean(query: Query | None) -> dict[str, str]:
    return {key: str(value) for key, value in (query or {}).items() if value is not None and value != ""}
