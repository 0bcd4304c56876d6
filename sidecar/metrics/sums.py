"""Istio's metrics of several processes, added up: each tells what it has counted since it told last.

A process that ends takes nothing with it but what it has not told yet, and no counter ever goes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from sidecar.metrics.istio import IstioMetrics
from sidecar.metrics.registry import Histogram

_KEY: Final = 14
#: Which of a key's fields are which: whether the connection came in and is secured; status codes; the rest are texts.
_FLAGS: Final = frozenset({0, 9})
_CODES: Final = frozenset({12, 13})

#: Reasons of refusals that are told apart; there are fewer.
_REASONS: Final = 256


class NoSums(ValueError):
    """What another process told can not be added."""


class Telling:
    """Tells what ``istio`` has counted since the last time."""

    def __init__(self, istio: IstioMetrics) -> None:
        self._istio = istio
        self._requests: dict[Sequence[object], tuple[Sequence[float], ...]] = {}
        self._tcp: dict[Sequence[object], tuple[int, ...]] = {}
        self._messages: dict[Sequence[object], tuple[int, ...]] = {}
        self._refused: dict[tuple[str, ...], int] = {}
        self._refused_requests: dict[tuple[str, ...], int] = {}
        self._would_refuse = 0

    def settle(self) -> Iterator[None]:
        """Bring the numbers up to date; a turn of others may follow each step."""
        return self._istio.settle()

    def take(self) -> dict[str, object]:
        """What is new, as :func:`add` takes it; empty when nothing is."""
        istio = self._istio
        requests: list[object] = []
        for key, cell in istio.request_cells():
            now = tuple([*one.counts, one.total] for one in (cell.duration, cell.received, cell.sent))
            was = self._requests.get(key)
            if was is None or now[0] != was[0]:
                before = was or tuple([0] * len(one) for one in now)
                new = [[a - b for a, b in zip(one, other, strict=True)] for one, other in zip(now, before, strict=True)]
                requests.append([list(key), *new])
                self._requests[key] = now
        tcp = [(key, (one.opened, one.closed, one.sent, one.received)) for key, one in istio.tcp_cells()]
        messages = [(key, (one.questions, one.answers)) for key, one in istio.message_cells()]
        sums: dict[str, object] = {
            "requests": requests,
            "tcp": _new_counts(tcp, self._tcp),
            "messages": _new_counts(messages, self._messages),
            "refused": _new(istio.refused, self._refused),
            "refused_requests": _new(istio.refused_requests, self._refused_requests),
        }
        if istio.would_refuse != self._would_refuse:
            sums["would_refuse"] = istio.would_refuse - self._would_refuse
            self._would_refuse = istio.would_refuse
        return {name: value for name, value in sums.items() if value}


def add(istio: IstioMetrics, sums: Mapping[str, object]) -> None:
    """Add what another process told.

    :raises NoSums: when that is no such thing; what stands before it was added then
    """
    for row in _rows(sums.get("requests", [])):
        if len(row) != 4:
            raise NoSums("requests")
        request = istio.request_cell(_key(row[0]))
        for histogram, new in zip((request.duration, request.received, request.sent), row[1:], strict=True):
            _observe(histogram, new)
    for row in _rows(sums.get("tcp", [])):
        if len(row) != 5:
            raise NoSums("tcp")
        cell = istio.tcp_cell(_key(row[0]))
        opened, closed, sent, received = (_count(one) for one in row[1:])
        cell.opened += opened
        cell.closed += closed
        cell.sent += sent
        cell.received += received
    for row in _rows(sums.get("messages", [])):
        if len(row) != 3:
            raise NoSums("messages")
        counted = istio.message_cell(_key(row[0]))
        questions, answers = (_count(one) for one in row[1:])
        counted.questions += questions
        counted.answers += answers
    for name, table, width in (("refused", istio.refused, 2), ("refused_requests", istio.refused_requests, 1)):
        for row in _rows(sums.get(name, [])):
            key = tuple(str(one)[:256] for one in row[:-1])
            if len(key) != width or (key not in table and len(table) >= _REASONS):
                raise NoSums(name)
            table[key] = table.get(key, 0) + _count(row[-1])
    istio.would_refuse += _count(sums.get("would_refuse", 0))


def _new_counts(
    now: Iterable[tuple[Sequence[object], tuple[int, ...]]], told: dict[Sequence[object], tuple[int, ...]]
) -> list[object]:
    rows: list[object] = []
    for key, counts in now:
        past = told.get(key, (0,) * len(counts))
        if counts != past:
            rows.append([list(key), *(a - b for a, b in zip(counts, past, strict=True))])
            told[key] = counts
    return rows


def _new(now: Mapping[tuple[str, ...], int], told: dict[tuple[str, ...], int]) -> list[object]:
    rows: list[object] = []
    for key, count in now.items():
        if count != told.get(key, 0):
            rows.append([*key, count - told.get(key, 0)])
            told[key] = count
    return rows


def _rows(value: object) -> list[list[object]]:
    if not isinstance(value, list) or not all(isinstance(row, list) and row for row in value):
        raise NoSums("no rows")
    return value


def _key(value: object) -> tuple[object, ...]:
    if not isinstance(value, list) or len(value) != _KEY:
        raise NoSums("no key")
    for index, one in enumerate(value):
        wanted = bool if index in _FLAGS else int if index in _CODES else str
        if type(one) is not wanted:
            raise NoSums("no key")
    return tuple(value)


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise NoSums("no count")
    return value


def _observe(histogram: Histogram, new: object) -> None:
    if not isinstance(new, list) or len(new) != len(histogram.counts) + 1:
        raise NoSums("no histogram")
    total = new[-1]
    if isinstance(total, bool) or not isinstance(total, int | float) or total != total:
        raise NoSums("no total")
    for index, count in enumerate(new[:-1]):
        histogram.counts[index] += _count(count)
    histogram.total += total
