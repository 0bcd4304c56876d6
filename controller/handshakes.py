"""TLS handshakes of a listener that anybody in the cluster can reach: so many under way at one time.

asyncio's own server tells nobody of a connection before its handshake is over, so that connections which never begin
one count nowhere until they time out. Here each counts from the moment that it is accepted, and when one more comes
than may be, the one that has been at it for longest is ended: a client that means it is done in milliseconds, and
turning newcomers away would keep out the API server.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable


class Handshakes:
    """Makes the protocols of a listener without TLS, and does the handshakes itself.

    :param most: under way at one time
    :param seconds: that one may take
    :param accepted: gives the protocol of a connection whose handshake is over; None: there is no place for it
    """

    def __init__(
        self, most: int, seconds: float, context: ssl.SSLContext, accepted: Callable[[], asyncio.Protocol | None]
    ) -> None:
        self._most = most
        self._seconds = seconds
        self._context = context
        self._accepted = accepted
        self._under_way: dict[_Arrived, asyncio.Task[None]] = {}  # the one that began first is first

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    def arrive(self) -> asyncio.Protocol:
        """For ``create_server``."""
        return _Arrived(self._begin)

    async def end(self) -> None:
        """End all that are under way."""
        tasks = list(self._under_way.values())
        for arrived, task in list(self._under_way.items()):
            arrived.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, arrived: _Arrived) -> None:
        while len(self._under_way) >= self._most:
            oldest = next(iter(self._under_way))
            task = self._under_way.pop(oldest)
            oldest.abort()
            task.cancel()
        task = asyncio.get_running_loop().create_task(self._shake(arrived))
        self._under_way[arrived] = task

    async def _shake(self, arrived: _Arrived) -> None:
        raw = arrived.transport
        assert raw is not None, "it has arrived"
        try:
            tls = await asyncio.get_running_loop().start_tls(
                raw, arrived, self._context, server_side=True, ssl_handshake_timeout=self._seconds
            )
        except OSError:  # TLS and time-outs too: strangers may try what they like, and nobody is told
            raw.abort()
            return
        finally:
            self._under_way.pop(arrived, None)
        if tls is None:
            return  # it has gone meanwhile
        protocol = self._accepted()
        if protocol is None:
            tls.abort()
            return
        arrived.hand_over(tls, protocol)


class _Arrived(asyncio.Protocol):
    """A connection until its handshake is over, and for what comes with the end of that."""

    def __init__(self, begin: Callable[[_Arrived], None]) -> None:
        self._begin = begin
        self._early: list[bytes] = []
        self._ended = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # what comes is the handshake's
        self.transport = transport
        self._begin(self)

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def eof_received(self) -> bool | None:
        self._ended = True
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def hand_over(self, tls: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        """Let ``protocol`` have the connection, and what has been read of it."""
        if self._ended or tls.is_closing():
            tls.abort()
            return
        tls.set_protocol(protocol)
        protocol.connection_made(tls)
        for data in self._early:
            protocol.data_received(data)
        self._early.clear()
