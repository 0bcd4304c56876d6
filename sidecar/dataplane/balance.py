"""Which endpoint of a destination a connection goes to. Pure: time and chance are arguments.

Rules:

1. Power of two choices: of two endpoints drawn at random the one with fewer connections outstanding (M. Mitzenmacher,
   "The Power of Two Choices in Randomized Load Balancing", 2001).
2. An endpoint that failed is ejected for a time that doubles with every further failure in a row. Connections that fail
   while it is ejected were begun before and tell nothing new.
3. It returns by a probe: one connection tries it, and the others keep away until that has succeeded or failed, or has
   taken too long. Having nothing outstanding, it would draw all of them otherwise.
4. When all are ejected, all are tried anyway, the one that comes back first at first.
5. A choice among thousands costs what one among a few does: as many are drawn as are tried, and only where draws do not
   find them are all looked at.

Only endpoints that could not be reached are ejected, for a second or so at most, and what fails is tried elsewhere. So
there is no share of endpoints that must stay: leaving a dead one in would only make more connections wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

from graph.directory import Endpoint

type EndpointKey = tuple[str, int, str]

#: Endpoints that are tried for one connection at once, at most.
CANDIDATES: Final = 3
#: Of so many all are looked at, which costs no more than to draw.
_FEW: Final = 6
#: Draws after which all are looked at: where one of four can be tried, they find three of those in 6 of 10 cases.
_DRAWS: Final = 12


class Balancer:
    """Counts outstanding connections and failures of endpoints.

    :param backoff: seconds that an endpoint is left out after its first failure
    :param longest: seconds that it is left out at most
    :param probe: seconds that others keep away from an endpoint while one connection tries it
    """

    __slots__ = ("_backoff", "_failures", "_longest", "_outstanding", "_probe", "_probed", "_random", "_until")

    def __init__(self, random: Random, *, backoff: float, longest: float, probe: float = 5.0) -> None:
        self._random = random
        self._backoff = backoff
        self._longest = longest
        self._probe = probe
        self._probed: dict[EndpointKey, float] = {}  # until when a probe may take
        self._outstanding: dict[EndpointKey, int] = {}
        self._failures: dict[EndpointKey, int] = {}
        self._until: dict[EndpointKey, float] = {}

    def order(self, endpoints: Sequence[Endpoint], now: float) -> list[Endpoint]:
        """Ready endpoints in the order in which to try them, empty when none is ready: of many only some, but at least
        :data:`CANDIDATES` where so many are ready.

        The caller tries the first: where that one failed before, this is its probe.
        """
        count = len(endpoints)
        if count == 1:
            return list(endpoints) if endpoints[0].ready else []
        if count > _FEW and (drawn := self._draw(endpoints, count, now)):
            return drawn
        good: list[Endpoint] = []
        out: list[Endpoint] = []
        for endpoint in endpoints:
            if endpoint.ready:
                (out if self._ejected(endpoint, now) else good).append(endpoint)
        self._random.shuffle(good)
        self._better_first(good, now)
        out.sort(key=self.retry_at)
        return good + out

    def _draw(self, endpoints: Sequence[Endpoint], count: int, now: float) -> list[Endpoint]:
        """As many as are tried, each as likely as any other that can be; none when they are not found by chance."""
        random = self._random.random
        good: list[Endpoint] = []
        drawn: list[int] = []
        for _ in range(_DRAWS):
            index = int(random() * count)
            endpoint = endpoints[index]
            if endpoint.ready and index not in drawn and not self._ejected(endpoint, now):
                drawn.append(index)
                good.append(endpoint)
                if len(good) == CANDIDATES:
                    self._better_first(good, now)
                    return good
        return []

    def _better_first(self, good: list[Endpoint], now: float) -> None:
        """Of the first two the one with less to do becomes the first, and is probed if it needs to be."""
        if len(good) > 1 and self.outstanding(good[1]) < self.outstanding(good[0]):
            good[0], good[1] = good[1], good[0]
        if good and (key := good[0].key) in self._failures:
            self._probed[key] = now + self._probe

    def _ejected(self, endpoint: Endpoint, now: float) -> bool:
        if not self._failures:
            return False
        key = endpoint.key
        return self._until.get(key, 0.0) > now or self._probed.get(key, 0.0) > now

    def outstanding(self, endpoint: Endpoint) -> int:
        """Connections begun and not ended."""
        return self._outstanding.get(endpoint.key, 0)

    def retry_at(self, endpoint: Endpoint) -> float:
        """When the endpoint is to be tried again; 0 when it did not fail."""
        return self._until.get(endpoint.key, 0.0)

    def began(self, endpoint: Endpoint) -> None:
        key = endpoint.key
        self._outstanding[key] = self._outstanding.get(key, 0) + 1

    def ended(self, endpoint: Endpoint) -> None:
        key = endpoint.key
        left = self._outstanding[key] - 1
        if left:
            self._outstanding[key] = left
        else:
            del self._outstanding[key]

    def failed(self, endpoint: Endpoint, now: float) -> None:
        """A connection to it could not be made."""
        key = endpoint.key
        self._probed.pop(key, None)
        if self._until.get(key, 0.0) > now:
            return
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        self._until[key] = now + min(self._longest, self._backoff * 2 ** min(failures - 1, 16))
        if len(self._until) > 4096:
            self._forget(now)

    def succeeded(self, endpoint: Endpoint) -> None:
        """A connection to it was made."""
        if self._failures and (key := endpoint.key) in self._failures:
            del self._failures[key]
            del self._until[key]
            self._probed.pop(key, None)

    def _forget(self, now: float) -> None:
        for key in [key for key, until in self._until.items() if until < now]:
            del self._until[key]
            del self._failures[key]
            self._probed.pop(key, None)
