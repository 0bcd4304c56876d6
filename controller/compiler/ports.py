"""Sets of (protocol, port) as the bits of one integer, over the elementary port cells of the rules at hand.

Rules cut the ports of a protocol into a few cells within which no rule tells one port from another, so that a finite
proof covers all 65535 of them. Union, intersection and difference are ``|``, ``&`` and ``& ~``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from graph.model import PortRange, Protocol

ALL_PORTS = PortRange(1, 65535)


class PortSpace:
    """The cells that these ranges cut the ports of each protocol into."""

    def __init__(self, ranges: Iterable[tuple[Protocol, PortRange]]) -> None:
        cuts = {protocol: {1, 65536} for protocol in Protocol}
        for protocol, ports in ranges:
            cuts[protocol] |= {ports.first, ports.last + 1}
        #: every cell; the n-th one is bit n
        self.cells: tuple[tuple[Protocol, PortRange], ...] = tuple(
            (protocol, PortRange(first, beyond - 1))
            for protocol in Protocol
            for first, beyond in pairwise(sorted(cuts[protocol]))
        )
        self.full = (1 << len(self.cells)) - 1

    def mask(self, protocol: Protocol, ranges: Iterable[PortRange] = ()) -> int:
        """The cells of these ranges; of every port when there is none, as in a rule."""
        wanted = tuple(ranges) or (ALL_PORTS,)
        return sum(
            1 << bit
            for bit, (cell_protocol, cell) in enumerate(self.cells)
            if cell_protocol is protocol and any(r.first <= cell.first and cell.last <= r.last for r in wanted)
        )

    def bits(self, mask: int) -> Iterator[tuple[int, Protocol, PortRange]]:
        """The cells of a mask one by one, each with its own mask."""
        for bit, (protocol, cell) in enumerate(self.cells):
            if mask >> bit & 1:
                yield 1 << bit, protocol, cell

    def ranges(self, mask: int) -> list[tuple[Protocol, PortRange]]:
        """The fewest ranges that make up a mask, in order."""
        found: list[tuple[Protocol, PortRange]] = []
        for _, protocol, cell in self.bits(mask):
            if found and found[-1][0] is protocol and found[-1][1].last + 1 == cell.first:
                found[-1] = (protocol, PortRange(found[-1][1].first, cell.last))
            else:
                found.append((protocol, cell))
        return found
