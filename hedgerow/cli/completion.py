"""What the shell completes: names that the controller knows. Silent, and quick, when none answers.

A shell calls these while somebody is typing, so an error has no place to be shown and a second is the most that is
waited for. The access is that of the environment: what stands on the line so far is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hedgerow.client import Access, Client, ClientError

_PATIENCE = 1.0

type Completion = Callable[[str], list[str]]


def _asked(path: str, names: Callable[[Any], Iterable[str]]) -> Completion:
    """A completion from the answer to a GET."""

    def complete(incomplete: str) -> list[str]:
        import asyncio

        async def ask() -> Any:
            async with Client(Access.find(), timeout=_PATIENCE) as client:
                return await client.get(path)

        try:
            found = names(asyncio.run(ask()))
            return sorted({name for name in found if name.startswith(incomplete)})
        except (ClientError, KeyError, TypeError):
            return []

    return complete


workload = _asked("/status", lambda answer: (item["workload"] for item in answer["workloads"]))

#: Workloads with each of their ports.
target = _asked(
    "/inventory",
    lambda answer: (
        f"{item['namespace']}/{item['name']}:{port['port']}" for item in answer["workloads"] for port in item["ports"]
    ),
)

#: Workloads and whole namespaces.
scope = _asked(
    "/status",
    lambda answer: (
        name for item in answer["workloads"] for name in (item["workload"], item["workload"].partition("/")[0])
    ),
)

namespace = _asked("/status", lambda answer: (item["workload"].partition("/")[0] for item in answer["workloads"]))

#: Overrides that can be revoked.
override = _asked(
    "/overrides", lambda answer: (item["id"] for item in answer["overrides"] if item["state"] == "active")
)

#: Edges that wait for approval.
waiting_edge = _asked("/policy/diff", lambda answer: (item["edge"] for item in answer["edges"]))
