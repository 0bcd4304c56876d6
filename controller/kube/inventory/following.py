"""The inventory follows the cluster: watches of everything that it is made from, and one that puts it together.

Rules:

1. Nothing is put together before everything was listed: half a cluster is no inventory. What the store kept is in force
   until then, and while the API server is away. Nor is anything before the engine may have it (``permitted``).
2. What changes within :attr:`~controller.kube.settings.KubernetesSettings.coalesce` seconds goes into one inventory.
3. When the engine refuses one, the next change brings the next; the one before stays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from controller.inventory import Inventory
from controller.kube import kinds
from controller.kube.client import Client
from controller.kube.inventory import objects
from controller.kube.inventory.assembly import Assembly
from controller.kube.inventory.problems import Problems
from controller.kube.reflector import Changed, Counts, Ledger, Reflector, Selection
from controller.kube.settings import KubernetesSettings
from controller.memory import HighWater, give_back, pack

log = logging.getLogger("hedgerow.kube")

#: In the audit log: changes that came with the cluster.
ACTOR = "kubernetes"
#: Pods that have ended are nobody to talk to, and there can be very many of them.
_LIVING = Selection(fields="status.phase!=Succeeded,status.phase!=Failed")

#: Of each: the resource, how it is read, and which of the assembly's methods takes its changes.
_FOLLOWED: tuple[tuple[kinds.Resource, Callable[[Any], Any], str], ...] = (
    (kinds.NAMESPACES, objects.namespace, "namespaces"),
    (kinds.NODES, objects.node, "nodes"),
    (kinds.PODS, objects.pod, "pods"),
    (kinds.REPLICA_SETS, objects.bare_owner_of_kind("ReplicaSet"), "owners"),
    (kinds.DEPLOYMENTS, objects.owner_of_kind("Deployment"), "owners"),
    (kinds.STATEFUL_SETS, objects.owner_of_kind("StatefulSet"), "owners"),
    (kinds.DAEMON_SETS, objects.owner_of_kind("DaemonSet"), "owners"),
    (kinds.JOBS, objects.bare_owner_of_kind("Job"), "owners"),
    (kinds.CRON_JOBS, objects.owner_of_kind("CronJob"), "owners"),
    (kinds.SERVICES, objects.service, "services"),
    (kinds.ENDPOINT_SLICES, objects.endpoint_slice, "slices"),
    (kinds.SERVICE_CIDRS, objects.service_range, "ranges"),
)
#: Objects, of all kinds; fewer take no memory that is worth giving back.
_MANY = 1000
#: Seconds after which memory is given back once half of the objects are gone, and again while more of them go. What is
#: freed meanwhile is used again.
_PAUSE = 10.0
#: Seconds that it must have stayed so much smaller after that: a cluster that grows again needs what it had.
_STAYS = 60.0
#: Kubernetes has ServiceCIDRs since 1.33. Without them the services' network has to be written.
_OPTIONAL = frozenset({kinds.SERVICE_CIDRS})

#: Every resource that the inventory lists and watches; for RBAC.
WATCHED: tuple[kinds.Resource, ...] = tuple(resource for resource, _, _ in _FOLLOWED)


@dataclass(frozen=True, slots=True)
class Figures:
    """How the following fares, for people and metrics.

    :param objects: held, by resource; ``counts`` what happened to them
    :param inventories: how many were made; ``seconds`` that the last one took to make and to be taken
    :param troubles: how many problems there are, by kind
    :param problems: what could not be attributed, or not be followed; a hundred at most, of each namespace as many
    """

    objects: Mapping[str, int]
    counts: Mapping[str, Counts]
    inventories: int
    seconds: float
    troubles: Mapping[str, int]
    problems: tuple[str, ...]


async def _at_once() -> None:
    """Nothing is waited for."""


class Following:
    """Makes the parts. Its own part is the one that puts together.

    :param take: gives an inventory to the engine
    :param shrunk: told, when half of the objects or more were gone for a while and memory was given back, which part is
        left of the most that there were
    :param permitted: waits until the engine may be given an inventory; asked before each is put together
    """

    name = "inventory"

    def __init__(
        self,
        client: Client,
        settings: KubernetesSettings,
        trust_domain: str,
        take: Callable[[Inventory], Awaitable[object]],
        shrunk: Callable[[float], None] = lambda _: None,
        permitted: Callable[[], Awaitable[object]] = _at_once,
    ) -> None:
        self._take = take
        self._shrunk = shrunk
        self._permitted = permitted
        self._coalesce = settings.coalesce
        self._assembly = Assembly(trust_domain, settings.cluster_networks)
        self._changed = asyncio.Event()
        self._taken = False
        self._inventories = 0
        self._seconds = 0.0
        self._told: tuple[str, ...] = ()
        self._held = HighWater(_MANY)
        self._most = 0
        self._giving: asyncio.TimerHandle | None = None
        self._staying: asyncio.TimerHandle | None = None
        self.reflectors: tuple[Reflector[Any], ...] = tuple(
            Reflector(
                client,
                resource,
                Ledger(read),
                partial(self._note, getattr(self._assembly, method)),
                _LIVING if resource is kinds.PODS else Selection(),
                optional=resource in _OPTIONAL,
            )
            for resource, read, method in _FOLLOWED
        )

    @property
    def parts(self) -> tuple[Reflector[Any] | Following, ...]:
        """For the supervision."""
        return (*self.reflectors, self)

    @property
    def synced(self) -> bool:
        """Whether the engine has an inventory of this run."""
        return self._taken

    @property
    def listed(self) -> bool:
        """Whether everything that an inventory is made from was read once."""
        return all(each.synced for each in self.reflectors)

    def _note(self, follow: Callable[[list[Changed[Any]]], None], changes: list[Changed[Any]]) -> None:
        follow(changes)
        self._changed.set()

    async def run(self) -> None:
        """Put together what changed, until cancelled."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                if self.listed:
                    try:
                        await self._permitted()
                        self._changed.clear()  # what came meanwhile is in it
                        await self._put_together()
                    except BaseException:
                        self._changed.set()  # what was built is still to be taken
                        raise
                await asyncio.sleep(self._coalesce)
        finally:
            for due in (self._giving, self._staying):
                if due is not None:
                    due.cancel()
            self._giving = self._staying = None

    async def _put_together(self) -> None:
        began = time.perf_counter()
        await self._take(self._assembly.build())
        self._seconds = time.perf_counter() - began
        self._inventories += 1
        if not self._taken:
            self._taken = True
            log.info("the cluster is known: %s", ", ".join(f"{n} {what}" for what, n in self._objects().items() if n))
        self._tell()
        count = self._count()
        self._most = max(self._most, count)
        if self._held.fell(count) and self._giving is None:
            self._giving = asyncio.get_running_loop().call_later(_PAUSE, self._give_back, count)

    def _give_back(self, before: int) -> None:
        """:param before: objects that there were when this was decided"""
        self._giving = None
        self._assembly.pack()
        pack(*(each.ledger for each in self.reflectors))
        give_back()
        count = self._count()
        log.info("memory was given back, %d objects are left", count)
        if count < before * 0.99:
            self._giving = asyncio.get_running_loop().call_later(_PAUSE, self._give_back, count)
        elif self._staying is None:
            self._staying = asyncio.get_running_loop().call_later(_STAYS, self._stayed)

    def _stayed(self) -> None:
        self._staying = None
        count = self._count()
        if count <= self._most // 2:
            self._shrunk(count / self._most)

    def _count(self) -> int:
        return sum(len(each.ledger.items) for each in self.reflectors)

    def _tell(self) -> None:
        problems = self._assembly.problems
        for problem in set(problems) - set(self._told):
            log.warning("%s", problem)
        self._told = problems

    def _objects(self) -> dict[str, int]:
        return {str(each.resource): len(each.ledger.items) for each in self.reflectors}

    @property
    def noted(self) -> Problems:
        """All of what could not be attributed, or not be followed."""
        return self._assembly.noted

    def figures(self) -> Figures:
        return Figures(
            self._objects(),
            {str(each.resource): each.ledger.counts for each in self.reflectors},
            self._inventories,
            self._seconds,
            self._assembly.problem_kinds,
            self._assembly.problems,
        )
