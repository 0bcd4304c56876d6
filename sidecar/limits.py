"""The sections ``limits:`` and ``http:`` of ``sidecar.yaml``: the numbers that bound the data path, and how far each
may be moved.

The governing rule: a bound at which an application's connection is refused, ended, or carried otherwise can be seen
and set. Names, defaults and what each protects against are those of
:class:`~sidecar.dataplane.settings.DataPlaneSettings` and :class:`~sidecar.http.settings.HttpSettings`;
:mod:`sidecar.inspect.settings`, :mod:`sidecar.dns.settings` and :mod:`sidecar.directory_settings` hold those of their
parts. ``docs/sidecar-settings.md`` tells people of all of them.

Fixed is only what no traffic in good order comes to, or what costs time alone and nobody a connection, and that page
tells of it too, under "What is fixed":

1. what both ends of a tunnel, or all processes of a sidecar, have to agree about: windows, frames, their queues;
2. how much a first look at bytes reads before it has to have decided;
3. how often something is tried, and what is remembered to save work: what does not fit is found again;
4. how the loop's time is cut up, so that everybody has a turn;
5. what our own pages, logs, reports and taps hold for those who do not read: it is left out and counted, and traffic
   does not wait for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from graph.fields import Check, Fields, Unfit, integer, seconds, shown, unfit, word
from sidecar.dataplane.settings import DataPlaneSettings
from sidecar.http.settings import HttpSettings

_WEEK: Final = 7 * 86_400.0
_KIB: Final = 1 << 10
_MIB: Final = 1 << 20
_TIB: Final = 1 << 40


def _or_off(check: Check[float]) -> Check[float]:
    """0 for no limit at all, or what ``check`` lets through."""

    def checked(value: object) -> float:
        if value == 0 and not isinstance(value, bool):
            return 0.0
        try:
            return check(value)
        except Unfit as error:
            raise Unfit(error.problem, f"{error.remedy}, or 0 for no limit") from None

    return checked


def _fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.1 <= value <= 1:
        raise Unfit(f"{shown(value)} is not such a fraction", "write a number from 0.1 to 1")
    return float(value)


def _size(low: int, *, off: bool = False) -> Check[int]:
    inner = integer(low, _TIB)

    def check(value: object) -> int:
        return 0 if off and value == 0 and not isinstance(value, bool) else inner(value)

    return check


def _trace_flags(value: object) -> str:
    """``00`` or ``01``, which YAML reads as numbers where they stand bare."""
    bare = isinstance(value, int) and not isinstance(value, bool)
    return word("00", "01")(f"{value:02}" if bare else value)


#: What may be written for each limit.
CHECKS: Final[Mapping[str, Check[int] | Check[float]]] = MappingProxyType(
    {
        "connections": integer(1, 1_000_000),
        "handshakes": integer(1, 65_536),
        "tunnels_per_source": integer(1, 65_536),
        "streams_per_tunnel": integer(1, 65_536),
        "opens_per_second": integer(1, 1_000_000),
        "resets_per_second": integer(1, 1_000_000),
        "pings_per_second": integer(1, 10_000),
        "buffered_bytes": _size(_MIB),
        "control_bytes": _size(64 * _KIB),
        "sniff_wait": seconds(0.01, 10),
        "first_byte_wait": seconds(0.01, 300),
        "handshake_timeout": seconds(0.1, 300),
        "connect_timeout": seconds(0.1, 300),
        "resolve_timeout": seconds(0.1, 60),
        "keepalive": seconds(1, 3600),
        "keepalive_timeout": seconds(0.1, 600),
        "connection_idle": _or_off(seconds(1, _WEEK)),
        "half_closed_idle": _or_off(seconds(1, _WEEK)),
        "slow_reader": _or_off(seconds(1, _WEEK)),
        "tunnel_idle": seconds(1, 86_400),
        "warm_endpoints": integer(0, 256),
        "warm_destinations": integer(0, 4096),
        "draining_tunnels": integer(1, 1024),
        "early_bytes": integer(0, _MIB),
        "backoff": seconds(0.001, 60),
        "backoff_max": seconds(0.001, 3600),
        "patience": seconds(0, 60),
        "renewal_spread": seconds(0, 3600),
        "memory_limit": _size(16 * _MIB, off=True),
        "memory_high": _fraction,
        "memory_low": _fraction,
    }
)

#: What may be written for each limit of the ``http`` lane.
HTTP_CHECKS: Final[Mapping[str, Check[int] | Check[float] | Check[str]]] = MappingProxyType(
    {
        "head_bytes": integer(1024, _MIB),
        "head_timeout": seconds(0.1, 300),
        "refused_body": integer(0, 16 * _MIB),
        "linger": seconds(0.1, 60),
        "linger_bytes": integer(0, 64 * _MIB),
        "pool_connections": integer(0, 65_536),
        "pool_idle": seconds(0, 3600),
        "pool_unsafe_idle": seconds(0, 3600),
        "attached_idle": seconds(0, 3600),
        "operations": integer(1, 10_000),
        "cached": integer(16, 1_000_000),
        "trace_flags": _trace_flags,
        "sweep": seconds(0.05, 60),
        "h2_block_bytes": integer(1024, 16 * _MIB),
        "h2_headers_bytes": integer(1024, 16 * _MIB),
        "h2_table_bytes": integer(4096, _MIB),
        "h2_streams": integer(1, 65_536),
        "h2_continuations": integer(1, 1024),
        # a preface and one frame of the longest that a client may send unasked have room in it
        "h2_early_bytes": integer(20_480, 16 * _MIB),
    }
)

_DEFAULTS: Final = {one.name: one.default for one in dataclasses.fields(DataPlaneSettings)}
_HTTP: Final = HttpSettings()
#: Each pair's first must not be above its second.
_ORDERED: Final = (("backoff", "backoff_max"), ("memory_low", "memory_high"))


def read_limits(value: object) -> Mapping[str, int | float]:
    """Read the section: those limits that differ from their defaults, by their names.

    :raises Unfit: naming the limit, what is wrong with it and what to write instead
    """
    fields = Fields(value, unfit, noun="limit")
    given: dict[str, int | float] = {name: fields.take(name, check, _DEFAULTS[name]) for name, check in CHECKS.items()}
    fields.finish()
    for low, high in _ORDERED:
        if given[low] > given[high]:
            fields.fail(low, f"{given[low]:g} is above {high}, which is {given[high]:g}", f"write at most {high}")
    return MappingProxyType({name: limit for name, limit in given.items() if limit != _DEFAULTS[name]})


def read_http(value: object) -> HttpSettings:
    """Read the section ``http:``.

    :raises Unfit: naming the limit, what is wrong with it and what to write instead
    """
    fields = Fields(value, unfit, noun="limit")
    given = {name: fields.take(name, check, getattr(_HTTP, name)) for name, check in HTTP_CHECKS.items()}
    fields.finish()
    return HttpSettings(**given)  # type: ignore[arg-type]  # HTTP_CHECKS has checked names and values
