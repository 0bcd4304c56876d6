"""What all inspected connections of a sidecar share: settings, running taps, verdicts already given, counters.

Made once at the start, without mitmproxy. It is what the data path asks through
:class:`sidecar.dataplane.contracts.Taps`, and what a lane finds there.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from graph.model import Peer
from graph.policy import Decision
from sidecar.dataplane.contracts import Authority
from sidecar.inspect.settings import InspectSettings
from sidecar.inspect.taps import Taps
from sidecar.inspect.turns import Turns

if TYPE_CHECKING:
    from sidecar.dataplane.fabric import Fabric
    from sidecar.inspect.addons import Addons
    from sidecar.inspect.certificates import Certificates

_log = logging.getLogger(__name__)

#: Verdicts kept; beyond that all are forgotten, as after a change of policy.
_MOST: Final = 4096


class Inspected(Protocol):
    """A connection in the lane."""

    def recheck(self) -> None:
        """The policy has changed: what runs is judged again."""

    def leave(self) -> None:
        """We are draining: the client is asked to go elsewhere for its next request."""


class Inspection:
    """Implements :class:`sidecar.dataplane.contracts.Taps`.

    :param taps: who watches; None: nobody ever does
    :ivar breaches: connections ended by a limit, by its name
    :ivar refused: requests refused by the policy; ``unreadable`` those whose form was refused
    """

    def __init__(self, settings: InspectSettings | None = None, taps: Taps | None = None) -> None:
        self.settings = settings if settings is not None else InspectSettings()
        self.taps = taps
        self.turns = Turns(self.settings.limits.slice)
        self.breaches: Counter[str] = Counter()
        self.refused = 0
        self.unreadable = 0
        self.requests = 0
        self._lanes: set[Inspected] = set()
        #: What our own application is shown in place of hosts that it calls; None: nobody makes that here.
        self.certificates: Certificates | None = None
        #: Connections to inspected hosts that came to nothing, by why (:mod:`sidecar.dataplane.outward`).
        self.outward: Counter[str] = Counter()
        self._verdicts: dict[tuple[bool, Peer, int, str], Decision] = {}
        self._authority: Authority | None = None
        self._addons: Addons | None = None

    @classmethod
    def of(cls, fabric: Fabric) -> Inspection:
        """What the data plane was given; where that was nothing, one of its own with the defaults."""
        given = fabric.taps
        return given if isinstance(given, cls) else fabric.shared.get(cls, cls)

    def close(self) -> None:
        """The data plane that made it ends; its connections have ended already."""

    def wants(self, port: int) -> bool:
        return self.settings.wants(port) or (self.taps is not None and self.taps.wants(port))

    @property
    def lanes(self) -> int:
        """Connections that are inspected now."""
        return len(self._lanes)

    @property
    def addons(self) -> Addons | None:
        """The user's addons; loaded when they are first needed.

        :raises sidecar.inspect.addons.BadAddon: when one can not be loaded
        """
        if self._addons is None and self.settings.addons:
            from sidecar.inspect.addons import Addons

            self._addons = Addons.load(self.settings.addons)
            late = [f"`{hook}`" for hook in ("request", "response") if self._addons.wants(hook)]
            if late and not self.settings.addon_bodies:
                _log.warning(
                    "inspect.addon_bodies is 0: what %s of the addons would change of messages with a body is lost; "
                    "write how many bytes of one may be collected, or use the hooks of heads",
                    " and ".join(late),
                )
        return self._addons

    def enter(self, lane: Inspected, authority: Authority) -> None:
        """A connection begins."""
        if self._authority is None:
            self._authority = authority
            authority.subscribe(self._changed)
        assert self._authority is authority, "one data plane's verdicts are not another's"
        self._lanes.add(lane)

    def left(self, lane: Inspected) -> None:
        """A connection is over."""
        self._lanes.discard(lane)

    def judge(self, peer: Peer, port: int, operation: str, *, outbound: bool = False) -> Decision:
        """:meth:`Authority.operation`, asked once for each policy."""
        key = (outbound, peer, port, operation)
        found = self._verdicts.get(key)
        if found is None:
            assert self._authority is not None
            found = self._authority.operation(peer, port, operation, outbound=outbound)
            if len(self._verdicts) >= _MOST:
                self._verdicts.clear()
            self._verdicts[key] = found
        return found

    def drain(self) -> None:
        """Have every client go elsewhere with its next request."""
        self._tell(lambda lane: lane.leave())

    def _changed(self) -> None:
        self._verdicts.clear()
        self._tell(lambda lane: lane.recheck())

    def _tell(self, what: Callable[[Inspected], None]) -> None:
        for lane in list(self._lanes):
            try:
                what(lane)
            except Exception:
                _log.exception("a fault in the inspect lane; please report it")
