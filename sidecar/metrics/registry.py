"""Counters, gauges and histograms, as cheap as a sidecar's data path needs them.

``prometheus_client`` was measured first: 1.2 MB of memory, but 3.9 µs for what one request adds (a counter and three
histograms of one label set) where this takes 0.8, with a lock and an object for every bucket of every label set, and it
imports an HTTP server. Everything here runs on the event loop's thread, so nothing needs a lock.

Rules:

1. The number of label sets of a family is bounded. What comes beyond is added to one series whose labels all say
   ``overflow``, and counted in ``hedgerow_metrics_folded_total``: sums stay right, memory stays bounded.
2. A page is made in pieces, between which the data path has its turn.
3. Nothing is registered at import.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from sidecar.metrics.exposition import Kind, Page, labels_text

log = logging.getLogger(__name__)

#: Label sets of one family.
MAX_SERIES: Final = 256
#: Label sets that are written between two turns of others.
_AT_ONCE: Final = 16

OVERFLOW: Final = "overflow"


class Collector(Protocol):
    """Has families to write."""

    @property
    def folded(self) -> int:
        """How often something was added to an overflow series."""

    def settle(self) -> Iterator[None]:
        """Bring the numbers up to date; a turn of others may follow each step."""

    def expose(self, page: Page) -> Iterator[None]:
        """Write every family; a turn of others may follow each step."""


class Value:
    """A counter or a gauge. Who owns it adds to ``value``."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Histogram:
    """How often values fell between which bounds.

    :param bounds: ascending; a value belongs to the first bound that is not below it
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: float = 0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Bounded[K: Hashable, C]:
    """At most so many cells by key, and what is made for all other keys together.

    :param make: a cell for a key
    :param fold: the key of the cell that others share
    """

    __slots__ = ("_cells", "_fold", "_limit", "_make", "folded")

    def __init__(self, limit: int, make: Callable[[K], C], fold: Callable[[K], K]) -> None:
        self._limit = limit
        self._make = make
        self._fold = fold
        self._cells: dict[K, C] = {}
        self.folded = 0

    def __len__(self) -> int:
        return len(self._cells)

    def get(self, key: K) -> C:
        """The cell of ``key``, or the one that it has to share."""
        cell = self._cells.get(key)
        if cell is None:
            if len(self._cells) >= self._limit:
                self.folded += 1
                key = self._fold(key)
                cell = self._cells.get(key)
                if cell is not None:
                    return cell
            cell = self._cells[key] = self._make(key)
        return cell

    def items(self) -> list[tuple[K, C]]:
        """Every cell that there is now."""
        return list(self._cells.items())


class _Series[C]:
    """One label set of a family: how it is written, and its cell."""

    __slots__ = ("cell", "labels")

    def __init__(self, labels: str, cell: C) -> None:
        self.labels = labels
        self.cell = cell


class Family[C]:
    """The series of one name.

    :param names: of the labels
    :param make: an empty cell
    :param write: how a cell's series is written
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        help_text: str,
        names: Sequence[str],
        make: Callable[[], C],
        write: Callable[[Page, str, str, C], None],
        limit: int = MAX_SERIES,
    ) -> None:
        self.name = name
        self._kind = kind
        self._help = help_text
        self._names = tuple(names)
        self._write = write
        self._series: Bounded[tuple[str, ...], _Series[C]] = Bounded(
            limit,
            lambda values: _Series(labels_text(self._names, values), make()),
            lambda values: (OVERFLOW,) * len(values),
        )

    @property
    def folded(self) -> int:
        return self._series.folded

    def cell(self, *values: str) -> C:
        """The cell of one label set; the one to keep where it is added to often.

        :param values: of the labels, in the order of their names
        """
        return self._series.get(values).cell

    def settle(self) -> Iterator[None]:
        yield from ()

    def expose(self, page: Page) -> Iterator[None]:
        page.family(self.name, self._kind, self._help)
        for index, (_, series) in enumerate(self._series.items()):
            self._write(page, self.name, series.labels, series.cell)
            if index % _AT_ONCE == _AT_ONCE - 1:
                yield


