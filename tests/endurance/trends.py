"""Whether a number that is sampled again and again grows. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through samples, by least squares.

    :param slope: a second
    :param error: standard error of the slope, as if samples were independent; infinite with fewer than three
    :param seconds: from the first sample to the last
    """

    slope: float
    error: float
    seconds: float

    @property
    def growth(self) -> float:
        """What the line says was added from the first sample to the last."""
        return self.slope * self.seconds

    @property
    def an_hour(self) -> float:
        return self.slope * 3600


def trend(at: Sequence[float], values: Sequence[float]) -> Trend:
    """Fit a line.

    :param at: seconds, ascending, not all the same
    :raises ValueError: when there are fewer than two samples
    """
    if len(at) != len(values) or len(at) < 2 or at[0] == at[-1]:
        raise ValueError("a trend takes two samples at different times")
    middle, mean = fmean(at), fmean(values)
    spread = sum((when - middle) ** 2 for when in at)
    slope = sum((when - middle) * (value - mean) for when, value in zip(at, values, strict=True)) / spread
    rest = sum((value - mean - slope * (when - middle)) ** 2 for when, value in zip(at, values, strict=True))
    error = math.sqrt(rest / (len(at) - 2) / spread) if len(at) > 2 else math.inf
    return Trend(slope, error, at[-1] - at[0])
