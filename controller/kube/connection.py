"""One reading of the credentials and the connections that are made with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from controller.errors import ConfigError
from controller.kube.credentials import FIELD, read_configuration
from controller.kube.errors import Unreachable
from controller.kube.library import library
from controller.kube.settings import KubernetesSettings


class Connection:
    """Closed when it is retired and nobody uses it.

    :param rest: the library's ``RESTClientObject``
    """

    def __init__(self, configuration: Any, rest: Any) -> None:
        self._configuration = configuration
        self.rest = rest
        self.host: str = configuration.host.rstrip("/")
        self._users = 0
        self._retired = False
        self._closed = False

    @classmethod
    async def open(cls, settings: KubernetesSettings) -> Connection:
        """:raises ConfigError:"""
        configuration = await read_configuration(settings)
        try:
            return cls(configuration, library().connection(configuration))
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
        self._retired = True
        if self._users or self._closed:
            return
        self._closed = True
        session = self.rest.pool_manager
        if session.connector is not None:
            await session.connector.close(abort_ssl=True)
        await session.close()
        await asyncio.sleep(0)  # sockets are closed a turn of the loop later
