"""Reads request bodies and query strings, strictly: an unknown field, a field twice or a wrong type is refused.

Everything raised here is an :class:`~controller.errors.InvalidRequest` (HTTP 400) that names the field and the remedy.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from controller.errors import InvalidRequest, refusal
from graph.fields import Check, Fields, Unfit, parsed
from graph.flow import EdgeKey
from graph.model import WorkloadRef
from graph.operations import check_operation
from graph.outside import parse_end

#: The largest body; `policy approve` with a thousand edges is about 100 KB.
MAX_BODY_BYTES = 1024 * 1024


async def body(request: web.Request) -> Fields:
    """The JSON object of a request's body.

    :raises InvalidRequest: when it is none
    """
    if request.content_type != "application/json":
        raise InvalidRequest(
            "the body is not JSON", field="Content-Type", remedy="send application/json with a JSON object"
        )
    data = await request.read()
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise InvalidRequest(f"the body is not JSON: {problem}", remedy="send one JSON object in UTF-8") from None
    return Fields(document, refusal(InvalidRequest))


def query(request: web.Request) -> Fields:
    """The query string's parameters, as text.

    :raises InvalidRequest: when one is there twice
    """
    pairs = list(request.query.items())
    given = dict(pairs)
    if len(given) != len(pairs):
        twice = next(name for name in given if len(request.query.getall(name)) > 1)
        raise InvalidRequest("there twice", field=twice[:80], remedy="give it once")
    return Fields(given, refusal(InvalidRequest), noun="parameter")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # add returns None, so the first repeated name is found
        raise InvalidRequest("there twice", field=twice[:80], remedy="give it once")
    return made


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


# --- checks for what the API speaks of


#: ``namespace/name``, ``-/address`` or ``-/host``
workload: Check[WorkloadRef] = parsed(WorkloadRef.parse)

#: of what a person decides: these, ``-/203.0.113.0/24``, or ``-/*.example.com``
end: Check[WorkloadRef] = parsed(parse_end)

#: ``shop/front->shop/cart:8080/TCP``
edge: Check[EdgeKey] = parsed(EdgeKey.parse)


#: ``GET /cart/{id}``
operation: Check[str] = parsed(lambda written: check_operation(written, "operation"))


def number(low: int, high: int) -> Check[int]:
    """A whole number as it stands in a query string."""

    def check(value: object) -> int:
        written = str(value)
        if not written.isascii() or not written.isdigit() or len(written) > 12 or not low <= int(written) <= high:
            raise Unfit(f"{written[:60]!r} is not such a number", f"write a whole number from {low} to {high}")
        return int(written)

    return check


def moment(value: object) -> float:
    """Seconds since the epoch as they stand in a query string."""
    try:
        found = float(str(value))
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e12:
        raise Unfit(f"{str(value)[:60]!r} is not a time", "write seconds since the Unix epoch, such as 1760000000")
    return found


def blank_is_absent[T](check: Check[T]) -> Check[T | None]:
    """A query parameter left empty (``?workload=``) counts as not given."""
    return lambda value: None if value == "" else check(value)
