"""What an API server sends: read within bounds, taken apart, or refused as no answer of one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import aiohttp

from controller.kube.answers import Call, refusal_of, unreachable
from controller.kube.errors import Malformed

#: An object as JSON gives it.
type Document = dict[str, Any]

#: A page of 100 objects of the largest size that etcd takes by default (1.5 MiB) does not fit, ordinary ones do.
MAX_ANSWER_BYTES = 128 * 1024 * 1024
#: One object of etcd's largest size, twice (with its managed fields in JSON).
MAX_EVENT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list.

    :param resource_version: of the whole list, the same on every page
    :param more: ``continue`` of the next page; empty on the last one
    """

    items: tuple[Document, ...]
    resource_version: str
    more: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """:param kind: ``ADDED``, ``MODIFIED``, ``DELETED``, ``BOOKMARK``"""

    kind: str
    object: Document


def hang_up(answer: aiohttp.ClientResponse) -> None:
    """Be done with an answer. The connection of one that was not read to its end is of no use: a farewell in TLS would
    only keep it open."""
    connection = answer.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    answer.close()


async def read_all(answer: aiohttp.ClientResponse, call: Call) -> bytes:
    """The whole answer. :raises Malformed: when it is larger than :data:`MAX_ANSWER_BYTES`"""
    parts: list[bytes] = []
    size = 0
    try:
        async for chunk in answer.content.iter_any():
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                raise Malformed(f"{call}: an answer of more than {MAX_ANSWER_BYTES} bytes")
            parts.append(chunk)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise unreachable(call, error) from None
    return b"".join(parts)


def document_of(content: bytes, call: Call) -> Document:
    """One object. :raises Malformed: when it is none"""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Malformed(f"{call}: the answer is no JSON object", remedy="is this a Kubernetes API server?")
    return found


def page_of(answer: Document, call: Call) -> Page:
    """A list, or a part of one. :raises Malformed: when it is none"""
    metadata, items = answer.get("metadata"), answer.get("items") or []
    if not isinstance(metadata, dict) or not isinstance(items, list) or not metadata.get("resourceVersion"):
        raise Malformed(f"{call}: the answer is no list with a version", remedy="is this a Kubernetes API server?")
    return Page(tuple(items), str(metadata["resourceVersion"]), str(metadata.get("continue") or ""))


def event_of(line: bytes, call: Call) -> WatchEvent:
    """A line of a watch. :raises KubernetesError: when the server says by it that the watch is over"""
    found = document_of(line, call)
    kind, content = found.get("type"), found.get("object")
    if not isinstance(kind, str) or not isinstance(content, dict):
        raise Malformed(f"{call}: an event without type or object")
    if kind == "ERROR":
        status = content.get("code")
        raise refusal_of(call, status if isinstance(status, int) else 500, {}, json.dumps(content).encode())
    return WatchEvent(kind, content)
