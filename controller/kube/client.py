"""Requests to the API server: JSON in, JSON out, over ``kubernetes.aio``'s connection.

Objects stay the mappings that JSON gives. The package's own models would cost several times the memory and the time,
and would drop what they do not know. Governing rules:

1. Every failure is one of :mod:`controller.kube.errors`, with verb, resource and remedy; nothing else is raised.
2. What the server sends is bounded: an answer by :data:`~controller.kube.answered.MAX_ANSWER_BYTES`, an event of a
   watch by :data:`~controller.kube.answered.MAX_EVENT_BYTES`.
3. Credentials are read again when the server refuses them (tokens and kubeconfigs are renewed in place), once a
   request; the connection before stays until those who use it are done.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp

from controller.kube.answered import MAX_EVENT_BYTES as MAX_EVENT_BYTES
from controller.kube.answered import Document as Document
from controller.kube.answered import Page as Page
from controller.kube.answered import WatchEvent as WatchEvent
from controller.kube.answered import document_of, event_of, hang_up, page_of, read_all
from controller.kube.answers import Call, refusal_of, unreachable, untrusted
from controller.kube.connection import Connection
from controller.kube.errors import Malformed, Unauthorized
from controller.kube.kinds import Resource
from controller.kube.settings import KubernetesSettings

FIELD_MANAGER = "hedgerow-controller"
#: Objects on a page of a list, each of which takes ten and more times what is held of it until it has been read: a page
#: is the most that a list takes for the moment, whatever the cluster's size.
PAGE = 100
#: Seconds that a watch may say nothing. Servers send a bookmark about once a minute; a silent connection may be dead.
SILENCE = 150.0
#: Seconds after which we ask the server to end a watch by itself; the next one goes on where it was.
WATCH_SECONDS = 1200
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a request sends.

    :param query: what is empty in it is left out
    :param accept: of the answer; ``form`` of the body
    """

    method: str = "GET"
    query: Mapping[str, str] = field(default_factory=dict)
    body: Document | list[Document] | None = None
    accept: str = _JSON
    form: str = _JSON


_NOTHING = _Sent()


