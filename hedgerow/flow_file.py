"""Writes what a tap shows as a file that mitmproxy's tools open (``mitmweb -r``, ``mitmdump -nr``).

The format is a sequence of typed netstrings (https://tnetstrings.info, with mitmproxy's ``;`` for text), one dictionary
for each flow, of the version that mitmproxy 12 writes; newer ones read older versions. It is written here because the
command does not need mitmproxy otherwise.
"""

from __future__ import annotations

import base64
import os
import stat
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Final

#: The version of the format.
VERSION: Final = 21
#: Kinds of WebSocket messages (RFC 6455 section 11.8).
_TEXT: Final = 1
_BINARY: Final = 2
_NOTHING: Final[Mapping[str, Any]] = {"headers": (), "trailers": (), "body": "", "withheld": ""}


def dumps(value: object) -> bytes:
    """A value as a typed netstring."""
    match value:
        case None:
            return b"0:~"
        case bool():
            return b"4:true!" if value else b"5:false!"
        case int():
            return _framed(str(value).encode("ascii"), b"#")
        case float():
            return _framed(repr(value).encode("ascii"), b"^")
        case bytes():
            return _framed(value, b",")
        case str():
            return _framed(value.encode("utf-8", "surrogatepass"), b";")
        case Mapping():
            return _framed(b"".join(dumps(key) + dumps(inner) for key, inner in value.items()), b"}")
        case Sequence():
            return _framed(b"".join(dumps(inner) for inner in value), b"]")
        case _:
            raise TypeError(f"{type(value).__name__} has no place in a flow file")


def _framed(data: bytes, kind: bytes) -> bytes:
    return b"%d:%b%b" % (len(data), data, kind)


class FlowFile:
    """A flow file that grows.

    :param file: open for writing bytes; what is in it stays until :meth:`begin`
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.begun = False
        self.written = 0

    def begin(self) -> None:
        """There will be something to write: let go of what a file held before."""
        self.begun = True
        if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.truncate(0)

    def add(self, shown: Mapping[str, Any]) -> None:
        """Append one request, a ``request`` event of ``POST /tap`` (``docs/api.md``)."""
        self._file.write(dumps(flow_of(shown)))
        self._file.flush()
        self.written += 1


def flow_of(shown: Mapping[str, Any]) -> dict[str, Any]:
    """A request as mitmproxy's ``HTTPFlow.get_state()`` would have it."""
    at, ended = float(shown["at"]), float(shown["at"]) + float(shown["seconds"])
    websocket = shown["protocol"] == "websocket"
    version = b"HTTP/1.1" if shown["protocol"] == "http" or websocket else b"HTTP/2.0"
    refused = shown["verdict"] != "allow"
    words = [shown["operation"], shown["from"], shown["instance"], f"{shown['verdict']}: {shown['reason']}"]
    request, response = shown["request"], shown["response"]
    messages = _messages(request, response, at) if websocket else None
    if messages is not None:  # one message; the request that opened the connection is a flow of its own
        request = response = _NOTHING
    for name, message in (("request", shown["request"]), ("response", shown["response"])):
        if message is not None and message["withheld"]:
            words.append(f"body of the {name}: {message['withheld']}")
    return {
        "version": VERSION,
        "type": "http",
        "id": str(uuid.uuid4()),
        "error": None if response is not None else {"msg": "no response", "timestamp": ended},
        "client_conn": _client(shown, at, version),
        "server_conn": _server(shown, at, version),
        "intercepted": False,
        "is_replay": None,
        "marked": ":no_entry:" if refused else "",
        "metadata": {},
        "comment": " · ".join(words),
        "timestamp_created": at,
        "backup": None,
        "request": {
            "http_version": version,
            "headers": _fields(request["headers"]),
            "content": base64.b64decode(request["body"]),
            "trailers": _fields(request["trailers"]) or None,
            "timestamp_start": at,
            "timestamp_end": at,
            "host": str(shown["to"]),
            "port": int(shown["port"]),
            "method": _bytes(shown["method"]),
            "scheme": b"http",
            "authority": _bytes(shown["host"]) if version == b"HTTP/2.0" else b"",
            "path": _bytes(shown["path"]),
        },
        "response": None
        if response is None
        else {
            "http_version": version,
            "headers": _fields(response["headers"]),
            "content": base64.b64decode(response["body"]),
            "trailers": _fields(response["trailers"]) or None,
            "timestamp_start": ended,
            "timestamp_end": ended,
            "status_code": int(shown["status"]),
            "reason": b"",
        },
        "websocket": messages,
    }


def _messages(asked: Mapping[str, Any], answered: Mapping[str, Any] | None, at: float) -> dict[str, Any]:
    """One message of a WebSocket, as mitmproxy's ``WebSocketData`` would have it."""
    message = asked if answered is None else answered
    content = base64.b64decode(message["body"])
    kind = _BINARY if message["withheld"] == "not text" else _TEXT
    return {
        "messages": [[kind, answered is None, content, at, False, False]],
        "closed_by_client": None,
        "close_code": None,
        "close_reason": None,
        "timestamp_end": None,
    }


def _connection(at: float, version: bytes) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "transport_protocol": "tcp",
        "error": None,
        "tls": False,
        "certificate_list": [],
        "alpn": b"h2" if version == b"HTTP/2.0" else b"http/1.1",
        "alpn_offers": [],
        "cipher": None,
        "cipher_list": [],
        "tls_version": None,
        "sni": None,
        "timestamp_start": at,
        "timestamp_end": None,
        "timestamp_tls_setup": None,
    }


def _client(shown: Mapping[str, Any], at: float, version: bytes) -> dict[str, Any]:
    ends = {"peername": [shown["from_address"] or str(shown["from"]), 0], "sockname": ["", 0]}
    return _connection(at, version) | ends | {"mitmcert": None, "proxy_mode": "regular"}


def _server(shown: Mapping[str, Any], at: float, version: bytes) -> dict[str, Any]:
    address = [str(shown["to"]), int(shown["port"])]
    ends = {"address": address, "peername": address, "sockname": ["", 0]}
    return _connection(at, version) | ends | {"timestamp_tcp_setup": at, "via": None}


def _fields(fields: Sequence[Sequence[str]]) -> list[list[bytes]]:
    return [[_bytes(name), _bytes(value)] for name, value in fields]


def _bytes(text: str) -> bytes:
    return str(text).encode("latin-1", "replace")
