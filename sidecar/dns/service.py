"""The DNS proxy as a part of the sidecar: its settings, its table of names, and that table's file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from graph.errors import DecodeError
from sidecar.dataplane.sockets import Address
from sidecar.dns.names import LearnedNames, NameTable
from sidecar.dns.proxy import DnsProxy, DnsSettings, default_upstreams
from sidecar.dns.settings import Dns
from sidecar.errors import StateError
from sidecar.state import NAMES, StateDirectory

log = logging.getLogger(__name__)

RESOLV_CONF: Final = Path("/etc/resolv.conf")
#: Seconds between two looks whether there is something new to write.
_UPKEEP: Final = 5.0


class DnsService:
    """Learns names while it runs, and keeps them for the process after us.

    :param addresses: the pod's own: whether it has IPv6
    :param permitted: whether questions may leave the pod now
    :param clock: seconds since the epoch
    """

    def __init__(
        self,
        dns: Dns,
        addresses: Iterable[str],
        mark: int,
        state: StateDirectory,
        permitted: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._clock = clock
        self._table = NameTable(dns.keep, dns.addresses, dns.names)
        self._written = 0
        self.names = LearnedNames(self._table, clock)
        self._proxy = DnsProxy(proxy_settings(dns, addresses, mark, _resolv_conf()), self._table, permitted, clock)

    def listen(self) -> None:
        """Have the sockets and what was learned before, without answering yet.

        :raises CannotListen: saying why
        """
        self.restore()
        self._proxy.listen()

    async def start(self) -> None:
        """Answer."""
        await self._proxy.start()

    async def stop(self) -> None:
        """Answer no more. Calling it again changes nothing."""
        await self._proxy.stop()

    async def upkeep(self) -> None:
        """Keep the disk current, until cancelled."""
        while True:
            await asyncio.sleep(_UPKEEP)
            if self._table.changes != self._written:
                await self.persist()

    async def persist(self) -> None:
        """Write the names that hold now."""
        self._written = self._table.changes
        try:
            await asyncio.to_thread(self._state.write_checked, NAMES, self._table.dump(self._clock()))
        except StateError as error:
            log.warning("the names of addresses outside are not kept for a restart: %s", error)

    def restore(self) -> None:
        """Read the names of the last run."""
        try:
            data = self._state.read_checked(NAMES)
            if data is not None:
                self._table.restore(data, self._clock())
        except (StateError, DecodeError) as error:
            log.error("the stored names of addresses outside are not used: %s", error)

    def stats(self) -> dict[str, object]:
        """For people."""
        return {"addresses": self._table.addresses, **asdict(self._proxy.counts)}


def proxy_settings(dns: Dns, addresses: Iterable[str], mark: int, resolv_conf: str) -> DnsSettings:
    """What the proxy needs to know of the settings and of the pod."""
    listen = [Address(dns.listen.host, dns.listen.port)]
    given = tuple(Address(one.host, one.port) for one in dns.upstreams)
    upstreams = given or default_upstreams(resolv_conf, listen)
    ipv6 = any(":" in one for one in (*addresses, *(upstream.host for upstream in upstreams)))
    if listen[0].host == "127.0.0.1" and ipv6:
        listen.append(Address("::1", dns.listen.port))
    return DnsSettings(
        listen=tuple(listen),
        upstreams=upstreams,
        patience=dns.patience,
        deadline=dns.deadline,
        in_flight=dns.in_flight,
        connections=dns.connections,
        pipelined=dns.pipelined,
        idle=dns.idle,
        mark=mark,
    )


def _resolv_conf() -> str:
    try:
        return RESOLV_CONF.read_text(errors="replace")
    except OSError as error:
        log.warning("%s: %s; no resolver is known from it", RESOLV_CONF, error.strerror)
        return ""
