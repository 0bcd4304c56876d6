"""What was asked over an edge: its operations (``GET /cart/{id}``), each with its counters.

The governing rules:

1. Operations come from the sidecar that judges them alone (the destination's; the source's for hosts outside that it
   inspects), after their end. They are no connections: nothing here adds to an edge's connections, bytes or verdict,
   and nothing is learned from them.
2. An edge keeps :data:`MAX_OPERATIONS` by name and the rest together as :data:`OTHER_OPERATIONS`, so that no count is
   lost and nobody makes an edge grow without end.
3. Who is refused must not crowd out what is used: refused ones have few places, and give theirs up to allowed ones.
   What was not seen for a day gives its place up to anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from graph.errors import InvalidValue
from graph.flow import Flow
from graph.model import Verdict
from graph.views import EdgeVerdict, OperationView
from graph.windows import MAX_TOTAL

#: Stands for all operations of an edge that have no place of their own. No operation is called so: each has a space.
OTHER_OPERATIONS = "other"
#: Operations of one edge that are kept by name, and how many of them may be ones that were only ever refused.
MAX_OPERATIONS = 64
MAX_REFUSED = 16
#: Characters of an operation.
MAX_LENGTH = 512
#: Seconds after which an operation that was not seen gives its place up.
MEMORY = 86_400.0

#: The one placeholder, which stands for whatever is different in every request.
PLACEHOLDER = "{id}"

_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
_SEGMENTS = re.compile(r"(/[A-Za-z0-9._~:-]+)*/?")
_DOTS = re.compile(r"\.+")
#: What sidecars replace by the placeholder (``sidecar.http.operation``): numbers, UUIDs, hashes, a word and a number,
#: and tokens, each with or without a file's ending; a name with a hash in it; whatever is very long. A test holds the
#: two together.
_IDENTIFIER = (
    r"(?:[0-9]+(?:[.:_-][0-9]+)*|-[0-9]+(?:[.:_-][0-9]+)*|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
    r"|(?=[A-Fa-f]*[0-9])[0-9A-Fa-f]{7,}|[A-Za-z]{1,16}[_-]?[0-9]{3,}|(?=(?:[A-Za-z_-]*[0-9]){3})[A-Za-z0-9_-]{20,})"
)
_VARIES = re.compile(
    rf"{_IDENTIFIER}(?:\.[A-Za-z][A-Za-z0-9]{{0,7}})?"
    r"|[A-Za-z0-9_-]+[.-](?=[A-Fa-f]*[0-9])[0-9A-Fa-f]{7,}\.[A-Za-z][A-Za-z0-9.]{0,11}|.{65,}"
)


def check_operation(text: str, field: str) -> str:
    """Check an operation that a person writes into a rule: a method, a space, a path with ``{id}`` for what varies.

    Rules compare operations as a whole, so whatever no sidecar calls an operation would be a rule that never holds: for
    a deny rule a door that looks closed.

    :raises InvalidValue: naming ``field``
    """
    method, space, path = text.partition(" ")
    if len(text) > MAX_LENGTH:
        raise InvalidValue(field, f"{len(text)} characters long", f"use at most {MAX_LENGTH}")
    if not space or not _METHOD.fullmatch(method):
        raise InvalidValue(
            field, f"{text[:80]!r} does not begin with a method", "write it as 'GET /cart/{id}', the method in capitals"
        )
    if path == "*":
        return text
    literal = [part for part in path.split("/") if part != PLACEHOLDER]
    if any("{" in part or "}" in part for part in literal):
        raise InvalidValue(
            field, f"{path[:80]!r} has another placeholder than {PLACEHOLDER}", "write {id} for a segment that varies"
        )
    if not path.startswith("/") or not _SEGMENTS.fullmatch(path.replace(PLACEHOLDER, "x")):
        raise InvalidValue(
            field,
            f"{path[:80]!r} is no path",
            "begin with '/', leave out query and fragment, and write {id} for a segment with other marks than -._~:",
        )
    for part in literal:
        if _DOTS.fullmatch(part):
            raise InvalidValue(field, f"{path[:80]!r} has a segment of dots alone", "write the path that is meant")
        if _VARIES.fullmatch(part):
            raise InvalidValue(
                field, f"{part[:80]!r} looks like an identifier", "write {id} in its place: sidecars name it so"
            )
    return text


class OperationBook:
    """The operations of one edge."""

    __slots__ = ("_entries",)

    def __init__(self, views: Iterable[OperationView] = ()) -> None:
        self._entries = {view.name: view for view in views}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, flow: Flow, now: float, *, room: bool) -> None:
        """Count the requests of one report.

        :param now: reported times after it count as now
        :param room: whether another operation may take a place that was free
        """
        name = flow.operation
        if name not in self._entries and not self._make_place(flow, now, room=room):
            name = OTHER_OPERATIONS
        first, last = sorted((min(flow.first_seen, now), min(flow.last_seen, now)))
        verdict = EdgeVerdict.of(flow)
        refused = verdict is EdgeVerdict.DENY
        self._put(
            OperationView(
                name,
                requests=0 if refused else flow.requests,
                denied=flow.requests if refused else 0,
                would_deny=flow.requests if verdict is EdgeVerdict.WOULD_DENY else 0,
                first_seen=first,
                last_seen=last,
            )
        )

    def views(self) -> tuple[OperationView, ...]:
        """By name, :data:`OTHER_OPERATIONS` at the end."""
        return tuple(sorted(self._entries.values(), key=lambda view: (view.name == OTHER_OPERATIONS, view.name)))

    def _put(self, view: OperationView) -> None:
        held = self._entries.get(view.name)
        self._entries[view.name] = view if held is None else _sum(held, view)

    def _make_place(self, flow: Flow, now: float, *, room: bool) -> bool:
        """Whether an operation that is not here gets a place of its own, in which case there is one now."""
        if flow.operation == OTHER_OPERATIONS:
            return True
        named = [view for view in self._entries.values() if view.name != OTHER_OPERATIONS]
        refused = [view for view in named if not view.requests]
        allowed = flow.verdict is Verdict.ALLOW
        if room and len(named) < MAX_OPERATIONS and (allowed or len(refused) < MAX_REFUSED):
            return True
        crowd = named if allowed or len(refused) < MAX_REFUSED else refused
        leaving = [view for view in crowd if view.last_seen < now - MEMORY]
        if not leaving and allowed:
            leaving = refused
        if not leaving:
            return False
        left = min(leaving, key=lambda view: (view.last_seen, view.name))
        del self._entries[left.name]
        self._put(_named_other(left))
        return True


def _named_other(view: OperationView) -> OperationView:
    return OperationView(OTHER_OPERATIONS, view.requests, view.denied, view.would_deny, view.first_seen, view.last_seen)


def _sum(one: OperationView, other: OperationView) -> OperationView:
    return OperationView(
        one.name,
        min(one.requests + other.requests, MAX_TOTAL),
        min(one.denied + other.denied, MAX_TOTAL),
        min(one.would_deny + other.would_deny, MAX_TOTAL),
        min(one.first_seen, other.first_seen),
        max(one.last_seen, other.last_seen),
    )
