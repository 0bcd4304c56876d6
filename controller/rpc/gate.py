"""Lets calls in, keeps account of the open ones, and ends a stream whose caller is no longer who it was.

Services run their work inside :func:`answered`, streams inside :meth:`Gate.stream` as well; every refusal that they
raise becomes a gRPC status here and nowhere else.

Whoever begins streams without pause takes the one thread that all sidecars share. So an instance has so many a second,
and what goes beyond is refused, after a pause: a refusal that comes at once would be answered with the next attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio

from certs.bundle import TrustBundle
from certs.errors import AuthorityError, CertError
from controller.errors import (
    AttestationRefused,
    AttestationUnavailable,
    ControllerError,
    IngestError,
    InvalidRequest,
    JoinTokenError,
    NotReady,
    StoreError,
)
from controller.issuer import Throttled
from controller.rpc.caller import Caller, Proofs, Refused, identify, instance_in
from controller.signings import Renewals
from controller.view import View
from graph.errors import DecodeError, InvalidValue

log = logging.getLogger("hedgerow.grpc")

type Context = grpc.aio.ServicerContext[Any, Any]

#: Seconds that a message which is on its way may take when its stream has to end. Until it has left, gRPC takes no
#: status; a caller who does not read for longer gets none.
SETTLE_SECONDS = 5.0


class Outgoing:
    """The messages of one stream. A write that was begun is never cancelled: gRPC could not end the call after it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._write: asyncio.Task[None] | None = None

    async def write(self, message: Any) -> None:
        """Send a message; at most one at a time."""
        self._write = asyncio.ensure_future(self._context.write(message))
        await asyncio.shield(self._write)

    async def settle(self) -> None:
        """Wait until the last message has left."""
        if self._write is not None:
            await asyncio.wait([self._write], timeout=SETTLE_SECONDS)
            if self._write.done() and not self._write.cancelled():
                self._write.exception()  # seen: whoever wrote it may have been cancelled


#: How many streams of one kind an instance may have open: one, and the next one while certificates change.
MAX_STREAMS = 4

#: Streams that an instance may begin in a row: so many seconds' worth of them.
BURST_SECONDS = 10
#: Seconds that a refusal for too many takes, and how many of one instance take them at a time.
PAUSE = 1.0
PAUSED = 128


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The gRPC status that tells the caller what to do: mend the request, prove itself, or come again later."""
    code = grpc.StatusCode
    match error:
        case Refused():
            return error.status, str(error)
        case Throttled():
            return code.RESOURCE_EXHAUSTED, str(error)
        case JoinTokenError():
            return code.PERMISSION_DENIED, str(error)
        case AttestationRefused():
            return code.PERMISSION_DENIED, f"{error} [{error.code}]"
        case AttestationUnavailable():
            return code.UNAVAILABLE, f"{error} [{error.code}]"
        case NotReady() | StoreError() | AuthorityError():
            return code.UNAVAILABLE, str(error)
        case IngestError() | InvalidRequest() | DecodeError() | InvalidValue() | CertError():
            return code.INVALID_ARGUMENT, str(error)
        case _:
            return code.INTERNAL, "the controller failed; its log says why"


EXPECTED = (Refused, ControllerError, CertError, DecodeError, InvalidValue)


@contextlib.asynccontextmanager
async def answered(context: Context) -> AsyncIterator[None]:
    """Turn what is raised inside into the call's status. What nobody expected is a bug and is logged."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        if context.cancelled():  # the caller has left: nobody hears an answer
            raise asyncio.CancelledError from error
        status, message = status_of(error)
        message = "".join(mark if mark.isprintable() else " " for mark in message[:1000])  # it may quote the caller
        if not isinstance(error, EXPECTED):
            log.exception("a call failed")
        elif not isinstance(error, Throttled):  # whoever guesses fast must not fill the log
            log.info("a call from %s is refused: %s", context.peer(), message)
        await context.abort(status, message)


class Gate:
    """Identifies callers and holds their open streams.

    :param view: gives the newest view; ``bundle`` the roots in force; ``clock`` seconds since the epoch
    :param streams_per_second: that an instance may begin
    """

    def __init__(
        self,
        view: Callable[[], View],
        bundle: Callable[[], TrustBundle],
        clock: Callable[[], float],
        streams_per_second: int,
    ) -> None:
        self._view = view
        self._bundle = bundle
        self._clock = clock
        self._rate = streams_per_second
        self._paces = Renewals(1 / streams_per_second, streams_per_second * BURST_SECONDS)
        self._paused: Counter[str] = Counter()
        self._proofs = Proofs()
        self._open: Counter[tuple[str, str]] = Counter()
        self._revoked: dict[asyncio.Future[Any], Caller] = {}

    def caller(self, context: Context) -> Caller:
        """Who makes this call.

        :raises Refused: when that is not clear
        """
        view = self._view()
        if not view.ready:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the controller is starting; try again")
        auth = {name: list(values) for name, values in context.auth_context().items()}
        return identify(auth, view, self._bundle(), self._clock(), self._proofs)

    async def admitted(self, context: Context) -> Caller:
        """Who makes this call, and it may: for what has no bound of its own.

        :raises Refused: when that is not clear, or there were too many
        """
        caller = self.caller(context)
        wait = self._paces.admit(caller.key, self._clock())
        if not wait:
            return caller
        if self._paused[caller.key] < PAUSED:
            self._paused[caller.key] += 1
            try:
                await asyncio.sleep(PAUSE)
            finally:
                self._paused[caller.key] -= 1
                if not self._paused[caller.key]:
                    del self._paused[caller.key]
        raise Refused(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"{caller.key} began {self._rate * BURST_SECONDS} streams in a row and may begin {self._rate} a second "
            f"(streams_per_second); wait for {max(wait, 1):.0f} s, and find out why they end",
        )

    async def stream(
        self, context: Context, kind: str, serve: Callable[[Caller, Outgoing], Coroutine[Any, Any, None]]
    ) -> None:
        """Serve one stream for as long as its caller is who it was when it began.

        :param kind: what streams are counted by
        :param serve: the stream's whole work; cancelled when it has to end
        :raises Refused: at once, or when the certificate ends or the instance is removed
        """
        caller = await self.admitted(context)
        counted = (kind, caller.key)
        if self._open[counted] >= MAX_STREAMS:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_STREAMS} {kind} streams are open already; close one"
            )
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        late = Refused(grpc.StatusCode.UNAUTHENTICATED, "the certificate has ended; renew it")
        alarm = loop.call_later(max(0.0, caller.not_after - self._clock()), _end, ended, late)
        self._open[counted] += 1
        self._revoked[ended] = caller
        outgoing = Outgoing(context)
        work: asyncio.Task[Any] = asyncio.create_task(serve(caller, outgoing))
        try:
            await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ended.result()
        finally:
            alarm.cancel()
            ended.cancel()
            del self._revoked[ended]
            self._open[counted] -= 1
            if not self._open[counted]:
                del self._open[counted]
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await outgoing.settle()
        work.result()

    def recheck(self) -> None:
        """End the streams of those whom the inventory does not know any more. Call it when the inventory changed."""
        view = self._view()
        for ended, caller in list(self._revoked.items()):
            try:
                instance_in(view, caller.identity, caller.instance.name, caller.uid)
            except Refused as error:
                _end(ended, error)


def _end(ended: asyncio.Future[Any], why: Refused) -> None:
    if not ended.done():
        ended.set_result(why)
