"""Reads mappings that people or programs wrote, strictly: settings, inventories, request bodies, query strings.

The governing rule: what is not understood is refused, never ignored. A misspelt field must not silently fall back to
its default, and every refusal names the field, what is wrong with it and what to write instead. A check takes the
value alone; who asked for it (a file, a request) decides which exception the reader raises.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from certs.errors import CertError
from certs.spiffe import MAX_TRUST_DOMAIN_LENGTH, check_trust_domain
from graph.errors import InvalidValue
from graph.model import WorkloadRef
from graph.text import printable

_HOST_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?")
#: How alike two names are for the one to be taken for the other, misspelt; ``namespace`` is no ``name``.
_MISSPELT = 0.7

type Check[T] = Callable[[object], T]
"""Takes what was written, returns the value or raises :class:`Unfit`."""


type Refuse = Callable[[str, str, str], Exception]
"""Makes the exception to raise, of the field's name (empty for the whole document), the problem and the remedy."""


class Unfit(Exception):
    """A value fails a check.

    :param inner: which part of it, such as ``[3]`` or ``.listen``; empty for the whole
    """

    def __init__(self, problem: str, remedy: str, inner: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        self.inner = inner


_MISSING = object()


class Fields:
    """Takes the fields of one mapping, one by one, and refuses what is left over.

    :param document: what was read; anything but a mapping is refused
    :param refuse: makes the exception to raise; :func:`unfit` for a mapping inside another
    :param noun: what an entry is called in messages: ``setting``, ``field``, ``parameter``
    """

    def __init__(self, document: object, refuse: Refuse, *, noun: str = "field") -> None:
        self._refuse = refuse
        self._noun = noun
        if not isinstance(document, Mapping):
            raise refuse("", f"{shown(document)} is not a mapping", f"write each {noun} by its name, as `name: value`")
        self._left = dict(document)
        self._known: list[str] = []

    def take[T](self, name: str, check: Check[T], default: object = _MISSING) -> T:
        """The value of one field; ``default`` where it is absent.

        :raises Exception: as ``refuse`` makes it, when the field is missing or fails its check
        """
        self._known.append(name)
        value = self._left.pop(name, _MISSING)
        if value is not _MISSING:
            return self.checked(name, value, check)
        if default is _MISSING:
            near = difflib.get_close_matches(name, map(str, self._left), n=1, cutoff=_MISSPELT)
            instead = f" (is {_name(near[0])!r} meant to be it?)" if near else ""
            self.fail(name, "missing", f"add the {self._noun} {name!r}{instead}")
        return default  # type: ignore[return-value]  # every default is a value that its check could return

    def checked[T](self, name: str, value: object, check: Check[T]) -> T:
        """For a value that was taken before, and that can be checked only now that others are known."""
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
            near = difflib.get_close_matches(str(name), self._known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"remove it; known are: {known}"
            self.fail(_name(name), f"unknown {self._noun}", remedy)


def _name(written: object) -> str:
    return printable(str(written)[:80])


def unfit(name: str, problem: str, remedy: str) -> Unfit:
    """For a mapping inside another: the outer reader puts its own field's name before ``name``."""
    return Unfit(problem, remedy, f".{name}" if name else "")


def shown(value: object) -> str:
    """A value as a message shows it: bounded, and so that a text is told from a number."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping | list):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    if isinstance(value, bool | int | float):
        return str(value)[:60]
    return repr(value[:60]) if isinstance(value, str) else f"{type(value).__name__} {str(value)[:60]!r}"


# --- plain values


def text(at_most: int = 1024, *, may_be_empty: bool = False) -> Check[str]:
    """Text without control characters."""

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise Unfit(f"{shown(value)} is not text", "write a string (in quotes where it looks like a number)")
        if not value.strip() and not may_be_empty:
            raise Unfit("empty", "write something")
        if len(value) > at_most:
            raise Unfit(f"{len(value)} characters long", f"use at most {at_most}")
        if not value.isprintable():
            raise Unfit("contains control characters", "write one line of plain text")
        return value

    return check


def matching(pattern: re.Pattern[str], wanted: str, *, may_be_empty: bool = False) -> Check[str]:
    """Text of a given form.

    :param wanted: what that form is, for the remedy
    """
    plain = text(may_be_empty=may_be_empty)

    def check(value: object) -> str:
        written = plain(value)
        if written and not pattern.fullmatch(written):
            raise Unfit(f"{written[:80]!r} can not be used here", f"use {wanted}")
        return written

    return check


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Unfit(f"{shown(value)} is neither true nor false", "write true or false")
    return value


def integer(low: int, high: int) -> Check[int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Unfit(f"{shown(value)} is not such a number", f"write a whole number from {low} to {high}")
        return value

    return check


def seconds(low: float, high: float) -> Check[float]:
    def check(value: object) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type,operator]  # a number by now
            raise Unfit(f"{shown(value)} is not such a duration", f"write seconds from {low:.12g} to {high:.12g}")
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
            raise Unfit(f"{shown(value)} is none of the choices", f"use one of: {', '.join(words)}")
        return value

    return check


def optional[T](check: Check[T]) -> Check[T | None]:
    return lambda value: None if value is None else check(value)


def items[T](check: Check[T], *, at_least: int = 0, at_most: int = 10_000) -> Check[tuple[T, ...]]:
    """A list, each entry of which passes ``check``."""

    def check_all(value: object) -> tuple[T, ...]:
        if not isinstance(value, list | tuple):
            raise Unfit(f"{shown(value)} is not a list", "write a list, even of one entry")
        if not at_least <= len(value) <= at_most:
            problem = f"{len(value)} entries" if value else "empty"
            raise Unfit(problem, f"write a list of {at_least} to {at_most} entries")
        made = []
        for index, entry in enumerate(value):
            try:
                made.append(check(entry))
            except Unfit as error:
                raise Unfit(error.problem, error.remedy, f"[{index}]{error.inner}") from None
        return tuple(made)

    return check_all


# --- names of our own


def parsed[T](parse: Callable[[str], T]) -> Check[T]:
    """Text that a parser of the vocabulary reads, such as ``WorkloadRef.parse``."""
    plain = text(may_be_empty=True)

    def check(value: object) -> T:
        written = plain(value)
        try:
            return parse(written)
        except InvalidValue as error:
            raise Unfit(error.problem, error.remedy) from None

    return check


#: The name of a namespace.
namespace_name: Check[str] = parsed(lambda written: WorkloadRef.parse(f"{written}/x").namespace)


def trust_domain_name(value: object) -> str:
    name = text(MAX_TRUST_DOMAIN_LENGTH)(value)
    try:
        check_trust_domain(name)
    except CertError as error:
        raise Unfit(str(error), "write a lower-case name such as hedgerow.local") from None
    return name


# --- addresses


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port. ``host`` is an IP address where we listen, and may be a name where we connect."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def ip_address(value: object) -> str:
    """An IP address in the one spelling that Python gives it."""
    written = text()(value)
    try:
        return str(ipaddress.ip_address(written))
    except ValueError:
        raise Unfit(f"{written[:80]!r} is not an IP address", "write one such as 10.0.0.7 or fd00::7") from None


def ip_network(value: object) -> str:
    """A network in CIDR form, without host bits."""
    written = text()(value)
    try:
        return str(ipaddress.ip_network(written))
    except ValueError as error:
        raise Unfit(str(error)[:200], "write a network such as 10.96.0.0/16") from None


def host_name(value: object) -> str:
    """A DNS name or an IP address, in lower case and without brackets or port, as the ``Host`` header is compared."""
    written = text()(value)
    bare = written[1:-1] if written.startswith("[") and written.endswith("]") else written
    return _host(bare, "write a name or an IP address without scheme and port")


def listen_address(value: object) -> Address:
    """``10.0.0.1:80`` or ``[::1]:80``. No names: what a server binds to must not depend on DNS. Port 0 is any port."""
    host, port = _split(value)
    try:
        return Address(str(ipaddress.ip_address(host)), port)
    except ValueError:
        raise Unfit(f"{host[:80]!r} is not an IP address", "write an address such as 127.0.0.1:8080") from None


def destination_address(value: object) -> Address:
    """As :func:`listen_address`, with a port to connect to."""
    return _connectable(listen_address(value))


def remote_address(value: object) -> Address:
    """As :func:`destination_address`, or with a name in place of the IP address; it is not resolved."""
    host, port = _split(value)
    return _connectable(Address(_host(host, "write a name or an IP address before the port"), port))


def refuse_taken(listeners: Iterable[tuple[str, Address]], refuse: Refuse) -> None:
    """Refuse two fields that would listen on one port. Port 0 is any free one.

    :param listeners: the fields' names and what was read there
    """
    taken: dict[Address, str] = {}
    for name, address in listeners:
        if address.port and (other := taken.setdefault(address, name)) != name:
            raise refuse(name, f"{address} is taken by {other}", "give each its own port")


def _connectable(address: Address) -> Address:
    if address.port == 0:
        raise Unfit("port 0 can not be connected to", "write the port that is listened on there")
    return address


def _split(value: object) -> tuple[str, int]:
    written = text(300)(value)
    host, colon, number = written.rpartition(":")
    if not colon or not number.isascii() or not number.isdigit() or len(number) > 5 or int(number) > 65535:
        raise Unfit(f"{written[:80]!r} is not host:port", "write it as 127.0.0.1:8080")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise Unfit(f"{written[:80]!r} is ambiguous", "write an IPv6 address in brackets: [::1]:8080")
    return host, int(number)


def _host(written: str, remedy: str) -> str:
    try:
        return str(ipaddress.ip_address(written))
    except ValueError:
        if not _HOST_NAME.fullmatch(written):
            raise Unfit(f"{written[:80]!r} is not a host name", remedy) from None
        return written.lower()
