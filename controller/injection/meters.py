"""What the webhook counts, in Prometheus' text format. Labels have a fixed set of values, whatever is sent to us."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

#: Upper bounds in seconds. API servers give up after 10 s at the default.
BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Meters:
    """Counters of one process."""

    def __init__(self) -> None:
        self.reviews: Counter[tuple[str, bool]] = Counter()
        self.rejected: Counter[str] = Counter()
        self._seconds = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0

    def took(self, seconds: float) -> None:
        """One review, from its head to its answer."""
        self._seconds[bisect.bisect_left(BUCKETS, seconds)] += 1
        self._sum += seconds

    def page(self, values: Mapping[str, float]) -> str:
        """Everything, and ``values`` as gauges by their names."""
        return "\n".join(self._lines(values)) + "\n"

    def _lines(self, values: Mapping[str, float]) -> Iterator[str]:
        name = "hedgerow_injector_reviews_total"
        yield f"# HELP {name} Reviews answered, by what became of the pod."
        yield f"# TYPE {name} counter"
        for (outcome, dry_run), count in sorted(self.reviews.items()):
            yield f'{name}{{outcome="{outcome}",dry_run="{str(dry_run).lower()}"}} {count}'
        name = "hedgerow_injector_rejected_total"
        yield f"# HELP {name} Requests that were no reviews, too large, too slow or too many."
        yield f"# TYPE {name} counter"
        for reason, count in sorted(self.rejected.items()):
            yield f'{name}{{reason="{reason}"}} {count}'
        name = "hedgerow_injector_review_seconds"
        yield f"# HELP {name} From a request's head to its answer."
        yield f"# TYPE {name} histogram"
        total = 0
        for bound, count in zip((*BUCKETS, "+Inf"), self._seconds, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.9f}"
        yield f"{name}_count {total}"
        for name, value in sorted(values.items()):
            yield f"# TYPE {name} gauge"
            yield f"{name} {value:.15g}"
