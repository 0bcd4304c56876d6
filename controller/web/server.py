"""The web server: puts handlers, access rules and the page together, and listens."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from controller.authoring import Author, EngineAuthor, NetworkPolicies
from controller.cluster_state import ClusterState
from controller.engine import Engine
from controller.errors import ConfigError
from controller.learner import Gate
from controller.rpc.server import port_error
from controller.rpc.tap import TapDesk
from controller.settings import LOOPBACK_HOSTS, Address, InheritedSocket, Settings, WebTls
from controller.web import answers, page
from controller.web.access import Hosts, Tokens
from controller.web.changing import Changing
from controller.web.inputs import MAX_BODY_BYTES
from controller.web.live import Live
from controller.web.looking import Looking
from controller.web.network_policies import Fencing
from controller.web.tap import Tapping

log = logging.getLogger("hedgerow.web")

#: Seconds that open requests have when the server stops. Live streams are ended at once.
SHUTDOWN_SECONDS = 3.0


def application(
    engine: Engine,
    gate: Gate,
    live: Live,
    tokens: Callable[[], Tokens],
    hosts: Hosts,
    clock: Callable[[], float],
    version: str,
    taps: TapDesk,
    *,
    author: Author | None = None,
    network_policies: NetworkPolicies | None = None,
    cluster: Callable[[], ClusterState | None] = lambda: None,
) -> web.Application:
    """Everything that is served, ready for a server or a test.

    :param author: writes down what people decide; None: the engine itself
    :param network_policies: of the cluster; None where there is none
    :param cluster: how the controller fares on it; None likewise
    """
    app = web.Application(middlewares=[answers.errors, answers.guard(tokens, hosts)], client_max_size=MAX_BODY_BYTES)
    app.on_response_prepare.append(answers.add_headers)

    async def close_streams(_: web.Application) -> None:
        live.close()
        taps.close()

    app.on_shutdown.append(close_streams)

    async def healthy(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        loaded = engine.view.ready
        return web.Response(text="ready\n" if loaded else "starting\n", status=200 if loaded else 503)

    looking = Looking(engine, gate, live, version, clock, cluster)
    changing = Changing(engine, author or EngineAuthor(engine), clock)
    fencing = Fencing(engine, network_policies)
    routes = [
        web.RouteDef(route.method, answers.API + route.path, route.handler, route.kwargs)
        for route in (*looking.routes(), *changing.routes(), *fencing.routes(), *Tapping(engine, taps).routes())
    ]
    app.add_routes([web.get("/healthz", healthy), web.get("/readyz", ready), *routes])
    app.add_routes(page.Page(page.load()).routes())
    return app


def hosts_of(settings: Settings) -> Hosts:
    """The names that a controller with these settings serves: loopback's, its own address, and those of web_hosts."""
    names = [*LOOPBACK_HOSTS, *settings.web_hosts]
    listen = settings.web_listen
    if isinstance(listen, Address) and not ipaddress.ip_address(listen.host).is_unspecified:
        names.append(listen.host)
    return Hosts.of(names)


class WebServer:
    """The listening server.

    :param app: see :func:`application`
    """

    def __init__(self, app: web.Application, settings: Settings) -> None:
        self._listen = settings.web_listen
        self._tls = _context(settings.web_tls) if settings.web_tls is not None else None
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_requests_log(),
            shutdown_timeout=SHUTDOWN_SECONDS,
            keepalive_timeout=30.0,
            max_line_size=8190,
            max_field_size=8190,
        )
        self.url = ""

    async def start(self) -> str:
        """Listen and serve.

        :returns: the address for a browser
        :raises PortError: naming the setting and the remedy
        :raises ConfigError: when the inherited socket is none that may be served in clear
        """
        sock = (
            _inherited(self._listen, self._tls) if isinstance(self._listen, InheritedSocket) else _bound(self._listen)
        )
        await self._runner.setup()
        await web.SockSite(self._runner, sock, ssl_context=self._tls, backlog=128).start()
        self.url = f"{'https' if self._tls else 'http'}://{_shown(sock)}"
        return self.url

    async def stop(self) -> None:
        """End live streams, let open requests finish for a moment, close."""
        await self._runner.cleanup()


class _NotOfStrangers(logging.Filter):
    """Leaves out requests that are no HTTP. Their senders are told, and whoever can reach the port could otherwise fill
    the log with tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _requests_log() -> logging.Logger:
    found = logging.getLogger("hedgerow.web.requests")
    if not found.filters:
        found.addFilter(_NotOfStrangers())
    return found


def _bound(address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise port_error("web_listen", address, error) from None
    sock.setblocking(False)
    return sock


def _inherited(listen: InheritedSocket, tls: ssl.SSLContext | None) -> socket.socket:
    """The socket that whoever started us has opened.

    :raises ConfigError: when it does not listen, or would serve tokens in clear on a network
    """

    def refuse(problem: str) -> ConfigError:
        return ConfigError(
            f"{listen}: {problem}",
            field="web_listen",
            remedy="pass a listening TCP socket on a loopback address, or a Unix socket",
        )

    try:
        sock = socket.socket(fileno=os.dup(listen.descriptor))
    except OSError as error:
        problem = "no such descriptor" if error.errno == errno.EBADF else "not a socket"
        raise refuse(problem) from None
    try:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise refuse("the socket does not listen")
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            loopback = ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback
            if not loopback and tls is None:
                raise refuse("it is not on a loopback address, and web_tls is not set")
        elif sock.family != socket.AF_UNIX:
            raise refuse("a socket of another family")
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _shown(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return "localhost"
    return f"[{name[0]}]:{name[1]}" if sock.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def _context(tls: WebTls) -> ssl.SSLContext:
    """A context for browsers.

    :raises ConfigError: when certificate or key can not be used
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for name, path in (("certificate", tls.certificate), ("key", tls.key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(
                f"{path} can not be read: {error.strerror}", field=f"web_tls.{name}", remedy="name a PEM file"
            ) from None
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(
            f"certificate and key can not be used ({reason})",
            field="web_tls",
            remedy="give a PEM certificate with its chain, and its unencrypted key",
        ) from None
    return context
