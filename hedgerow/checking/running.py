"""Runs checks one after the other, and again while somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from controller.kube.client import Client
from controller.kube.errors import Forbidden, KubernetesError
from controller.kube.settings import KubernetesSettings
from hedgerow.checking import health, preflight
from hedgerow.checking.finding import Finding, Outcome, failed

type Check = tuple[str, Callable[[Client], Awaitable[Finding]]]

#: Seconds between two rounds while waiting.
INTERVAL = 2.0


async def checks(client: Client, *, pre: bool) -> Sequence[Check]:
    """Those for a cluster that Hedgerow is on, or, with ``pre``, is to come to."""
    if pre:
        return preflight.CHECKS
    try:
        return health.CHECKS if await preflight.is_installed(client) else health.WITHOUT_INSTALLATION
    except Forbidden:  # each of them says what may not be read
        return health.CHECKS


async def one(check: Check, client: Client) -> Finding:
    """The end of a check. A right that is missing is a finding; an API server that is away is not.

    :raises KubernetesError: when nobody can say
    """
    name, ask = check
    try:
        return await ask(client)
    except Forbidden as error:
        return failed(name, str(error), error.remedy or "ask with a user who may read it")


async def run(
    kubeconfig: Path | None, context: str, *, pre: bool, wait: float, tell: Callable[[Finding], None]
) -> list[Finding]:
    """Run all checks.

    :param kubeconfig: None: the ServiceAccount of the pod that we are in
    :param wait: seconds in which failures may pass; the last round counts
    :param tell: called with each finding of the round that counts
    :raises KubernetesError, ConfigError: when the API server can not be asked
    """
    settings = KubernetesSettings(kubeconfig=kubeconfig, context=context)
    loop = asyncio.get_running_loop()
    end = loop.time() + wait
    async with Client(settings, agent="hedgerow-check") as client:
        while True:
            last = loop.time() >= end
            found: list[Finding] = []
            try:
                for check in await checks(client, pre=pre):
                    found.append(await one(check, client))
                    if last:
                        tell(found[-1])
            except KubernetesError as error:
                if last or not error.passing:
                    raise
                found = []
            settled = bool(found) and all(each.outcome is not Outcome.FAILED for each in found)
            if last or settled:
                if not last:
                    for each in found:
                        tell(each)
                return found
            await asyncio.sleep(min(INTERVAL, max(0.0, end - loop.time())))
