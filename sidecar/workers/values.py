"""Settings as JSON and back, by the types of their fields: what does not fit its type exactly is refused."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from certs.errors import CertError
from certs.spiffe import SpiffeId


class Misfit(ValueError):
    """The value is not of the type that it is read as; the message names the place."""


def encode(value: object) -> object:
    """What JSON knows, of dataclasses, named tuples, tuples, sets, enumerations, paths, bytes and plain values."""
    if isinstance(value, SpiffeId):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: encode(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, frozenset):
        return sorted((encode(one) for one in value), key=str)
    if isinstance(value, tuple):
        return [encode(one) for one in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} is no value of settings")


def decode[T](kind: type[T], value: object) -> T:
    """Read what :func:`encode` wrote of a ``kind``.

    :raises Misfit: naming the field that does not fit
    """
    return typing.cast(T, _decode(kind, value, kind.__name__))


def _decode(kind: Any, value: object, where: str) -> object:
    origin = typing.get_origin(kind)
    if origin is types.UnionType or origin is typing.Union:
        if value is None and type(None) in typing.get_args(kind):
            return None
        (inner,) = (one for one in typing.get_args(kind) if one is not type(None))
        return _decode(inner, value, where)
    if origin is tuple or origin is frozenset:
        return _several(kind, origin, value, where)
    if kind is SpiffeId and isinstance(value, str):
        return _spiffe_id(value, where)
    if dataclasses.is_dataclass(kind):
        return _fields(kind, value, where)
    if issubclass(kind, tuple):  # a named one
        hints = typing.get_type_hints(kind)
        if not isinstance(value, list) or len(value) != len(hints):
            raise Misfit(where)
        pairs = zip(hints.items(), value, strict=True)
        return kind(*(_decode(hint, one, f"{where}.{name}") for (name, hint), one in pairs))
    return _plain(kind, value, where)


def _spiffe_id(value: str, where: str) -> SpiffeId:
    try:
        return SpiffeId.parse(value)
    except CertError:
        raise Misfit(where) from None


def _several(kind: Any, origin: type, value: object, where: str) -> object:
    if not isinstance(value, list):
        raise Misfit(where)
    inner = typing.get_args(kind)
    if origin is frozenset or inner[-1] is Ellipsis:
        return origin(_decode(inner[0], one, f"{where}[{index}]") for index, one in enumerate(value))
    if len(value) != len(inner):
        raise Misfit(where)
    return tuple(_decode(one, value[index], f"{where}[{index}]") for index, one in enumerate(inner))


def _fields(kind: Any, value: object, where: str) -> object:
    hints = typing.get_type_hints(kind)
    if not isinstance(value, Mapping) or set(value) != set(hints):
        raise Misfit(where)
    return kind(**{name: _decode(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})


def _plain(kind: Any, value: object, where: str) -> object:
    try:
        if issubclass(kind, Enum):
            return kind(value)
        if kind is Path and isinstance(value, str):
            return Path(value)
        if kind is bytes and isinstance(value, str):
            return bytes.fromhex(value)
    except ValueError:
        raise Misfit(where) from None
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (str, int, bool) and type(value) is kind:
        return value
    raise Misfit(where)
