"""Asks once more who is trusted, of those whose connections run on, whenever our trust bundle may have changed.

A root that was taken out of the bundle is not to be believed, and neither is what it was believed for before: whoever
has its key has made certificates that end when he likes, and their tunnels would end no sooner.

Rules:

1. What is looked at is the handshake that a lease goes by (:attr:`sidecar.dataplane.lease.Lease.latest`), as if it were
   made now; one whose certificate has ended since as of the moment when it was made. So a pair that has proved itself
   again under the new roots keeps what it began under the old ones.
2. Who can not be asked again, because nothing was kept of what he showed, or by a fault of ours, is not trusted any
   more.
3. Each look is a step among other work. A second round finds those whose handshake was under way at the first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from certs.errors import CertError
from sidecar.dataplane.complaints import Complaints
from sidecar.dataplane.contracts import Credentials
from sidecar.dataplane.lease import Lease, Proof
from sidecar.dataplane.reactor import Reactor

_log = logging.getLogger("sidecar.dataplane")


class Proved(Protocol):
    """A connection whose peer has proved who it is."""

    @property
    def lease(self) -> Lease | None:
        """What it lives by; None: its peer proved nothing to us."""

    def abort(self, why: str) -> None:
        """End it at once; one that is over does not mind."""


class Standing:
    """:param proved: says who is there
    :param meanwhile: seconds that a handshake under way may take
    """

    __slots__ = ("_complaints", "_credentials", "_meanwhile", "_proved", "_reactor")

    def __init__(
        self,
        reactor: Reactor,
        credentials: Credentials,
        complaints: Complaints,
        proved: Callable[[], Iterable[Proved]],
        meanwhile: float,
    ) -> None:
        self._reactor = reactor
        self._credentials = credentials
        self._complaints = complaints
        self._proved = proved
        self._meanwhile = meanwhile

    def begin(self) -> None:
        """The data path runs: look from now on."""
        self._credentials.subscribe(self._changed)

    def _changed(self) -> None:
        self._look()
        self._reactor.call_later(self._meanwhile, self._look)

    def _look(self) -> None:
        self._reactor.chores.begin(self._steps(list(self._proved())))

    def _steps(self, proved: list[Proved]) -> Iterator[None]:
        for one in proved:
            try:
                self._ask(one)
            except Exception:  # a fault at one of them is not the others'
                _log.exception("a fault of ours at the end of who is not trusted any more; please report it")
            yield

    def _ask(self, one: Proved) -> None:
        lease = one.lease
        if lease is None:
            return
        try:
            why = self._doubt(lease.latest)
        except Exception:
            _log.exception("a fault of ours while somebody was asked again, who is not believed then; please report it")
            why = "it can not be checked"
        if why:
            who = f"{lease.proof.peer.spiffe_id} at {lease.proof.place}"
            self._complaints.say(logging.WARNING, "%s is not trusted any more: %s", who, why)
            one.abort("its certificate is not trusted any more")

    def _doubt(self, proof: Proof) -> str:
        """Why what was shown there is not believed now; empty: it is."""
        if not proof.certificates:
            return "its certificates were too many to be kept"
        now = time.time()
        at = now if now < proof.peer.not_after else proof.at
        try:
            shown = self._credentials.verify_certificates(proof.certificates, at)
        except CertError as error:
            return str(error)
        return "" if shown == proof.peer.spiffe_id else f"it is {shown} now"