def _write_value(page: Page, name: str, labels: str, cell: Value) -> None:
    page.sample(name, labels, cell.value)


def _write_histogram(page: Page, name: str, labels: str, cell: Histogram) -> None:
    page.histogram(name, labels, cell.bounds, cell.counts, cell.total)


type Reading = float | Mapping[tuple[str, ...], float]
"""One number, or one for each label set."""


class _Readings:
    """A family whose numbers somebody else keeps; they are read when they are wanted."""

    def __init__(
        self, name: str, kind: Kind, help_text: str, names: Sequence[str], read: Callable[[], Reading]
    ) -> None:
        self._name = name
        self._kind = kind
        self._help = help_text
        self._names = tuple(names)
        self._read = read
        self._failed = False

    @property
    def folded(self) -> int:
        return 0

    def settle(self) -> Iterator[None]:
        yield from ()

    def expose(self, page: Page) -> Iterator[None]:
        try:
            reading = self._read()
        except Exception:  # one number that can not be had must not cost the others
            if not self._failed:
                log.exception("a fault of ours: no %s on the page of metrics; please report it", self._name)
            self._failed = True
            return
        page.family(self._name, self._kind, self._help)
        for values, value in sorted(reading.items()) if isinstance(reading, Mapping) else [((), reading)]:
            page.sample(self._name, labels_text(self._names, values), value)
        yield from ()


class Registry:
    """Everything that one page shows, in the order in which it was added."""

    def __init__(self) -> None:
        self._collectors: list[Collector] = []
        self._names: set[str] = set()

    def add(self, collector: Collector, *names: str) -> None:
        """Show the families ``names`` of ``collector``.

        :raises ValueError: when a name is taken; a page must not have two families of one name
        """
        taken = self._names.intersection(names)
        if taken or len(set(names)) != len(names):
            raise ValueError(f"metrics: {', '.join(sorted(taken or names))} would be there twice")
        self._names.update(names)
        self._collectors.append(collector)

    def counter(self, name: str, help_text: str, *labels: str) -> Family[Value]:
        """:param name: ends in ``_total``"""
        if not name.endswith("_total"):
            raise ValueError(f"metrics: the counter {name} does not end in _total")
        return self._value(name, Kind.COUNTER, help_text, labels)

    def gauge(self, name: str, help_text: str, *labels: str) -> Family[Value]:
        return self._value(name, Kind.GAUGE, help_text, labels)

    def histogram(self, name: str, help_text: str, bounds: Sequence[float], *labels: str) -> Family[Histogram]:
        made = Family(name, Kind.HISTOGRAM, help_text, labels, lambda: Histogram(bounds), _write_histogram)
        self.add(made, name)
        return made

    def read(self, name: str, help_text: str, read: Callable[[], Reading], *labels: str) -> None:
        """A family whose numbers are asked of ``read`` for every page: a counter when its name ends in ``_total``."""
        kind = Kind.COUNTER if name.endswith("_total") else Kind.GAUGE
        self.add(_Readings(name, kind, help_text, labels, read), name)

    def _value(self, name: str, kind: Kind, help_text: str, labels: Sequence[str]) -> Family[Value]:
        made = Family(name, kind, help_text, labels, Value, _write_value)
        self.add(made, name)
        return made

    def pieces(self, *, openmetrics: bool = False) -> Iterator[bytes]:
        """A page; pieces may be empty. After each of them others may have their turn."""
        page = Page(openmetrics=openmetrics)
        for collector in self._collectors:
            for _ in collector.settle():
                yield b""
        for collector in self._collectors:
            for _ in collector.expose(page):
                yield page.take()
        page.family("hedgerow_metrics_folded_total", Kind.COUNTER, "Additions to series whose label sets did not fit")
        page.sample("hedgerow_metrics_folded_total", "", sum(collector.folded for collector in self._collectors))
        page.end()
        yield page.take()
