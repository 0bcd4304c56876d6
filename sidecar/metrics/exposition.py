"""How metrics are written: Prometheus' text format 0.0.4, or OpenMetrics 1.0 for scrapers that ask for it.

Sources: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/specs/om/open_metrics_spec/. What differs between the two, as far as we write it: OpenMetrics
names a counter's family without ``_total``, writes bounds as floats, and ends with ``# EOF``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Kind(StrEnum):
    """What a family's numbers do."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


def negotiate(accept: str) -> str:
    """The content type for a scraper, by its ``Accept`` field: OpenMetrics only where plain text is not preferred."""
    wanted = {"application/openmetrics-text": 0.0, "text/plain": 0.0, "*/*": 0.0}
    for entry in accept.split(",")[:32]:
        kind, *parameters = (part.strip() for part in entry.split(";"))
        if kind.lower() not in wanted:
            continue
        named = dict(parameter.lower().replace(" ", "").partition("=")[::2] for parameter in parameters)
        if kind.lower() != "text/plain" and named.get("version", "1.0.0") != "1.0.0":
            continue
        wanted[kind.lower()] = max(wanted[kind.lower()], _quality(named.get("q", "1")))
    openmetrics = wanted["application/openmetrics-text"]
    return OPENMETRICS if openmetrics and openmetrics >= wanted["text/plain"] else TEXT


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


def labels_text(names: Sequence[str], values: Sequence[str]) -> str:
    """``a="x",b="y"``, as it stands between the braces."""
    return ",".join(f'{name}="{escape(value)}"' for name, value in zip(names, values, strict=True))


def escape(value: str) -> str:
    """A label's value, as it stands between the quotes."""
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return value


def number(value: float) -> str:
    """A sample's value."""
    if isinstance(value, int):
        return str(value)
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


class Page:
    """One exposition, written family by family.

    :param openmetrics: write OpenMetrics, not Prometheus' own format
    """

    __slots__ = ("_lines", "openmetrics")

    def __init__(self, *, openmetrics: bool = False) -> None:
        self.openmetrics = openmetrics
        self._lines: list[str] = []

    def family(self, name: str, kind: Kind, help_text: str) -> None:
        """Begin a family. Everything of one family has to follow at once.

        :param name: of a counter, with ``_total``
        """
        if kind is Kind.COUNTER and self.openmetrics:
            name = name.removesuffix("_total")
        text = help_text.replace("\\", r"\\").replace("\n", r"\n")
        if self.openmetrics:
            text = text.replace('"', r"\"")
        self._lines.append(f"# HELP {name} {text}\n# TYPE {name} {kind}\n")

    def sample(self, name: str, labels: str, value: float) -> None:
        """:param labels: as :func:`labels_text` makes them; may be empty"""
        braces = f"{{{labels}}}" if labels else ""
        self._lines.append(f"{name}{braces} {number(value)}\n")

    def histogram(self, name: str, labels: str, bounds: Sequence[float], counts: Iterable[int], total: float) -> None:
        """:param counts: how many fell below each bound and above the one before; one more for those above all"""
        before = f"{name}_bucket{{{labels},le=" if labels else f"{name}_bucket{{le="
        write = self._lines.append
        below = 0
        for bound, count in zip((*bounds, math.inf), counts, strict=True):
            below += count
            write(f'{before}"{self._bound(bound)}"}} {below}\n')
        self.sample(f"{name}_sum", labels, total)
        self.sample(f"{name}_count", labels, below)

    def _bound(self, bound: float) -> str:
        if bound == math.inf:
            return "+Inf"
        return repr(float(bound)) if self.openmetrics else f"{bound:.10g}"

    def end(self) -> None:
        """Nothing follows."""
        if self.openmetrics:
            self._lines.append("# EOF\n")

    def take(self) -> bytes:
        """What was written since the last call."""
        lines, self._lines = self._lines, []
        return "".join(lines).encode("utf-8", "replace")
