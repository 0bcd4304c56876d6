"""Where what people decide is written down: in the engine's own store, or on Kubernetes in custom resources.

The web API asks an :class:`Author` and does not know which one it is. Each answers when the engine has taken the
change and it is on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from controller.declarations import NetworkPolicyMode
from controller.engine import Engine
from controller.errors import Conflict
from controller.overrides import OverrideRequest
from controller.view import Override
from graph.model import Direction, InboundTls, Mode, WorkloadRef


@dataclass(frozen=True, slots=True)
class ModeRequest:
    """What is to be set, of a workload or of a namespace (a ``str``); what is None stays as it is.

    :param direction: of ``mode``; None means both
    """

    target: WorkloadRef | str
    direction: Direction | None
    mode: Mode | None
    inbound_tls: InboundTls | None
    network_policy: NetworkPolicyMode | None
    owner: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModesSet:
    """:param workloads: that are set so now, sorted; ``kept`` those that have a setting of their own, and keep it"""

    workloads: tuple[WorkloadRef, ...]
    kept: tuple[WorkloadRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Revoked:
    """:param note: what the person should know besides; may be empty"""

    override: Override
    note: str = ""


class Author(Protocol):
    """Raises :class:`~controller.errors.ControllerError`; then nothing was changed, unless its message says so."""

    async def create_override(self, asked: OverrideRequest) -> Override:
        """Allow or deny one connection, or some operations of it, from now on."""

    async def revoke_override(self, override_id: str, owner: str, reason: str) -> Revoked:
        """End an override now."""

    async def set_mode(self, asked: ModeRequest) -> ModesSet:
        """Set the mode of a workload, or of every workload of a namespace."""


class NetworkPolicies(Protocol):
    """The NetworkPolicies of a cluster, as the web API asks about them."""

    async def report(self, namespace: str | None) -> list[dict[str, Any]]:
        """What is applied, and what would change, namespace by namespace; JSON types only."""


class EngineAuthor:
    """Writes into the engine's store, which is the truth where there is no Kubernetes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def create_override(self, asked: OverrideRequest) -> Override:
        return await self._engine.create_override(asked)

    async def revoke_override(self, override_id: str, owner: str, reason: str) -> Revoked:
        return Revoked(await self._engine.revoke_override(override_id, owner, reason))

    async def set_mode(self, asked: ModeRequest) -> ModesSet:
        if asked.network_policy is not None:
            raise no_cluster()
        return ModesSet(
            await self._engine.set_mode(
                asked.target, asked.direction, asked.mode, asked.inbound_tls, asked.owner, asked.reason
            )
        )


def no_cluster() -> Conflict:
    """What is asked about NetworkPolicies where there are none."""
    return Conflict(
        "this controller is not on a Kubernetes cluster",
        field="network_policy",
        remedy="set `kubernetes:` in controller.yaml; `hedgerow policy export` writes NetworkPolicies without it",
    )
