"""What a person decides in an engine, and what must be true of its policies afterwards."""

from __future__ import annotations

from typing import Any

from controller.compiler import PolicyInput, compile_snapshots
from controller.engine import Engine
from controller.engine.policy import same_policy
from controller.overrides import OverrideRequest
from controller.view import Override, View
from graph.model import Protocol, Verdict, WorkloadRef
from tests.controller.mesh import FRONT, REDIS


def versions(view: View) -> dict[WorkloadRef, int]:
    return {ref: snapshot.version for ref, snapshot in view.snapshots.items()}


def assert_as_if_compiled_whole(view: View, now: float) -> None:
    """What was compiled piece by piece is what a compilation of everything gives."""
    policy = PolicyInput(
        view.trust_domain,
        tuple(view.inventory.workloads.values()),
        tuple(view.inventory.instances.values()),
        modes=view.modes,
        rules=tuple(view.rules.values()),
        networks=view.inventory.networks,
    )
    whole = compile_snapshots(policy, now)
    assert set(whole) == set(view.snapshots)
    for ref, snapshot in whole.items():
        assert same_policy(snapshot, view.snapshots[ref]), ref


async def override(engine: Engine, **changes: Any) -> Override:
    asked: dict[str, Any] = {
        "effect": Verdict.ALLOW,
        "source": FRONT,
        "destination": REDIS,
        "port": 6379,
        "protocol": Protocol.TCP,
        "owner": "ann",
        "reason": "release 7",
        "expires_in": 60.0,
    }
    return await engine.create_override(OverrideRequest(**(asked | changes)))
