"""One reading of the credentials and the connections that are made with it.

When it is closed nothing of it is left, whatever it was doing. aiohttp says farewell in TLS where a request is given up
before its answer has begun, and knows no more of that connection, which then stays open for as long as the server does
not answer, half a minute at most. So we know every socket ourselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import weakref
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from controller.errors import ConfigError
from controller.kube.credentials import FIELD, read_configuration
from controller.kube.errors import Unreachable
from controller.kube.library import library
from controller.kube.settings import KubernetesSettings

log = logging.getLogger("hedgerow.kube")

#: An object as large as etcd takes has to fit into what is read at once; the library's choice, too.
_READ_BYTES = 2**21
#: Turns of the event loop in which a socket that was shut is closed; it takes four.
_TURNS = 100


class Connection:
    """Closed when it is retired and nobody uses it.

    :param rest: the library's ``RESTClientObject``
    """

    def __init__(self, configuration: Any, rest: Any, sockets: _Sockets) -> None:
        self._configuration = configuration
        self.rest = rest
        self.host: str = configuration.host.rstrip("/")
        self._sockets = sockets
        self._users = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, settings: KubernetesSettings) -> Connection:
        """:raises ConfigError:"""
        configuration = await read_configuration(settings)
        sockets = _Sockets()
        try:
            rest = library().connection(configuration)
            unused, rest.pool_manager = rest.pool_manager, _session(configuration, sockets)
            await unused.close()
            return cls(configuration, rest, sockets)
        except (OSError, ValueError) as error:  # of OpenSSL, too
            where = settings.kubeconfig or "the ServiceAccount's files"
            raise ConfigError(
                f"{where}: CA, certificate or key can not be used: {error}",
                field=f"{FIELD}.kubeconfig" if settings.kubeconfig else FIELD,
                remedy="make it anew, or copy it again from where it works",
            ) from None

    async def proof(self) -> dict[str, str]:
        """The header by which the server knows us; none when a client certificate does that."""
        try:
            token = await self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        except Exception as error:  # of whatever kind a plugin or a file that vanished raises
            raise Unreachable(
                f"our own token can not be read: {type(error).__name__}", remedy="look at the pod's volumes"
            ) from None
        return {"Authorization": token} if token else {}

    @contextlib.asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._retired:
                await self.retire()

    def retire_soon(self) -> None:
        self._retired = True  # whoever forgets it uses it still

    async def retire(self) -> None:
        """Close it, now or when its last user is done. Whoever is cancelled meanwhile does not keep it from closing."""
        self._retired = True
        if self._users:
            return
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        session = self.rest.pool_manager
        if session.connector is not None:
            await session.connector.close(abort_ssl=True)
        await session.close()
        await self._sockets.close()


class _Sockets:
    """Every socket that was made and is not closed."""

    def __init__(self) -> None:
        self._made: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def make(self, address: tuple[Any, ...]) -> socket.socket:
        """What aiohttp asks for a socket. :param address: one of ``getaddrinfo``"""
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        self._made.add(made)
        return made

    async def close(self) -> None:
        """Shut those that are left, and wait until the event loop, whose they are, has closed them."""
        for each in self._open():
            with contextlib.suppress(OSError):  # it was never connected, or is not any more
                each.shutdown(socket.SHUT_RDWR)
        for _ in range(_TURNS):
            if not self._open():
                return
            await asyncio.sleep(0)
        log.warning("%d connections to the API server are still open after they were closed", len(self._open()))

    def _open(self) -> list[socket.socket]:
        return [each for each in self._made if each.fileno() >= 0]


def _session(configuration: Any, sockets: _Sockets) -> aiohttp.ClientSession:
    """As the library would make it, with sockets that we know. :raises OSError: also of OpenSSL"""
    tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if configuration.cert_file:
        tls.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if configuration.disable_strict_ssl_verification:
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    connector = aiohttp.TCPConnector(limit=configuration.connection_pool_maxsize, ssl=tls, socket_factory=sockets.make)
    return aiohttp.ClientSession(connector=connector, trust_env=True, read_bufsize=_READ_BYTES)
