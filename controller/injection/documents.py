"""Looks into a pod's document. From a file it may be anything: wrong shapes are refusals, not faults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller.injection.errors import InjectionRefused
from graph.fields import shown


def mapping(parent: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The mapping ``name`` of ``parent``; empty where it is absent.

    :param where: the path of ``parent``, for messages
    :raises InjectionRefused: when it is no mapping
    """
    value = parent.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(where, name, value, "a mapping")
    return value


def listed(parent: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """The list ``name`` of ``parent``; empty where it is absent.

    :raises InjectionRefused: when it is no list
    """
    value = parent.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _wrong(where, name, value, "a list")
    return value


def mappings(parent: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    """The list ``name`` of ``parent``, each entry of which is a mapping.

    :raises InjectionRefused: when it is not
    """
    found = listed(parent, name, where)
    for index, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise _wrong(where, f"{name}[{index}]", entry, "a mapping")
    return found


def texts(parent: Mapping[str, Any], name: str, where: str) -> dict[str, str]:
    """A mapping of texts, such as labels.

    :raises InjectionRefused: when it is not
    """
    found = mapping(parent, name, where)
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise _wrong(where, f"{name}[{str(key)[:80]}]", value, "text; write it in quotes")
    return found


def integer_or_none(value: object) -> int | None:
    """A whole number, which a truth value is not."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _wrong(where: str, name: str, value: object, wanted: str) -> InjectionRefused:
    problem, _, remedy = f"{shown(value)} is not {wanted}".partition("; ")
    return InjectionRefused(
        problem, field=f"{where}.{name}", remedy=remedy or "write it as Kubernetes' API reference has it"
    )
