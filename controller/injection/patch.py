"""JSON Patch (RFC 6902) from one document to another: small where something was put in, right in every case."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def diff(before: Any, after: Any, path: str = "") -> Iterator[dict[str, Any]]:
    """The operations that make ``after`` of ``before``, in order.

    :param path: JSON Pointer (RFC 6901) of where both stand
    """
    if _same(before, after):
        return
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _of_mappings(before, after, path)
    elif isinstance(before, list) and isinstance(after, list) and _is_within(before, after):
        yield from _of_lists(before, after, path)
    else:
        yield {"op": "replace", "path": path, "value": after}


def _of_mappings(before: dict[str, Any], after: dict[str, Any], path: str) -> Iterator[dict[str, Any]]:
    for name in before:
        if name not in after:
            yield {"op": "remove", "path": _within(path, name)}
    for name, value in after.items():
        if name in before:
            yield from diff(before[name], value, _within(path, name))
        else:
            yield {"op": "add", "path": _within(path, name), "value": value}


def _of_lists(before: list[Any], after: list[Any], path: str) -> Iterator[dict[str, Any]]:
    """Entries that came in between, and those that changed, each at the place that it has by then."""
    left = list(before)
    for index, entry in enumerate(after):
        if left and _key(left[0]) == _key(entry):
            yield from diff(left.pop(0), entry, f"{path}/{index}")
        else:
            yield {"op": "add", "path": f"{path}/{index}", "value": entry}


def _is_within(before: list[Any], after: list[Any]) -> bool:
    """Whether every entry of ``before`` is in ``after`` by its name, once and in the same order."""
    keys = [_key(entry) for entry in before]
    if any(key is None for key in keys) or len(set(keys)) < len(keys):
        return False
    wanted = set(keys)
    return [key for key in map(_key, after) if key in wanted] == keys


def _key(entry: Any) -> str | None:
    name = entry.get("name") if isinstance(entry, dict) else None
    return name if isinstance(name, str) else None


def _within(path: str, name: str) -> str:
    return f"{path}/{name.replace('~', '~0').replace('/', '~1')}"


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: Python takes ``True`` for 1, and so inside of lists and mappings."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)
