"""What the ``inspect`` lane is told: limits, header rules, addons. Pure.

The governing rule is that of all settings: what is not understood is refused, never ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from graph.errors import InvalidValue
from graph.fields import Check, Fields, Unfit, choice, integer, items, optional, seconds, shown, text, unfit
from graph.model import InspectedHost

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,4096}")
_MIB: Final = 1 << 20
#: A snapshot names no more hosts.
_MAX_HOSTS: Final = 64

#: Headers that frame or route a message, and those that we set ourselves: no rule may touch them.
RESERVED: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-client-cert",
        "x-hedgerow-reason",
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may cost. A rate is per second; twice as many pass in a burst, more end the connection.

    :param head_bytes: of one head, as it came and as it decompresses (HPACK)
    :param head_seconds: for one head to arrive, and in HTTP/2 for every frame but those of a body, and the preface
    :param streams: HTTP/2 requests alive at once on one connection; more are refused with REFUSED_STREAM
    :param opens: HTTP/2 requests that may be begun
    :param resets: requests that the client resets (CVE-2023-44487), or makes us reset (CVE-2025-8671)
    :param early_resets: requests more that the client resets, or makes us reset, than were answered, at whatever pace
    :param settings: SETTINGS frames
    :param pings: PING frames; gRPC measures bandwidth with them
    :param updates: WINDOW_UPDATE frames
    :param empty_frames: DATA without data that does not end a stream
    :param others: frames of every other kind without a use for us (PRIORITY, unknown ones)
    :param continuations: CONTINUATION frames of one head
    :param stream_window: bytes of one HTTP/2 stream held for a receiver that does not take them
    :param connection_window: the same of all streams of one connection, in one direction
    :param stall: seconds that a receiver may leave us with data and no window, or no answer
    :param discarded: bytes of a refused request's body that are read and thrown away before the connection ends
    :param message: bytes of one WebSocket message that addons see; a longer one ends its connection
    :param slice: seconds of work for one connection before others have their turn, and for all that want it at once
    """

    head_bytes: int = 65_536
    head_seconds: float = 10.0
    streams: int = 128
    opens: int = 5_000
    resets: int = 100
    early_resets: int = 500
    settings: int = 20
    pings: int = 1_000
    updates: int = 10_000
    empty_frames: int = 20
    others: int = 200
    continuations: int = 32
    stream_window: int = 262_144
    connection_window: int = 1 << 20
    stall: float = 60.0
    discarded: int = 1 << 20
    message: int = 1 << 20
    slice: float = 0.000_25


class OnAddonError(StrEnum):
    """What becomes of a request in which an addon failed."""

    REFUSE = "refuse"
    PASS = "pass"  # noqa: S105  # not a password


@dataclass(frozen=True, slots=True)
class HeaderRule:
    """Sets and removes headers of the requests of some operations and of their responses.

    :param operations: as rules of the policy name them; empty: all. A final ``*`` stands for any rest
    :param ports: empty: all
    """

    operations: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    request_set: tuple[tuple[bytes, bytes], ...] = ()
    request_remove: frozenset[bytes] = frozenset()
    response_set: tuple[tuple[bytes, bytes], ...] = ()
    response_remove: frozenset[bytes] = frozenset()

    def speaks_of(self, operation: str, port: int) -> bool:
        """Whether the rule is for ``operation`` on our application's ``port``."""
        if self.ports and port not in self.ports:
            return False
        return not self.operations or any(fits(pattern, operation) for pattern in self.operations)


def fits(pattern: str, operation: str) -> bool:
    """Whether ``operation`` is ``pattern``, or begins with what stands before a final ``*``."""
    return operation.startswith(pattern[:-1]) if pattern.endswith("*") else operation == pattern


@dataclass(frozen=True, slots=True)
class EgressSettings:
    """How hosts outside the mesh are inspected; which, says the controller.

    :param hosts: of those, the only ones; None: all. So a pod whose application was not told whom to trust, because it
        is older than what its workload inspects now, goes on as before
    :param directory: where what the application has to trust is written; None: nowhere
    :param roots: PEM file with what the hosts' own certificates have to lead to; None: what the system trusts
    """

    directory: Path | None = None
    roots: Path | None = None
    hosts: frozenset[InspectedHost] | None = None


@dataclass(frozen=True, slots=True)
class InspectSettings:
    """The ``inspect:`` section of ``sidecar.yaml``.

    :param headers: in order; later ones see what earlier ones did
    :param addons: files with mitmproxy addons; with any, every HTTP connection to our application is inspected
    :param addon_bodies: bytes up to which bodies are collected for addons; larger ones, by default all, are streamed
    :param on_addon_error: see :class:`OnAddonError`
    :param ports: of our application, whose HTTP connections are inspected whatever the policy says
    :param visible: names of headers and JSON keys that a tap may show although they are usually hidden
    :param hidden: names that a tap hides beside the usual ones
    :param egress: of hosts outside the mesh
    """

    limits: Limits = Limits()
    headers: tuple[HeaderRule, ...] = ()
    addons: tuple[Path, ...] = ()
    addon_bodies: int = 0
    on_addon_error: OnAddonError = OnAddonError.REFUSE
    ports: frozenset[int] = frozenset()
    visible: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()
    egress: EgressSettings = EgressSettings()

    def wants(self, port: int) -> bool:
        """Whether connections to ``port`` have to be inspected whatever the policy says."""
        return (
            bool(self.addons)
            or port in self.ports
            or (bool(self.headers) and any(not rule.ports or port in rule.ports for rule in self.headers))
        )


