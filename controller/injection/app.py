"""One run of the webhook: the only place that makes its parts and joins them.

It has no state and asks nobody anything, so that any number of them may run, and pods start while the controller is
away. What comes in is bounded before it is read: connections, bytes of one review and of all, time.

After SIGTERM it is no longer ready, goes on serving for ``drain_seconds`` with ``Connection: close``, and ends when
what it was answering is answered.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from controller.errors import ConfigError
from controller.handshakes import Handshakes
from controller.injection.meters import Meters
from controller.injection.outcomes import PodSecurity
from controller.injection.program_settings import InjectorSettings
from controller.injection.review import BadReview, answer
from controller.injection.serving_certificate import ServingCertificate
from controller.injection.webhook_configuration import PATHS
from controller.seats import Seats
from graph.fields import Address

log = logging.getLogger("hedgerow.injector")

#: Seconds for a TLS handshake, and for open requests once the listener is closed.
HANDSHAKE_SECONDS: Final = 5.0
SHUTDOWN_SECONDS: Final = 10.0
#: API servers keep connections; a shorter wait than theirs (90 s in Go) could close one just as it is used.
KEEPALIVE_SECONDS: Final = 120.0


class Injector:
    """One run, from settings to an orderly end.

    :param clock: seconds since the epoch
    """

    def __init__(self, settings: InjectorSettings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._at_once = asyncio.Event()
        self._buffered = 0
        self._seats: dict[str, Seats[web.RequestHandler]] = {}  # by the setting of the listener
        self.certificate = ServingCertificate(settings.certificate, settings.key, clock)
        #: Of those who come with reviews, once it listens.
        self.handshakes: Handshakes | None = None
        self.meters = Meters()
        #: Where it listens, once it does.
        self.address: Address | None = None
        self.health_address: Address | None = None

    def stop(self) -> None:
        """Begin the orderly end; a second call ends it at once."""
        if self._stopping.is_set():
            self._at_once.set()
        self._stopping.set()

    @property
    def ready(self) -> bool:
        return self.certificate.usable and not self._stopping.is_set()

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve until :meth:`stop`.

        :param started: called when both listeners are there
        :raises ConfigError: when an address can not be listened on
        """
        self.certificate.refresh()
        reviews, health = self._runner(self._reviews()), self._runner(self._health())
        servers: list[asyncio.Server] = []
        following = asyncio.create_task(self.certificate.follow(self._settings.certificate_interval))
        try:
            await health.setup()
            await reviews.setup()
            for name, runner, where in (
                ("health_listen", health, self._settings.health_listen),
                ("listen", reviews, self._settings.listen),
            ):
                servers.append(await self._listen(name, runner, where, tls=runner is reviews))
            self.health_address, self.address = map(_address_of, servers)
            log.info("answering API servers on %s, health on %s", self.address, self.health_address)
            started()
            await self._until_the_end(following)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            for server in reversed(servers):
                server.close()
            if self.handshakes is not None:
                await self.handshakes.end()
            await reviews.cleanup()
            await health.cleanup()

    async def _until_the_end(self, following: asyncio.Task[None]) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([stopping, following], return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()  # a fault of ours; never without a word
        finally:
            stopping.cancel()
        log.info("stopping; answering for %g s more", self._settings.drain_seconds)
        try:
            async with asyncio.timeout(self._settings.drain_seconds):
                await self._at_once.wait()
        except TimeoutError:
            pass

    async def _listen(self, name: str, runner: web.AppRunner, where: Address, *, tls: bool) -> asyncio.Server:
        server = runner.server
        assert server is not None, "set up before"

        most = self._settings.connections
        seats = self._seats[name] = Seats(most, lambda: server.connections)

        def connect() -> asyncio.Protocol | None:
            return server() if seats.make_room() else None

        def arrive() -> asyncio.Protocol:
            return connect() or _Closed()

        if tls:
            self.handshakes = Handshakes(most, HANDSHAKE_SECONDS, self.certificate.context, connect)
            arrive = self.handshakes.arrive
        loop = asyncio.get_running_loop()
        try:
            return await loop.create_server(arrive, where.host, where.port, backlog=1024)
        except OSError as error:
            raise ConfigError(
                f"{where} can not be listened on: {error.strerror}", field=name, remedy="set another address or port"
            ) from None

    def _runner(self, app: web.Application) -> web.AppRunner:
        return web.AppRunner(
            app,
            access_log=None,
            logger=_requests_log(),
            shutdown_timeout=SHUTDOWN_SECONDS,
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=8190,
            max_field_size=8190,
        )

    # --- reviews

    def _reviews(self) -> web.Application:
        app = web.Application(client_max_size=self._settings.body_bytes)
        for path, enforces in PATHS.items():
            app.router.add_post(path, self._reviewer(enforces))
        return app

    def _reviewer(self, enforces: PodSecurity) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def review(request: web.Request) -> web.StreamResponse:
            began = time.perf_counter()
            response = await self._review(request, enforces)
            self.meters.took(time.perf_counter() - began)
            if self._stopping.is_set():
                response.force_close()
            return response

        return review

    async def _review(self, request: web.Request, enforces: PodSecurity) -> web.Response:
        if request.content_type != "application/json":
            return self._reject("content-type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.deadline):
                refused = await self._read(request, body)
            if refused is not None:
                return refused
            with self._seats["listen"].answering(request.protocol):
                answered = answer(bytes(body), enforces, self._settings.injection)
        except TimeoutError:
            return self._reject("slow", HTTPStatus.REQUEST_TIMEOUT, "the review did not arrive in time")
        except BadReview as error:
            return self._reject("bad-review", HTTPStatus.BAD_REQUEST, str(error))
        finally:
            self._buffered -= len(body)
        self.meters.reviews[(answered.outcome, answered.dry_run)] += 1
        level = logging.INFO if answered.outcome == "refused" else logging.DEBUG
        log.log(level, "%s %s/%s %s", answered.outcome, answered.namespace, answered.pod, answered.message)
        return web.json_response(answered.document)

    async def _read(self, request: web.Request, body: bytearray) -> web.Response | None:
        async for chunk in request.content.iter_any():
            body += chunk
            self._buffered += len(chunk)
            if len(body) > self._settings.body_bytes:
                return self._reject("large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the review is too large")
            if self._buffered > self._settings.buffered_bytes:
                return self._reject("busy", HTTPStatus.SERVICE_UNAVAILABLE, "too many reviews at once")
        return None

    def _reject(self, reason: str, status: HTTPStatus, message: str) -> web.Response:
        self.meters.rejected[reason] += 1
        log.warning("a request was rejected (%s): %s", reason, message)
        response = web.Response(status=status, text=f"{message}\n")
        response.force_close()
        return response

    # --- health

    def _health(self) -> web.Application:
        async def alive(_: web.Request) -> web.Response:
            return web.Response(text="ok\n")

        async def ready(_: web.Request) -> web.Response:
            missing = "stopping" if self._stopping.is_set() else "no certificate that holds now"
            return web.Response(text="ready\n" if self.ready else f"{missing}\n", status=200 if self.ready else 503)

        async def metrics(_: web.Request) -> web.Response:
            values = {
                "hedgerow_injector_ready": float(self.ready),
                "hedgerow_injector_certificate_not_after_seconds": self.certificate.valid_until,
                "hedgerow_injector_certificate_loads": float(self.certificate.loaded),
                "hedgerow_injector_certificate_failures": float(self.certificate.failed),
                "hedgerow_injector_cpu_seconds": time.process_time(),
                "hedgerow_injector_buffered_bytes": float(self._buffered),
                "hedgerow_injector_handshakes": float(len(self.handshakes or ())),
            }
            text = self.meters.page(values)
            return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4"})

        app = web.Application(client_max_size=1024)
        app.add_routes([web.get("/healthz", alive), web.get("/readyz", ready), web.get("/metrics", metrics)])
        return app


class _Closed(asyncio.Protocol):
    """For connections beyond the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class _NotOfStrangers(logging.Filter):
    """Leaves out requests that are no HTTP: whoever reaches the port could otherwise fill the log with tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _requests_log() -> logging.Logger:
    found = logging.getLogger("hedgerow.injector.requests")
    if not found.filters:
        found.addFilter(_NotOfStrangers())
    return found


def _address_of(server: asyncio.Server) -> Address:
    host, port = server.sockets[0].getsockname()[:2]
    return Address(host, port)


async def run(settings: InjectorSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    :raises ConfigError: when it can not begin; the message names the remedy
    """
    injector = Injector(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, injector.stop)
    await injector.run()
