"""What every field of a message from elsewhere has to keep to: the checks that :mod:`graph.wire.codec` is built from.

Each takes the raw value and the field's name, and returns the value or raises :class:`~graph.errors.DecodeError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from enum import StrEnum

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from graph.errors import DecodeError, InvalidValue
from graph.model import WorkloadRef

#: A signed snapshot of this size still fits gRPC's default message limit of 4 MiB with its signature and chain.
MAX_SNAPSHOT_BYTES = 4 * 1024 * 1024 - 64 * 1024
MAX_RULES = 10_000
MAX_PORT_RANGES = 256
MAX_OPERATIONS = 256
#: Hosts that one workload inspects.
MAX_INSPECTED = 64
MAX_EVIDENCE = 64
MAX_ENDPOINTS = 10_000
#: Characters of names and identifiers; a namespace, a slash and a workload name make 317.
MAX_NAME = 320
#: Characters of sentences and operations.
MAX_TEXT = 1024
#: Bytes of a SPIFFE ID (SPIFFE-ID, section 2.3).
MAX_IDENTITY = 2048
#: One flow's counters; far above anything real, far below where sums leave a database's 64-bit integers.
MAX_COUNT = 2**48
MAX_VERSION = 2**63 - 1

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_IDENTITY = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/[A-Za-z0-9._-]+)*")


def build[M: Message](name: str, make: Callable[[], M]) -> M:
    """Translate protobuf's complaints about our own values (a port of 70000 fits, one of -1 does not)."""
    try:
        return make()
    except InvalidValue:
        raise
    except (ValueError, TypeError) as error:
        raise InvalidValue(name, str(error), "use numbers in range and text that is valid Unicode") from None


def refuse_unknown_fields(message: Message) -> None:
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise DecodeError("a field that this version does not know", f"#{unknown[0].field_number}")


def at_most(values: object, limit: int, field: str) -> None:
    length = len(values)  # type: ignore[arg-type]  # repeated containers have no common public type
    if length > limit:
        raise DecodeError(f"{length} entries, more than {limit}", field)


def inside[M, T](field: str, read: Callable[[M], T], message: M) -> T:
    try:
        return read(message)
    except DecodeError as error:
        raise error.within(field) from None


def each[M, T](read: Callable[[M], T], messages: object, field: str) -> tuple[T, ...]:
    values: list[T] = []
    for message in messages:  # type: ignore[attr-defined]  # as above
        try:
            values.append(read(message))
        except DecodeError as error:
            raise error.within(f"{field}[{len(values)}]") from None
    return tuple(values)


def read_enum[E: StrEnum](kind: type[E], text: str, field: str) -> E:
    try:
        return kind(text)
    except ValueError:
        raise DecodeError(f"{text[:64]!r} is not one of {', '.join(kind)}", field) from None


def read_text(text: str, field: str, limit: int, *, required: bool = False) -> str:
    if required and not text:
        raise DecodeError("empty", field)
    if len(text) > limit:
        raise DecodeError(f"{len(text)} characters, more than {limit}", field)
    if _CONTROL.search(text):  # they would reach terminals and log files
        raise DecodeError("holds control characters", field)
    return text


def read_workload(text: str, field: str) -> WorkloadRef:
    read_text(text, field, MAX_NAME)
    try:
        ref = WorkloadRef.parse(text)
    except InvalidValue as error:
        raise DecodeError(error.problem, field) from None
    if str(ref) != text:
        raise DecodeError(f"{text!r} is not in canonical form", field)
    return ref


def read_address(text: str, field: str) -> str:
    if len(text) > 64:
        raise DecodeError(f"{len(text)} characters are not an IP address", field)
    ref = read_workload(f"-/{text}", field)
    if ref.host:
        raise DecodeError(f"{text!r} is a name, not an IP address", field)
    return ref.name


def read_identity(text: str, field: str) -> str:
    if text and (len(text) > MAX_IDENTITY or not _IDENTITY.fullmatch(text)):
        raise DecodeError(f"{text[:64]!r} is not a SPIFFE ID", field)
    return text


def read_port(number: int, field: str) -> int:
    if not 1 <= number <= 65535:
        raise DecodeError(f"{number} is not a port", field)
    return number


def read_count(number: int, field: str) -> int:
    if number > MAX_COUNT:
        raise DecodeError(f"{number} is more than any flow counts", field)
    return number


def read_time(seconds: float, field: str) -> float:
    if not math.isfinite(seconds) or seconds < 0:
        raise DecodeError(f"{seconds} is not a time since the epoch", field)
    return seconds