DEFAULTS: Final = InspectSettings()


def read_inspect(value: object) -> InspectSettings:
    """Read the section.

    :raises Unfit: naming the setting, what is wrong with it and what to write instead
    """
    fields = Fields(value, unfit, noun="setting")
    limits = fields.take("limits", _limits, Limits())
    settings = InspectSettings(
        limits=limits,
        headers=fields.take("headers", items(_rule, at_most=256), ()),
        addons=fields.take("addons", items(_file, at_most=32), ()),
        addon_bodies=fields.take("addon_bodies", integer(0, 64 * _MIB), 0),
        on_addon_error=fields.take("on_addon_error", choice(*OnAddonError), OnAddonError.REFUSE),
        ports=frozenset(fields.take("ports", items(integer(1, 65535), at_most=256), ())),
        visible=frozenset(fields.take("visible", items(_name, at_most=256), ())),
        hidden=frozenset(fields.take("hidden", items(_name, at_most=256), ())),
        egress=fields.take("egress", _egress, EgressSettings()),
    )
    fields.finish()
    return settings


_CHECKS: Final[dict[str, Check[int] | Check[float]]] = {
    "head_bytes": integer(1024, _MIB),
    "head_seconds": seconds(0.1, 300),
    "streams": integer(1, 65_536),
    "opens": integer(1, 1_000_000),
    "resets": integer(1, 1_000_000),
    "early_resets": integer(1, 1_000_000),
    "settings": integer(1, 10_000),
    "pings": integer(1, 1_000_000),
    "updates": integer(1, 1_000_000),
    "empty_frames": integer(1, 10_000),
    "others": integer(1, 100_000),
    "continuations": integer(1, 1024),
    "stream_window": integer(65_535, 64 * _MIB),
    "connection_window": integer(65_535, 256 * _MIB),
    "stall": seconds(0.1, 86_400),
    "discarded": integer(0, 64 * _MIB),
    "message": integer(1024, 64 * _MIB),
    "slice": seconds(0.0001, 1),
}


def _limits(value: object) -> Limits:
    fields = Fields(value, unfit, noun="limit")
    defaults = Limits()
    given = {name: fields.take(name, check, getattr(defaults, name)) for name, check in _CHECKS.items()}
    fields.finish()
    if given["stream_window"] > given["connection_window"]:
        fields.fail("stream_window", "larger than connection_window", "write at most as much")
    return Limits(**given)  # type: ignore[arg-type]  # _CHECKS has the kinds


def _rule(value: object) -> HeaderRule:
    fields = Fields(value, unfit, noun="setting")
    request_set, request_remove = fields.take("request", _changes, ((), frozenset()))
    response_set, response_remove = fields.take("response", _changes, ((), frozenset()))
    rule = HeaderRule(
        operations=fields.take("operations", items(text(512), at_most=256), ()),
        ports=fields.take("ports", items(integer(1, 65535), at_most=256), ()),
        request_set=request_set,
        request_remove=request_remove,
        response_set=response_set,
        response_remove=response_remove,
    )
    fields.finish()
    if not (request_set or request_remove or response_set or response_remove):
        fields.fail("request", "neither request nor response is given", "say what to set or to remove")
    return rule


def _changes(value: object) -> tuple[tuple[tuple[bytes, bytes], ...], frozenset[bytes]]:
    fields = Fields(value, unfit, noun="setting")
    given = fields.take("set", _pairs, ())
    removed = fields.take("remove", items(_header, at_most=256), ())
    fields.finish()
    return given, frozenset(removed)


def _pairs(value: object) -> tuple[tuple[bytes, bytes], ...]:
    if not isinstance(value, dict):
        raise Unfit(f"{shown(value)} is no mapping", "write header names with their values")
    pairs = []
    for name, content in value.items():
        if not isinstance(content, str) or not _VALUE.fullmatch(content) or content != content.strip():
            raise Unfit(f"the value of {shown(name)} is no header value", "write printable ASCII in quotes")
        pairs.append((_header(name), content.encode("ascii")))
    return tuple(pairs)


def _header(value: object) -> bytes:
    name = _name(value)
    if name in RESERVED or name.startswith(":"):
        raise Unfit(f"{name!r} frames or routes messages, or is ours", "name another header")
    return name.encode("ascii")


def _name(value: object) -> str:
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise Unfit(f"{shown(value)} is no name of a header", "use letters, digits and '-'")
    return value.lower()


def _egress(value: object) -> EgressSettings:
    fields = Fields(value, unfit, noun="setting")
    egress = EgressSettings(
        directory=fields.take("directory", optional(_path), None),
        roots=fields.take("roots", optional(_path), None),
        hosts=fields.take("hosts", optional(_hosts), None),
    )
    fields.finish()
    return egress


def _hosts(value: object) -> frozenset[InspectedHost]:
    return frozenset(items(_inspected, at_most=_MAX_HOSTS)(value))


def _inspected(value: object) -> InspectedHost:
    try:
        return InspectedHost.parse(text(300)(value))
    except InvalidValue as error:
        raise Unfit(error.problem, error.remedy) from None


def _path(value: object) -> Path:
    path = Path(text(4096)(value))
    if not path.is_absolute():
        raise Unfit(f"{shown(value)} is no absolute path", "begin with '/'")
    return path


def _file(value: object) -> Path:
    path = Path(text(4096)(value))
    if not path.is_absolute() or path.suffix != ".py":
        raise Unfit(f"{shown(value)} is no absolute path of a Python file", "write it as /etc/hedgerow/addon.py")
    return path