class Client:
    """One API server. Every method raises :class:`~controller.kube.errors.KubernetesError`, or
    :class:`~controller.errors.ConfigError` when what says where it is can not be read.

    :param agent: how we call ourselves in its audit log
    """

    def __init__(self, settings: KubernetesSettings, agent: str = "hedgerow-controller") -> None:
        self._settings = settings
        self._agent = agent
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Read the credentials now, so that wrong settings are told at once.

        :raises ConfigError: naming the field and the remedy
        """
        await self._connected(None)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.retire()

    # --- reading

    async def version(self) -> tuple[int, int]:
        """Major and minor version of the API server."""
        call = Call("get", "/version")
        found = await self._request(call)
        digits = ["".join(mark for mark in str(found.get(key, "")) if mark.isdigit()) for key in ("major", "minor")]
        if not all(digits):
            raise Malformed("/version names no version", remedy="is this a Kubernetes API server?")
        return int(digits[0]), int(digits[1])

    async def get(self, resource: Resource, name: str, namespace: str = "", subresource: str = "") -> Document:
        """:raises NoSuchObject: when it is not there"""
        path = resource.path(namespace, name, subresource)
        return await self._request(Call("get", path, resource, namespace, name, subresource))

    async def pages(
        self, resource: Resource, namespace: str = "", *, labels: str = "", fields: str = "", limit: int = PAGE
    ) -> AsyncIterator[Page]:
        """A consistent list, page by page.

        :param labels: a label selector; ``fields`` a field selector
        :param limit: objects on a page
        :raises Expired: when a later page comes too late; begin again
        """
        call = Call("list", resource.path(namespace), resource, namespace)
        query = {"limit": str(limit), "labelSelector": labels, "fieldSelector": fields}
        while True:
            answer = await self._request(call, _Sent(query=query, accept=_accept(resource, "List")))
            page = page_of(answer, call)
            yield page
            if not page.more:
                return
            query["continue"] = page.more

    async def every(
        self, resource: Resource, namespace: str = "", *, labels: str = "", fields: str = ""
    ) -> list[Document]:
        """All objects, for resources of which there are few."""
        found: list[Document] = []
        async for page in self.pages(resource, namespace, labels=labels, fields=fields):
            found += page.items
        return found

    async def watch(
        self,
        resource: Resource,
        resource_version: str,
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        seconds: int = WATCH_SECONDS,
        silence: float = SILENCE,
    ) -> AsyncIterator[list[WatchEvent]]:
        """What happens after ``resource_version``, as it comes, in groups. Ends when the server ends it.

        The first group is empty: it says that the server has taken the watch.

        :param seconds: after which the server is to end it; ``silence`` after which it is taken to be dead
        :raises Expired: when that version is too old: list again
        """
        call = Call("watch", resource.path(namespace), resource, namespace)
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(seconds),
            "labelSelector": labels,
            "fieldSelector": fields,
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._settings.request_timeout, sock_read=silence)
        async with self._answer(call, _Sent(query=query, accept=_accept(resource, "")), timeout) as answer:
            yield []
            rest = b""
            try:
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    if len(rest) > MAX_EVENT_BYTES:
                        raise Malformed(f"an event of more than {MAX_EVENT_BYTES} bytes while watching {resource}")
                    events = [event_of(line, call) for line in lines if line.strip()]
                    if events:
                        yield events
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise unreachable(call, error) from None

    # --- changing

    async def create(
        self, resource: Resource, body: Document, namespace: str = "", *, dry_run: bool = False
    ) -> Document:
        """:raises Conflicting: when it is there already"""
        call = Call("create", resource.path(namespace), resource, namespace)
        return await self._request(call, _Sent("POST", _changing(dry_run), body))

    async def replace(
        self, resource: Resource, name: str, body: Document, namespace: str = "", *, subresource: str = ""
    ) -> Document:
        """Put an object in place of one; with its ``resourceVersion`` only if nobody changed it meanwhile.

        :raises Conflicting: when somebody did
        """
        call = Call("update", resource.path(namespace, name, subresource), resource, namespace, name, subresource)
        return await self._request(call, _Sent("PUT", _changing(False), body))

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Document | list[Document],
        namespace: str = "",
        *,
        subresource: str = "",
        form: str = "application/merge-patch+json",
    ) -> Document:
        """:param form: or ``application/json-patch+json``, for a list of operations"""
        call = Call("patch", resource.path(namespace, name, subresource), resource, namespace, name, subresource)
        return await self._request(call, _Sent("PATCH", _changing(False), body, form=form))

    async def apply(
        self,
        resource: Resource,
        name: str,
        body: Document,
        namespace: str = "",
        *,
        subresource: str = "",
        manager: str = FIELD_MANAGER,
        force: bool = False,
        dry_run: bool = False,
    ) -> Document:
        """Server-side apply.

        :param force: take fields over that another manager owns
        :raises Conflicting: when another manager owns a field, and not ``force``
        """
        call = Call("patch", resource.path(namespace, name, subresource), resource, namespace, name, subresource)
        query = _changing(dry_run) | {"fieldManager": manager, "force": "true" if force else "false"}
        return await self._request(call, _Sent("PATCH", query, body, form="application/apply-patch+yaml"))

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
        grace: int | None = None,
    ) -> None:
        """Delete an object, if it is still the one with this uid and version, where they are given.

        :param grace: seconds that a pod has to end; None: as its specification says
        :raises NoSuchObject: when it is not there
        :raises Conflicting: when it is another one by now
        """
        call = Call("delete", resource.path(namespace, name), resource, namespace, name)
        conditions = {"uid": uid, "resourceVersion": resource_version}
        given = {key: value for key, value in conditions.items() if value}
        body: Document = {"kind": "DeleteOptions", "apiVersion": "v1"} | ({"preconditions": given} if given else {})
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        await self._request(call, _Sent("DELETE", body=body))

    # --- one request

    async def _request(self, call: Call, sent: _Sent = _NOTHING) -> Document:
        async with self._answer(call, sent, aiohttp.ClientTimeout(total=self._settings.request_timeout)) as answer:
            return document_of(await read_all(answer, call), call)

    @contextlib.asynccontextmanager
    async def _answer(
        self, call: Call, sent: _Sent, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A successful answer, not read yet."""
        before: Connection | None = None
        while True:
            connection = await self._connected(before)
            async with connection.used():
                answer = await self._ask(connection, call, sent, timeout)
                try:
                    if answer.status < 300:
                        yield answer
                        return
                    error = refusal_of(call, answer.status, answer.headers, await read_all(answer, call))
                finally:
                    hang_up(answer)
            if not isinstance(error, Unauthorized) or before is not None:
                raise error
            before = connection

    async def _ask(
        self, connection: Connection, call: Call, sent: _Sent, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        given = [(name, value) for name, value in sent.query.items() if value]
        about = {"Accept": sent.accept, "Content-Type": sent.form, "User-Agent": self._agent}
        try:
            headers = about | await connection.proof()
            found: aiohttp.ClientResponse = await connection.rest.request(
                sent.method,
                connection.host + call.path,
                query_params=given,
                headers=headers,
                body=sent.body,
                _preload_content=False,
                _request_timeout=timeout,
            )
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError, ssl.SSLError) as error:
            self._forget(connection)
            raise untrusted(call, error, connection.host) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._forget(connection)
            raise unreachable(call, error, connection.host) from None
        else:
            return found

    # --- the connection

    async def _connected(self, instead: Connection | None) -> Connection:
        """The present connection, or a new one when it is still ``instead``."""
        async with self._opening:
            if self._connection is None or self._connection is instead:
                fresh = await Connection.open(self._settings)
                old, self._connection = self._connection, fresh
                if old is not None:
                    await old.retire()
            return self._connection

    def _forget(self, connection: Connection) -> None:
        """Read the credentials again before the next request: CA, address or certificate may be others now."""
        if self._connection is connection:
            self._connection = None
            connection.retire_soon()


def _accept(resource: Resource, suffix: str) -> str:
    """What we take when we read many; a server that can not make metadata alone sends everything."""
    if not resource.metadata_only:
        return _JSON
    return f"{_JSON};as=PartialObjectMetadata{suffix};v=v1;g=meta.k8s.io,{_JSON}"


def _changing(dry_run: bool) -> dict[str, str]:
    return {"fieldManager": FIELD_MANAGER, "dryRun": "All" if dry_run else ""}
