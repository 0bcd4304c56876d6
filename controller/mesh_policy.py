"""What the compiler makes the whole mesh's policy from, as the engine shows it."""

from __future__ import annotations

from controller.compiler import PolicyInput
from controller.view import View


def policy_input(view: View) -> PolicyInput:
    """What the compiler makes the whole mesh's policy from."""
    inventory = view.inventory
    return PolicyInput(
        trust_domain=view.trust_domain,
        workloads=tuple(workload for _, workload in sorted(inventory.workloads.items())),
        instances=tuple(instance for _, instance in sorted(inventory.instances.items())),
        services=tuple(service for _, service in sorted(inventory.services.items())),
        modes=view.modes,
        rules=tuple(rule for _, rule in sorted(view.rules.items())),
        networks=inventory.networks,
    )
