"""The connection to the controller, and the one place where gRPC's errors become ours.

A gRPC channel holds the certificate it was made with, so a renewal makes a new channel. Sessions on the old one are
ended and begin again on the new one at once; the old channel is closed when its last session has left.

gRPC can check a server's DNS name and nothing else: the controller's certificate carries
:data:`certs.spiffe.CONTROLLER_DNS_NAME`, and no other certificate of the trust domain carries a DNS name.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from random import Random
from typing import Any, NoReturn

import grpc
import grpc.aio

from certs.bundle import TrustBundle
from certs.keys import key_to_pem
from certs.spiffe import CONTROLLER_DNS_NAME
from sidecar.backoff import Backoff
from sidecar.credentials import CredentialStore, Svid
from sidecar.errors import ControllerRefused, ControllerUnavailable
from sidecar.settings import Address

log = logging.getLogger(__name__)

OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.ssl_target_name_override", CONTROLLER_DNS_NAME),
    # a controller that vanished without a word is noticed within some 70 s
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # short, because our own back-off (below) already keeps the sessions from asking too often
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 500),
    # calls are repeated by us, who know what may be sent twice
    ("grpc.enable_retries", 0),
    # every channel has its own connection: a shared one would keep the certificate of the first
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]

#: Seconds that a session waits at most before it tries again; 0.1 when it was told to hurry.
MAX_WAIT = 5.0
HURRIED_WAIT = 0.1

#: A session that lasted this many seconds was a success, however it ended.
SETTLED = 10.0

_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)


def translate(error: BaseException) -> ControllerUnavailable | ControllerRefused:
    """What a gRPC error means to us: try again, or do not. The message is one line and names the likely cause."""
    if not isinstance(error, grpc.aio.AioRpcError):
        # writing to a call that has ended raises a bare asyncio.InvalidStateError or UsageError
        return ControllerUnavailable("the controller ended the connection")
    code = error.code()
    details = " ".join((error.details() or "").split())[:500]
    if code in _REFUSALS:
        return ControllerRefused(details or code.name, invalid=code is grpc.StatusCode.INVALID_ARGUMENT)
    if "CERTIFICATE_VERIFY_FAILED" in details or "Hostname Verification Check failed" in details:
        details += "; the controller's certificate is not trusted: check trust_bundle and the controller's address"
    elif "Connection refused" in details:
        details += "; nothing listens there: check the controller's address and that it runs"
    return ControllerUnavailable(f"{code.name}: {details}")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise :class:`ControllerUnavailable` or :class:`ControllerRefused` for every failure of a call."""
    try:
        yield
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
        # the frames that the error came through hold the failed call, the call its channel, and a channel goes on
        # connecting, also a closed one, until the garbage collector comes by
        traceback.clear_frames(error.__traceback__)
        raise translate(error) from None


def attestation_channel(target: Address, bundle: TrustBundle) -> grpc.aio.Channel:
    """A channel to the issuer's port for those who have no certificate yet: only the server proves who it is."""
    return grpc.aio.secure_channel(str(target), grpc.ssl_channel_credentials(bundle.to_pem().encode()), OPTIONS)


def mutual_channel(target: Address, svid: Svid) -> grpc.aio.Channel:
    """A channel on which both ends prove who they are."""
    credentials = grpc.ssl_channel_credentials(svid.bundle.to_pem().encode(), key_to_pem(svid.key), svid.chain_pem)
    return grpc.aio.secure_channel(str(target), credentials, OPTIONS)


async def converse(
    call: Any, asking: Coroutine[Any, Any, None], take: Callable[[Any], Awaitable[None] | None]
) -> NoReturn:
    """Run both directions of a stream at once, until the controller or our own cancellation ends it.

    :param call: a stream-to-stream call
    :param asking: writes to the call; it ends only by failing
    :param take: gets every message, in order
    :raises ControllerUnavailable, ControllerRefused: when the controller ended it
    """
    writer = asyncio.ensure_future(asking)
    writer.add_done_callback(lambda _: call.cancel())  # nobody writes any more, so the reader must not wait either
    try:
        with translated():
            try:
                async for message in call:
                    if (waiting := take(message)) is not None:
                        await waiting
            except asyncio.CancelledError:
                if writer.done() and not writer.cancelled():
                    writer.result()  # raises what made the writer cancel the call
                raise
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
    raise ControllerUnavailable("the controller ended the stream")


