"""Reads mappings that people or programs wrote, strictly: settings files, request bodies, query strings.

The governing rule: what is not understood is refused, never ignored. A misspelt field must not silently fall back to
its default, and every refusal names the field, what is wrong with it and what to write instead. A check takes the
value alone; who asked for it (a file, a request) decides which exception the reader raises.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NoReturn

from controller.errors import ControllerError

_HOST_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?")

type Check[T] = Callable[[object], T]
"""Takes what was written, returns the value or raises :class:`Unfit`."""


type Refuse = Callable[[str, str, str], Exception]
"""Makes the exception to raise, of the field's name, the problem and the remedy."""


class Unfit(Exception):
    """A value fails a check. :param inner: which part of it, such as ``[3]``; empty for the whole."""

    def __init__(self, problem: str, remedy: str, inner: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.inner = inner


_MISSING = object()


class Fields:
    """Takes the fields of one mapping, one by one, and refuses what is left over.

    :param document: what was read; anything but a mapping is refused
    :param refuse: makes the exception to raise
    :param noun: what an entry is called in messages: ``setting``, ``field``, ``parameter``
    """

    def __init__(self, document: object, refuse: Refuse, *, noun: str = "field") -> None:
        self._refuse = refuse
        self._noun = noun
        if not isinstance(document, Mapping):
            raise refuse("", f"{kind(document)} is not a mapping", f"write each {noun} by its name")
        self._left = dict(document)
        self._known: list[str] = []

    def take[T](self, name: str, check: Check[T], default: object = _MISSING) -> T:
        """The value of one field; ``default`` where it is absent.

        :raises Exception: as ``refuse`` makes it, when the field is missing or fails its check
        """
        self._known.append(name)
        value = self._left.pop(name, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                self.fail(name, "missing", f"add the {self._noun} {name!r}")
            return default  # type: ignore[return-value]  # every default is a value that its check could return
        try:
            return check(value)
        except Unfit as error:
            self.fail(name + error.inner, error.problem, error.remedy)

    def fail(self, name: str, problem: str, remedy: str) -> NoReturn:
        """Refuse one field for a reason that only the caller can see."""
        raise self._refuse(name, problem, remedy)

    def finish(self) -> None:
        """Refuse whatever was not taken."""
        for name in self._left:
            known = ", ".join(self._known) or "none"
            close = difflib.get_close_matches(str(name), self._known, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"remove it; known are: {known}"
            self.fail(str(name)[:80], f"unknown {self._noun}", remedy)


def refusal(error: type[ControllerError]) -> Refuse:
    """For the outermost mapping: raises ``error`` with the field's name as it stands."""
    return lambda name, problem, remedy: error(problem, field=name, remedy=remedy)


def unfit(name: str, problem: str, remedy: str) -> Unfit:
    """For a mapping inside another: the outer reader puts its own field's name before ``name``."""
    return Unfit(problem, remedy, f".{name}" if name else "")


def kind(value: object) -> str:
    """A value as a message shows it: bounded, and with its type."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping | list):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    return f"{type(value).__name__} {str(value)[:60]!r}"


def text(at_most: int = 1024, *, may_be_empty: bool = False) -> Check[str]:
    """Text without control characters."""

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise Unfit(f"{kind(value)} is not text", "write a string (in quotes where it looks like a number)")
        if not value.strip() and not may_be_empty:
            raise Unfit("empty", "write something")
        if len(value) > at_most:
            raise Unfit(f"{len(value)} characters long", f"use at most {at_most}")
        if not value.isprintable():
            raise Unfit("contains control characters", "write one line of plain text")
        return value

    return check


def integer(low: int, high: int) -> Check[int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Unfit(f"{kind(value)} is not such a number", f"write a whole number from {low} to {high}")
        return value

    return check


def seconds(low: float, high: float) -> Check[float]:
    def check(value: object) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type,operator]  # a number by now
            raise Unfit(f"{kind(value)} is not such a duration", f"write seconds from {low:g} to {high:g}")
        return float(value)  # type: ignore[arg-type]  # a number by now

    return check


def choice[E: StrEnum](*members: E) -> Check[E]:
    """One of some members of an enumeration, by its value."""
    by_value = {str(member): member for member in members}
    check = word(*by_value)
    return lambda value: by_value[check(value)]


def word(*words: str) -> Check[str]:
    """One of some words."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise Unfit(f"{kind(value)} is none of the choices", f"use one of: {', '.join(words)}")
        return value

    return check


def optional[T](check: Check[T]) -> Check[T | None]:
    return lambda value: None if value is None else check(value)


def items[T](check: Check[T], *, at_least: int = 0, at_most: int = 10_000) -> Check[tuple[T, ...]]:
    """A list, each entry of which passes ``check``."""

    def check_all(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise Unfit(f"{kind(value)} is not a list", "write a list, even of one entry")
        if not at_least <= len(value) <= at_most:
            raise Unfit(f"{len(value)} entries", f"write {at_least} to {at_most}")
        made = []
        for index, entry in enumerate(value):
            try:
                made.append(check(entry))
            except Unfit as error:
                raise Unfit(error.problem, error.remedy, f"[{index}]{error.inner}") from None
        return tuple(made)

    return check_all


def host_and_port(value: object) -> tuple[str, int]:
    """``10.0.0.1:80``, ``[::1]:80`` or ``name:80``, as host and port; the host is not resolved."""
    written = text(300)(value)
    host, colon, number = written.rpartition(":")
    if not colon or not number.isascii() or not number.isdigit() or len(number) > 5 or int(number) > 65535:
        raise Unfit(f"{written[:80]!r} is not host:port", "write it as 127.0.0.1:8080")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise Unfit(f"{written[:80]!r} is ambiguous", "write an IPv6 address in brackets: [::1]:8080")
    return host, int(number)


def ip_and_port(value: object) -> tuple[str, int]:
    """As :func:`host_and_port`, but the host is an IP address: what a server binds to must not depend on DNS."""
    host, port = host_and_port(value)
    try:
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        raise Unfit(f"{host[:80]!r} is not an IP address", "bind to an address such as 127.0.0.1 or 0.0.0.0") from None


def host_name(value: object) -> str:
    """A DNS name or an IP address, in lower case and without brackets or port, as the ``Host`` header is compared."""
    written = text(300)(value).lower()
    bare = written[1:-1] if written.startswith("[") and written.endswith("]") else written
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        if not _HOST_NAME.fullmatch(bare):
            raise Unfit(f"{written[:80]!r} is not a host name", "write a name without scheme and port") from None
        return bare
