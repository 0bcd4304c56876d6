"""The stream on which the controller says what to show, and gets it.

We open it to the controller, on the connection that is mutual TLS already, so that nothing of the pod listens. When it
ends, every tap ends: nobody would see what they show.
"""

from __future__ import annotations

import logging

from graph.errors import DecodeError
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from graph.wire.taps import shown_to_message, start_from_message
from sidecar.channel import Session, converse
from sidecar.inspect.taps import Ended, Taps, TooManyTapsError

_log = logging.getLogger(__name__)


class TapClient:
    """Serves the controller's taps.

    :param boot_id: names this run of the sidecar
    """

    def __init__(self, taps: Taps, boot_id: str) -> None:
        self._taps = taps
        self._boot_id = boot_id
        self.connected = False

    async def session(self, session: Session) -> None:
        """One stream, for :meth:`sidecar.channel.ControllerLink.keep`."""
        call = rpc.TapStub(session.channel).Serve()

        async def show() -> None:
            await call.write(pb.TapEvent(hello=pb.TapHello(boot_id=self._boot_id)))
            await call.initial_metadata()
            session.established()
            self.connected = True
            while True:
                event = await self._taps.next()
                if isinstance(event, Ended):
                    ended = pb.TapEnded(id=event.tap, error=event.error[:200], shed=event.shed)
                    await call.write(pb.TapEvent(ended=ended))
                else:
                    await call.write(pb.TapEvent(exchange=shown_to_message(event)))

        try:
            await converse(call, show(), self._obey)
        finally:
            self.connected = False
            self._taps.stop_all()

    def _obey(self, command: pb.TapCommand) -> None:
        kind = command.WhichOneof("kind")
        if kind == "stop":
            self._taps.stop(command.stop.id)
        elif kind == "start":
            try:
                self._taps.start(start_from_message(command.start))
            except (DecodeError, TooManyTapsError) as error:
                _log.warning("a tap is not started: %s", error)
                self._taps.refuse(command.start.id[:64], str(error))