class _Lease:
    """One channel with the number of those who use it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.users = 0
        self.retired = asyncio.Event()


class Session:
    """What a session is given.

    :param channel: on which to make calls, until the session is cancelled
    :param established: to be called once the controller has answered
    """

    def __init__(self, channel: grpc.aio.Channel, established: Callable[[], None]) -> None:
        self.channel = channel
        self.established = established


class ControllerLink:
    """Keeps sessions with the controller alive, across its restarts and across our renewals.

    :param random: the source of the back-off's jitter
    """

    def __init__(self, target: Address, credentials: CredentialStore, random: Random) -> None:
        self._target = target
        self._credentials = credentials
        self._random = random
        self._lease: _Lease | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._hurry = asyncio.Event()
        credentials.subscribe(self._renewed)

    async def keep(
        self, name: str, session: Callable[[Session], Awaitable[None]], lost: Callable[[], None] = lambda: None
    ) -> None:
        """Run ``session`` again and again until cancelled; waits grow while it fails.

        :param session: makes calls under :func:`translated`; returning is as good as being cut off
        :param lost: called after every session that ended for another reason than a renewal
        """
        backoff = Backoff(self._random, cap=MAX_WAIT)
        reported = False

        def established() -> None:
            nonlocal reported
            backoff.succeeded()
            if reported:
                log.info("%s: connected to the controller again", name)
            reported = False

        while True:
            started = time.monotonic()
            try:
                if await self._run(session, established):
                    continue  # our certificate was renewed
                problem = "the controller ended the connection"
            except ControllerRefused as error:
                problem = f"the controller refused: {error}"
            except ControllerUnavailable as error:
                problem = f"the controller is away: {error}"
            lost()
            if time.monotonic() - started > SETTLED:
                backoff.succeeded()
            wait = backoff.failed()
            log.log(logging.DEBUG if reported else logging.WARNING, "%s: %s", name, problem)
            reported = True
            if self._hurry.is_set():
                await asyncio.sleep(HURRIED_WAIT)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), wait)

    def hurry(self) -> None:
        """Try again without long waits from now on: the end is near and a last report has to be sent."""
        self._hurry.set()

    async def close(self) -> None:
        """Close every channel. Sessions must have been cancelled before."""
        if self._lease is not None:
            await self._lease.channel.close(None)
            self._lease = None
        if self._closing:
            await asyncio.wait(self._closing)

    async def _run(self, session: Callable[[Session], Awaitable[None]], established: Callable[[], None]) -> bool:
        """One session. True when it was ended because its channel is retired."""
        lease = self._take()
        work = asyncio.ensure_future(session(Session(lease.channel, established)))
        retired = asyncio.ensure_future(lease.retired.wait())
        try:
            await asyncio.wait({work, retired}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                # a call that gRPC itself cancelled looks like our own cancellation, and is not
                if work.cancelled():
                    raise ControllerUnavailable("the call was cancelled")
                work.result()
                return False
            return True
        finally:
            retired.cancel()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._leave(lease)

    def _take(self) -> _Lease:
        if self._lease is None:
            self._lease = _Lease(mutual_channel(self._target, self._credentials.svid))
        self._lease.users += 1
        return self._lease

    def _leave(self, lease: _Lease) -> None:
        lease.users -= 1
        if lease.retired.is_set() and not lease.users:
            self._close(lease)

    def _renewed(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.retired.set()
            if not lease.users:
                self._close(lease)

    def _close(self, lease: _Lease) -> None:
        task = asyncio.ensure_future(lease.channel.close(None))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
