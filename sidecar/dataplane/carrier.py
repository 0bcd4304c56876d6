"""What a stream needs of the tunnel that carries it, so that neither has to know how the other works."""

from __future__ import annotations

from typing import Protocol

from sidecar.dataplane.guards import Budget as Budget
from sidecar.dataplane.sending import Sender


class Attached(Protocol):
    """A stream as its tunnel sees it. Every call but ``abort`` and ``pump`` follows a frame of the peer.

    All that take a frame raise FrameError when the peer broke the protocol with it.
    """

    queued: bool

    def expect(self, length: int) -> None:
        """``length`` bytes of data are announced."""

    def deliver(self, payload: memoryview, size: int) -> None:
        """Take ``size`` bytes, valid during the call only."""

    def granted(self, length: int) -> None:
        """The peer takes ``length`` bytes more."""

    def accepted(self) -> None:
        """The peer has reached its application."""

    def finish(self) -> None:
        """The peer will send no more."""

    def deliver_last(self, payload: memoryview, size: int) -> None:
        """Take the last ``size`` bytes, valid during the call only: the peer will send no more."""

    def reset_by_peer(self) -> None:
        """The peer gave the stream up."""

    def unreached(self) -> None:
        """The peer gave the stream up, because it could not call its application; nothing was delivered."""

    def pump(self) -> None:
        """There is room to send again."""

    def abort(self, why: str) -> None:
        """The tunnel is gone."""


class Carrier(Protocol):
    """A tunnel as its streams see it."""

    @property
    def sender(self) -> Sender: ...

    @property
    def budget(self) -> Budget: ...

    def attach(self, stream_id: int, stream: Attached) -> None:
        """Hand ``stream`` the frames of ``stream_id`` from now on."""

    def detach(self, stream_id: int) -> None:
        """The stream is over at both ends."""
