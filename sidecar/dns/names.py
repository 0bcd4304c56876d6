"""Which names DNS has bound to which addresses: what makes a destination outside the mesh more than a number.

Rules:

1. A name is bound only by an answer of the pod's own resolvers, and always the name that was *asked* for: whoever
   serves the aliases behind it can not speak for another name.
2. A binding lasts as long as the answer may be kept, then as long as a connection uses it, and ``keep`` seconds more:
   programs remember addresses longer than they should.
3. A name is not bound to what is never outside: loopback, link-local (where clouds keep their credentials), multicast.
4. Addresses, and names of one address, are bounded; of too many the least lately used go.

Pure: the time is an argument, in seconds since the epoch, so that bindings hold across a restart.
"""

from __future__ import annotations

import ipaddress
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from graph.errors import DecodeError
from graph.model import is_host

MAX_ADDRESSES: Final = 4096
#: Names of one address: of a content network's there can be many.
MAX_NAMES: Final = 32
#: Addresses of one answer that are bound.
MAX_PER_ANSWER: Final = 64
#: No answer holds longer, seconds.
MAX_TTL: Final = 86_400.0

#: The metadata service's IPv6 address on AWS, which is not link-local as its IPv4 address is.
_METADATA: Final = ipaddress.ip_address("fd00:ec2::254")


@dataclass(slots=True)
class _Binding:
    """``until`` is the end of the answer's time with ``keep``; ``users`` are connections that hold it longer."""

    until: float
    users: int = 0


class NameTable:
    """Bindings of names to addresses.

    :param keep: seconds that a binding lasts beyond its answer, or beyond the last connection that used it
    """

    def __init__(self, keep: float, max_addresses: int = MAX_ADDRESSES, max_names: int = MAX_NAMES) -> None:
        self._keep = keep
        self._max_addresses = max_addresses
        self._max_names = max_names
        # by address, and by name within one; the lately used last
        self._table: OrderedDict[str, OrderedDict[str, _Binding]] = OrderedDict()
        #: Grows with every change that a restart should know of.
        self.changes = 0

    @property
    def addresses(self) -> int:
        """How many addresses have names."""
        return len(self._table)

    def bind(self, host: str, addresses: Iterable[tuple[str, float]], now: float) -> None:
        """Note an answer.

        :param host: the name that was asked for, as policy writes it; any other is not bound
        :param addresses: (IP address, seconds to live)
        """
        if not is_host(host):
            return
        for count, (address, ttl) in enumerate(addresses):
            if count == MAX_PER_ANSWER:
                return
            key = _outside(address)
            if key:
                self._put(key, host, now + min(max(ttl, 0.0), MAX_TTL) + self._keep)

    def bound(self, address: str, now: float) -> tuple[str, ...]:
        """The names of ``address``, the one that was answered last first."""
        names = self._table.get(address)
        if names is None:
            return ()
        for host in [host for host, binding in names.items() if not binding.users and binding.until <= now]:
            del names[host]
        if not names:
            del self._table[address]
            return ()
        self._table.move_to_end(address)
        return tuple(reversed(names))

    def began(self, address: str, host: str) -> None:
        """A connection to ``address`` uses this name; :meth:`ended` follows."""
        binding = self._binding(address, host)
        if binding is not None:
            binding.users += 1

    def ended(self, address: str, host: str, now: float) -> None:
        binding = self._binding(address, host)
        if binding is not None and binding.users:  # else it was pushed out, and perhaps bound again, meanwhile
            binding.users -= 1
            binding.until = max(binding.until, now + self._keep)

    def _binding(self, address: str, host: str) -> _Binding | None:
        names = self._table.get(address)
        return names.get(host) if names is not None else None

    def _put(self, address: str, host: str, until: float) -> None:
        names = self._table.get(address)
        if names is None:
            while len(self._table) >= self._max_addresses:
                self._table.popitem(last=False)
            names = self._table[address] = OrderedDict()
        self._table.move_to_end(address)
        binding = names.get(host)
        if binding is None:
            while len(names) >= self._max_names:
                names.popitem(last=False)
            names[host] = _Binding(until)
        else:
            binding.until = max(binding.until, until)
        names.move_to_end(host)
        self.changes += 1

    # across a restart

    def dump(self, now: float) -> bytes:
        """What still holds, for :meth:`restore`. A binding in use is written as one whose use ends now."""
        rows = [
            (address, host, round(max(binding.until, now + self._keep if binding.users else 0.0), 3))
            for address, names in self._table.items()
            for host, binding in names.items()
            if binding.users or binding.until > now
        ]
        return json.dumps(rows, separators=(",", ":")).encode()

    def restore(self, data: bytes, now: float) -> None:
        """Take what :meth:`dump` wrote, as far as it still holds.

        :raises DecodeError: when it is anything else; nothing is taken then
        """
        try:
            rows = [(str(address), str(host), float(until)) for address, host, until in json.loads(data)]
        except (ValueError, TypeError, RecursionError):
            raise DecodeError("not a list of bindings", "names") from None
        latest = now + MAX_TTL + self._keep  # a clock that was set back makes nothing last for years
        for address, host, until in rows:
            if now < until <= latest and is_host(host) and _outside(address) == address:
                self._put(address, host, until)


class LearnedNames:
    """Implements :class:`sidecar.dataplane.contracts.Names` over a table.

    :param clock: seconds since the epoch
    """

    def __init__(self, table: NameTable, clock: Callable[[], float]) -> None:
        self._table = table
        self._clock = clock

    def bound(self, address: str) -> tuple[str, ...]:
        return self._table.bound(address, self._clock())

    def began(self, address: str, host: str) -> None:
        self._table.began(address, host)

    def ended(self, address: str, host: str) -> None:
        self._table.ended(address, host, self._clock())


def _outside(address: str) -> str:
    """``address`` as a connection to it shows it; empty for one that nothing outside can have."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return ""
    known = getattr(known, "ipv4_mapped", None) or known
    inside = (
        known.is_loopback
        or known.is_link_local
        or known.is_multicast
        or known.is_unspecified
        or known == _METADATA
        or (known.version == 4 and known.is_reserved)
    )
    return "" if inside else str(known)
