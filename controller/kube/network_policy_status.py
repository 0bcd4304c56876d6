"""Tells the SegmentationMode that speaks about a namespace's NetworkPolicies what was done with them.

It is written with a field manager of its own, so that it and the rest of the status do not touch each other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from controller.declarations import ModeDeclaration, NetworkPolicyMode
from controller.kube.client import Client, Document
from controller.kube.errors import Conflicting, NoSuchObject, Refused
from controller.kube.network_policy_plan import Plan
from controller.kube.resources.kinds import SEGMENTATION_MODES
from controller.kube.resources.status import condition
from controller.kube.resources.sync import ResourceSync

log = logging.getLogger("hedgerow.kube.network-policies")

MANAGER = "hedgerow-network-policies"
CONDITION = "NetworkPolicies"
_SHOWN = 100


@dataclass(slots=True)
class Outcome:
    """What became of a namespace.

    :param holds: it is as it should be; ``reason`` a word for why, ``message`` a sentence
    """

    mode: NetworkPolicyMode
    holds: bool
    reason: str
    message: str
    plan: Plan = field(default_factory=Plan)
    foreign: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    applied: int = 0
    deleted: int = 0
    digest: str = ""
    revision: int | None = None
    pinned: int | None = None

    def summary(self) -> dict[str, Any]:
        said: dict[str, Any] = {"mode": str(self.mode)}
        if self.mode is NetworkPolicyMode.APPLY and self.holds:
            said |= {"applied": self.applied, "digest": self.digest}
            said |= {"revision": self.revision} if self.revision is not None else {}
            said |= {"pinned": self.pinned} if self.pinned is not None else {}
        lists = {"foreign": self.foreign, "open": self.open}
        if not (self.mode is NetworkPolicyMode.APPLY and self.holds):
            lists |= {"create": self.plan.create, "change": self.plan.change, "delete": self.plan.delete}
        return said | {name: list(entries[:_SHOWN]) for name, entries in lists.items() if entries}


class StatusWriter:
    """:param clock: seconds since the epoch"""

    def __init__(self, client: Client, resources: ResourceSync, clock: Callable[[], float]) -> None:
        self._client = client
        self._resources = resources
        self._clock = clock

    async def tell(self, namespace: str, outcome: Outcome) -> None:
        """Write it where it is not said yet, and take it out of resources that no longer speak about it."""
        declared = [
            each
            for each in self._resources.declarations()
            if isinstance(each, ModeDeclaration) and each.source.namespace == namespace and not each.workload
        ]
        speaking = [each for each in declared if each.network_policy is not None]
        speaker = min(speaking, key=lambda each: each.source.age, default=None)
        for each in declared:
            document = self._resources.document(each.key)
            if document is None or document["metadata"]["uid"] != each.source.uid:
                continue
            present = document.get("status") or {}
            held = next((one for one in present.get("conditions") or () if one.get("type") == CONDITION), None)
            if each is not speaker:
                if held is not None or "networkPolicies" in present:
                    await self._write(document, {})
                continue
            said = condition(
                present,
                CONDITION,
                outcome.holds,
                outcome.reason,
                outcome.message,
                each.source.generation,
                self._clock(),
            )
            if said != held or present.get("networkPolicies") != outcome.summary():
                await self._write(document, {"networkPolicies": outcome.summary(), "conditions": [said]})

    async def _write(self, document: Document, status: dict[str, Any]) -> None:
        meta = document["metadata"]
        body: dict[str, Any] = {
            "apiVersion": SEGMENTATION_MODES.api_version,
            "kind": SEGMENTATION_MODES.kind,
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
            "status": status,
        }
        try:
            await self._client.apply(
                SEGMENTATION_MODES,
                meta["name"],
                body,
                meta["namespace"],
                subresource="status",
                manager=MANAGER,
                force=True,
            )
        except (NoSuchObject, Conflicting):
            return  # it is gone, or another one by now
        except Refused as error:
            # an admission rule of one namespace is no reason to leave the others without their policies
            log.error("the status of SegmentationMode %s/%s: %s", meta["namespace"], meta["name"], error)
