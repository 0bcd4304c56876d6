"""The controller on a Kubernetes cluster: the one place that makes and joins everything in this package.

Each part is one line in :class:`Cluster`. :mod:`controller.kube.supervision` keeps them going; the controller serves
from the state that it stored until they have caught up, and goes on from what it has when the API server is away.

Where nothing is stored, what the custom resources say comes first and the inventory after it: a workload that is known
before its mode would be pushed the default one, which closes nothing, for as long as the resources can not be read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controller.cluster_state import ClusterState, PartState, WatchState
from controller.engine import Engine
from controller.inventory import Inventory
from controller.keyring import Keyring
from controller.kube.attestation import Attestor
from controller.kube.client import Client
from controller.kube.inventory.following import ACTOR, Following
from controller.kube.network_policies import NetworkPolicyKeeper
from controller.kube.reflector import Reflector
from controller.kube.resources.author import ResourceAuthor
from controller.kube.resources.learned import LearnedPolicyWriter
from controller.kube.resources.sync import ResourceSync
from controller.kube.settings import KubernetesSettings
from controller.kube.supervision import Part, Supervised, Supervision
from controller.kube.trust import TrustDistributor
from controller.kube.webhook_certificate import WebhookCertificate

log = logging.getLogger("hedgerow.kube")

#: Why the inventory is not taken though all of it was read.
_NOT_DECLARED = "it waits for the custom resources: no mode and no override is known yet"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What parts are made from.

    :param settings: the ``kubernetes:`` section
    :param recheck: call it when the inventory changed: ends the streams of those who are gone
    :param clock: seconds since the epoch
    :param shrunk: told which part is left of a cluster that became much smaller
    """

    settings: KubernetesSettings
    client: Client
    engine: Engine
    keyring: Keyring
    trust_domain: str
    recheck: Callable[[], None]
    clock: Callable[[], float]
    shrunk: Callable[[float], None]


def following_of(around: Surroundings) -> Following:
    """The inventory's watches, which give what they see to the engine."""

    async def take(inventory: Inventory) -> None:
        await around.engine.follow_inventory(inventory, ACTOR)
        around.recheck()

    async def declared() -> None:
        if not around.engine.view.declared:
            log.info("the cluster was read; %s", _NOT_DECLARED)
            await _until_declared(around.engine)

    return Following(around.client, around.settings, around.trust_domain, take, around.shrunk, declared)


async def _until_declared(engine: Engine) -> None:
    """Wait until what the custom resources say is what the engine goes by, or until it ends."""
    async with engine.subscribe(limit=1) as changes:
        while not engine.view.declared:
            if await anext(changes, None) is None:
                return


def trust_of(around: Surroundings) -> TrustDistributor:
    """What keeps the trust bundle where pods mount it."""

    def in_use(namespace: str) -> bool:
        instances = around.engine.view.inventory.instances.values()
        return any(each.meshed and each.workload.namespace == namespace for each in instances)

    return TrustDistributor(around.client, lambda: around.keyring.bundle.to_pem(), in_use, time.monotonic)


class Cluster:
    """Made by :class:`controller.app.Controller` when there is a ``kubernetes:`` section."""

    def __init__(
        self,
        settings: KubernetesSettings,
        engine: Engine,
        keyring: Keyring,
        trust_domain: str,
        recheck: Callable[[], None],
        clock: Callable[[], float],
        shrunk: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.client = Client(settings)
        self.surroundings = Surroundings(settings, self.client, engine, keyring, trust_domain, recheck, clock, shrunk)
        self.attestor = Attestor(self.client, engine, settings.namespace, audience=settings.token_audience)
        self.resources = ResourceSync(self.client, engine, clock, self._inventory_known)
        self.author = ResourceAuthor(self.client, engine, self.resources, clock)
        self.inventory = following_of(self.surroundings)
        self.network_policies = NetworkPolicyKeeper(
            self.client, engine, self.resources, settings.namespace, clock, self._inventory_known
        )
        learned = LearnedPolicyWriter(self.client, engine, self._inventory_known)
        trust = trust_of(self.surroundings)
        parts: list[Part] = [
            *self.inventory.parts,
            self.resources,
            self.network_policies,
            learned,
            *trust.watches,
            trust,
        ]
        if settings.injector_certificate == "controller":
            parts.append(WebhookCertificate(self.client, settings.namespace, clock))
        self.supervision = Supervision(parts, time.monotonic)

    def _inventory_known(self) -> bool:
        return self.inventory.synced

    async def open(self) -> None:
        """Read the credentials.

        :raises controller.errors.ConfigError: naming the field and the remedy
        """
        await self.client.open()

    async def run(self) -> None:
        """Work until cancelled."""
        await self.supervision.run()

    async def close(self) -> None:
        await self.client.close()

    @property
    def synced(self) -> bool:
        """Whether every part has done its first round."""
        return self.supervision.synced

    def state(self) -> ClusterState:
        """How all of it fares now."""
        now = time.monotonic()
        figures = self.inventory.figures()
        policies = self.network_policies.problems
        return ClusterState(
            tuple(self._part_state(each, now) for each in self.supervision.parts),
            tuple(_watch_state(each, now) for each in self.inventory.reflectors),
            figures.inventories,
            figures.seconds,
            {**figures.troubles, **policies.kinds()},
            self.inventory.noted.shown(policies),
            self.network_policies.protected,
        )

    def _part_state(self, supervised: Supervised, now: float) -> PartState:
        part, problem = supervised.part, supervised.problem
        if part is self.inventory and self.inventory.listed and not self.surroundings.engine.view.declared:
            problem = _NOT_DECLARED
        return PartState(part.name, part.synced, supervised.failures, problem, _since(supervised.failed, now))


def _watch_state(reflector: Reflector[Any], now: float) -> WatchState:
    counts = reflector.ledger.counts
    return WatchState(
        str(reflector.resource),
        len(reflector.ledger.items),
        counts.lists,
        counts.watches,
        counts.events,
        counts.expired,
        counts.unreadable,
        _since(reflector.heard, now),
        _since(reflector.watching, now),
    )


def _since(moment: float | None, now: float) -> float | None:
    return None if moment is None else max(0.0, now - moment)
