"""The kubelet's probes, which can not speak mutual TLS: what the sidecar is told to do in their place.

``httpGet``, ``tcpSocket`` and ``grpc`` become ``httpGet`` of port 15020, ``/app-health/<container>/<kind>``, and an
entry of ``probes:`` in the sidecar's settings (docs/sidecar-settings.md). ``exec`` runs in the container and stays
as it is; so does what the sidecar can not do as the kubelet would, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from controller.injection.documents import integer_or_none, listed, mapping, mappings
from controller.injection.names import PORTS, STATS_PORT

#: The kubelet's word for a probe, and the sidecar's.
KINDS: Final = {"livenessProbe": "livez", "readinessProbe": "readyz", "startupProbe": "startupz"}
ACTIONS: Final = ("httpGet", "tcpSocket", "grpc")
#: The sidecar takes no more.
MAX_PROBES: Final = 64
#: Seconds that the sidecar takes for one at the longest and at the shortest.
MAX_TIMEOUT: Final = 60

_MAX_TARGET = 1000
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_FIELD_VALUE = re.compile(r"[\t -~]{0,1024}")
_SERVICE = re.compile(r"[!-~]{0,256}")
#: What frames a message is the sidecar's to send.
_FRAMING = frozenset({"connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "expect"})
#: What a request target may hold as it is; the kubelet, too, sends the rest percent-encoded.
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


@dataclass(frozen=True, slots=True)
class Application:
    """Where the application listens in explicit mode: not on the pod's address.

    :param ports: the sidecar's own ports, each with the application's on 127.0.0.1
    """

    ports: Mapping[int, int]

    def place(self, port: int) -> tuple[int, dict[str, str]]:
        """The port to go to, and the part of the settings that says at which address; empty for the pod's own."""
        behind = self.ports.get(port)
        return (port, {}) if behind is None else (behind, {"address": "127.0.0.1"})


class Unsuited(Exception):
    """The sidecar can not perform this probe as the kubelet would; the text says why."""


def path_of(container: str, probe: str) -> str:
    """Where the sidecar performs a probe.

    :param probe: the kubelet's word for it, such as ``livenessProbe``
    """
    return f"/app-health/{container}/{KINDS[probe]}"


def is_rewritten(container: str, probe: str, action: Mapping[str, Any]) -> bool:
    """Whether a probe is one that we have pointed at the sidecar."""
    get = action.get("httpGet")
    if not isinstance(get, Mapping):
        return False
    return get.get("port") == STATS_PORT and get.get("path") == path_of(container, probe)


def probes_of(container: Mapping[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The probes of one container that lead over the network."""
    for name in KINDS:
        probe = mapping(container, name, where)
        if any(probe.get(action) is not None for action in ACTIONS):
            yield name, probe


def rewritten(container: str, name: str, probe: Mapping[str, Any]) -> dict[str, Any]:
    """The kubelet's side of it: the same times and thresholds, the sidecar's path."""
    kept = {key: value for key, value in probe.items() if key not in ACTIONS}
    return {"httpGet": {"path": path_of(container, name), "port": STATS_PORT, "scheme": "HTTP"}, **kept}


def performed(
    container: Mapping[str, Any], name: str, probe: Mapping[str, Any], application: Application, where: str
) -> dict[str, Any]:
    """The sidecar's side of it: an entry of ``probes:``.

    :param where: the path of the container, for messages
    :raises Unsuited: when the sidecar can not do it
    """
    timeout = probe.get("timeoutSeconds", 1)
    bounded = min(timeout, MAX_TIMEOUT) if isinstance(timeout, int) and timeout > 0 else 1
    entry: dict[str, Any] = {"container": container["name"], "kind": KINDS[name], "timeout": bounded}
    inner = f"{where}.{name}"
    if probe.get("httpGet") is not None:
        get = mapping(probe, "httpGet", inner)
        port, place = _place(container, get, application, where)
        action = {"port": port, "path": _target(get.get("path")), "scheme": _scheme(get.get("scheme"))}
        headers = _headers(mappings(get, "httpHeaders", f"{inner}.httpGet"))
        return {**entry, **place, "http": {**action, **({"headers": headers} if headers else {})}}
    if probe.get("tcpSocket") is not None:
        port, place = _place(container, mapping(probe, "tcpSocket", inner), application, where)
        return {**entry, **place, "tcp": {"port": port}}
    grpc = mapping(probe, "grpc", inner)
    port, place = _place(container, grpc, application, where)
    service = grpc.get("service") or ""
    if not isinstance(service, str) or not _SERVICE.fullmatch(service):
        raise Unsuited("the name of its gRPC service is none")
    return {**entry, **place, "grpc": {"port": port, **({"service": service} if service else {})}}


def _place(
    container: Mapping[str, Any], action: Mapping[str, Any], application: Application, where: str
) -> tuple[int, dict[str, str]]:
    if action.get("host"):
        raise Unsuited("it names a host, which is not this pod")
    port = _port(container, action.get("port"), where)
    if port in PORTS:
        raise Unsuited(f"port {port} is the sidecar's own")
    return application.place(port)


def _port(container: Mapping[str, Any], written: object, where: str) -> int:
    """As the kubelet reads it: a number, the name of a port of this container, or a number in quotes."""
    number = integer_or_none(written)
    if isinstance(written, str):
        for port in listed(container, "ports", where):
            if isinstance(port, Mapping) and port.get("name") == written:
                number = integer_or_none(port.get("containerPort"))
                break
        else:
            number = int(written) if written.isascii() and written.isdigit() and len(written) <= 5 else None
    if number is None or not 1 <= number <= 65535:
        raise Unsuited(f"the container has no port {str(written)[:40]!r}")
    return number


def _target(path: object) -> str:
    """The kubelet takes a path and its query apart from a fragment, and escapes what is not visible ASCII."""
    written = path if isinstance(path, str) else ""
    target = quote(written.partition("#")[0], safe=_VISIBLE)
    if len(target) > _MAX_TARGET:
        raise Unsuited(f"its path is longer than {_MAX_TARGET} characters")
    return target if target.startswith("/") else f"/{target}"


def _scheme(written: object) -> str:
    scheme = str(written or "HTTP").lower()
    if scheme not in ("http", "https"):
        raise Unsuited("its scheme is neither HTTP nor HTTPS")
    return scheme


def _headers(headers: list[dict[str, Any]]) -> list[dict[str, str]]:
    made = []
    for header in headers:
        name, value = header.get("name"), header.get("value", "")
        if not isinstance(name, str) or not isinstance(value, str):
            raise Unsuited("a header is no text")
        if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise Unsuited(f"its header {name[:40]!r} can not be sent")
        if name.lower() in _FRAMING:
            raise Unsuited(f"its header {name} is the sidecar's to send")
        made.append({"name": name, "value": value})
    if len(made) > 32:
        raise Unsuited("it has more than 32 headers")
    return made
