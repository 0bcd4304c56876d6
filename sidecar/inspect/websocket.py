"""mitmproxy's WebSocket layer, for addons that want messages, with an end to what it keeps.

mitmproxy collects a message whole and every message for ever. Here a message has a largest size, behind which the
connection is closed with 1009 (RFC 6455 section 7.4.1), and only the message that an addon looks at is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from mitmproxy import http
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.websocket import WebsocketLayer, WebsocketMessageHook
from wsproto.events import CloseConnection
from wsproto.utilities import LocalProtocolError

_TOO_BIG: Final = 1009
_INTERNAL: Final = 1011


class BoundedWebsocket(WebsocketLayer):
    """A WebSocket whose messages an addon sees.

    :param ask: shows the flow's last message to the addons; False: one of them failed, and the connection ends
    :param largest: bytes of one message
    """

    def __init__(
        self, context: Context, flow: http.HTTPFlow, ask: Callable[[http.HTTPFlow], bool], largest: int
    ) -> None:
        super().__init__(context, flow)
        self._ask = ask
        self._largest = largest

    def handle_event(self, event: events.Event) -> CommandGenerator[None]:
        for command in self._handle_event(event):
            if isinstance(command, WebsocketMessageHook):
                assert self.flow.websocket is not None
                if not self._ask(self.flow):
                    yield from self._close(_INTERNAL)
                    return
                del self.flow.websocket.messages[:-1]
            elif not isinstance(command, commands.StartHook | commands.Log):
                yield command
        if not isinstance(event, events.Start) and self._handle_event != self.done:
            for end in (self.client_ws, self.server_ws):
                if sum(len(part) for part in end.frame_buf) > self._largest:
                    yield from self._close(_TOO_BIG)
                    return

    def _close(self, code: int) -> CommandGenerator[None]:
        for end in (self.server_ws, self.client_ws):
            with contextlib.suppress(LocalProtocolError):  # it was closing already
                yield end.send2(CloseConnection(code))
            yield commands.CloseConnection(end.conn)
        self._handle_event = self.done  # as mitmproxy does
