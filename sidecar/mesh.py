"""Everything that needs a certificate, as one thing that listens, starts, drains and stops.

It owns the life of parts that ``app.py`` has made. A fault in a part that only talks to the controller is logged and
that part begins again: it must not cost the workload its traffic.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from sidecar import application, ending
from sidecar.authority import PolicyAuthority
from sidecar.backoff import Backoff
from sidecar.certificate_agent import CertificateAgent
from sidecar.channel import ControllerLink
from sidecar.credentials import CredentialStore
from sidecar.data_path import DataPath
from sidecar.dataplane.sockets import Address, Inherited
from sidecar.directory import DirectoryClient
from sidecar.dns.service import DnsService
from sidecar.errors import CannotListen, ConfigError
from sidecar.flows import FlowSource
from sidecar.inspect.tap_client import TapClient
from sidecar.inspection_agent import InspectionAgent
from sidecar.life import Life
from sidecar.path_settings import data_plane_settings
from sidecar.policy_client import PolicyClient
from sidecar.settings import Settings
from sidecar.telemetry import TelemetryClient

log = logging.getLogger(__name__)

#: Seconds that the last report may take.
FLUSH_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a mesh is made of.

    :param tap: shows requests to people, when the controller asks
    :param inspection: keeps what stands in for hosts that are inspected; None where other processes carry connections
    :param flows: what connections did, as ``telemetry`` reports it
    :param dns: None when the application's questions do not go through us
    """

    settings: Settings
    agent: CertificateAgent
    credentials: CredentialStore
    authority: PolicyAuthority
    link: ControllerLink
    policy: PolicyClient
    directory: DirectoryClient
    flows: FlowSource
    telemetry: TelemetryClient
    tap: TapClient
    inspection: InspectionAgent | None
    dns: DnsService | None
    path: DataPath
    random: Random


class Mesh:
    """Runs its parts."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._listening = False
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def listeners(self) -> list[tuple[Address, socket.socket]]:
        """What is listened on, for another process that takes over."""
        return self._parts.path.listeners

    async def persist(self) -> None:
        """Write what the next process wants to find."""
        await self._parts.directory.persist()
        if self._parts.dns is not None:
            await self._parts.dns.persist()

    async def listen(self, inherited: Inherited | None) -> None:
        """Have everything that connections need, and the sockets, without taking any.

        :raises ConfigError: when an address can not be listened on
        """
        parts = self._parts
        parts.policy.restore()
        parts.directory.restore()
        try:
            await parts.path.listen(inherited)
            if parts.dns is not None:
                parts.dns.listen()
        except CannotListen as error:
            await parts.path.stop()
            parts.authority.close()
            at = (error.host, error.port)
            fields = [name for name, address in parts.settings.listeners() if (address.host, address.port) == at]
            raise ConfigError(": ".join([*fields[:1], str(error)])) from None
        except BaseException:
            await parts.path.stop()
            parts.authority.close()
            raise

    async def start(self) -> None:
        """Take connections."""
        parts = self._parts
        parts.policy.restore_newer()  # whoever ran before us may have been told more meanwhile
        if parts.dns is not None:
            await parts.dns.start()
            self._begin("names", parts.dns.upkeep)
        await parts.path.start()
        self._listening = True
        most = data_plane_settings(parts.settings).warm_destinations
        parts.path.warm(lambda: parts.directory.in_use(most))
        log.info("listening for %s", parts.credentials.identity)
        self._begin("certificates", lambda: parts.agent.run(parts.credentials))
        self._begin("policy", lambda: parts.link.keep("policy", parts.policy.session))
        self._begin("directory", lambda: parts.link.keep("directory", parts.directory.session, parts.directory.lost))
        if parts.settings.telemetry:
            self._begin("telemetry", lambda: parts.link.keep("telemetry", parts.telemetry.session))
            self._begin("reports", parts.telemetry.run)
        self._begin("taps", lambda: parts.link.keep("taps", parts.tap.session))
        if (inspection := parts.inspection) is not None:
            self._begin("inspection", lambda: parts.link.keep("inspection", inspection.session))
        self._begin("upkeep", parts.directory.upkeep)

    async def drain(self, life: Life) -> None:
        """Carry on until what runs has ended, or may no longer go on, and report it."""
        parts = self._parts
        seconds = parts.settings.drain_seconds
        await ending.hold(parts.settings, life, application.gone)
        log.info("draining for at most %g s", seconds)
        if life.replaced:
            if parts.dns is not None:
                await parts.dns.stop()  # our successor is to learn every name from here on
            # the controller hears of our successor alone, and we of its policy through the state directory
            await self._end("policy")
            self._begin("policy", parts.policy.follow)
        draining = parts.path.drain(seconds, replaced=life.replaced)
        await ending.drain(parts.settings, life, draining, application.gone)
        await parts.path.stop()  # the last bytes of what was cut off belong into the last report
        parts.link.hurry()
        if not await parts.telemetry.flush(0.0 if life.at_once.is_set() else FLUSH_SECONDS):
            waiting = parts.telemetry.outbox.waiting_flows
            log.warning("the last report was not acknowledged; %d flows were not sent", waiting)
        await self.persist()

    async def stop(self) -> None:
        """End everything. Calling it again changes nothing."""
        parts = self._parts
        for name in list(self._tasks):
            await self._end(name)
        await parts.policy.stored()
        if parts.dns is not None:
            await parts.dns.stop()
        await parts.path.stop()
        parts.authority.close()
        await parts.link.close()

    def missing(self) -> list[str]:
        """What is not there, for people; empty when a workload behind us would be served."""
        parts = self._parts
        missing = []
        if parts.credentials.not_after <= time.time():
            missing.append(parts.agent.problem or "the certificate has expired")
        if not parts.authority.version:
            missing.append("no policy snapshot yet: none is stored and the controller has not sent one")
        if not self._listening:
            missing.append("not listening yet")
        if parts.inspection is not None:
            missing += parts.inspection.missing()
        return missing + parts.path.missing()

    def stats(self) -> dict[str, object]:
        """What ``/stats`` shows."""
        parts = self._parts
        return {
            "workload": str(parts.authority.workload),
            "identity": str(parts.credentials.identity),
            "certificate": {"not_after": parts.credentials.not_after, "renewals": parts.credentials.renewals},
            **parts.path.stats(),
            "policy": {
                "version": parts.authority.version,
                "connected": parts.policy.connected,
                "rejected": parts.policy.last_rejection,
            },
            "dns": parts.dns.stats() if parts.dns is not None else None,
            "directory": {"addresses": parts.directory.entries, "connected": parts.directory.connected},
            "flows": self._flow_stats() if parts.settings.telemetry else None,
        }

    def _flow_stats(self) -> dict[str, object]:
        flows, telemetry = self._parts.flows, self._parts.telemetry
        return {
            "connected": telemetry.connected,
            "live": flows.live,
            "records": flows.total_records,
            "shed": telemetry.outbox.total_shed,
            "waiting": telemetry.outbox.waiting_flows,
            "acknowledged": telemetry.outbox.acknowledged,
        }

    def _begin(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks[name] = asyncio.ensure_future(self._begin_again(name, work))

    async def _end(self, name: str) -> None:
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _begin_again(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        backoff = Backoff(self._parts.random)
        while True:
            try:
                await work()
            except Exception:
                log.exception("a fault of ours in %s; it begins again", name)
            await asyncio.sleep(backoff.failed())
