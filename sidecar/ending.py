"""The end of a run, in the order that loses no request (``docs/sidecar-settings.md``, "Ending and restarting").

In a pod everybody is told to end when we are, or the application was told before:

1. *Hold.* Peers have not heard yet that this pod ends, so for ``hold_seconds`` everything goes on as before, except
   that we are not ready. Where the application has ended before us, nobody is left to hold for.
2. *Drain.* Peers are asked to go elsewhere, what runs may end. With ``exit_with_application`` this lasts until the
   application has ended too: it may have calls to make, and has no way out without us.
3. The second SIGTERM ends each of them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from sidecar.capture_settings import Capture
from sidecar.life import Life
from sidecar.settings import Settings

log = logging.getLogger(__name__)

type Gone = Callable[[], Awaitable[None]]


async def hold(settings: Settings, life: Life, gone: Gone) -> None:
    """The first step. There is none when another process has taken over.

    :param gone: returns when the application has ended
    """
    if life.replaced or not settings.hold_seconds:
        return
    log.info("told to end; serving on for at most %g s, until peers know it", settings.hold_seconds)
    waits: list[Awaitable[object]] = [life.at_once.wait()]
    if tells_application(settings):
        waits.append(_surely(gone))
    await _first(waits, settings.hold_seconds)


async def drain(settings: Settings, life: Life, draining: Awaitable[None], gone: Gone) -> None:
    """The second step.

    :param draining: the data path's own; it keeps ``drain_seconds`` itself
    """

    async def together() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_seconds):
                if settings.exit_with_application and not life.replaced:
                    await _surely(gone)
        await path

    path = asyncio.ensure_future(draining)
    try:
        await _first([together(), life.at_once.wait()], None)
    finally:
        path.cancel()
        await asyncio.gather(path, return_exceptions=True)


def tells_application(settings: Settings) -> bool:
    """Whether the application is another user than we are."""
    return settings.capture is Capture.REDIRECT and settings.mark is None


async def _surely(gone: Gone) -> None:
    """When that can not be found out, the application counts as running."""
    try:
        await gone()
    except OSError as error:
        log.warning("whether the application has ended can not be found out: %s", error.strerror)
        await asyncio.Event().wait()


async def _first(waits: list[Awaitable[object]], seconds: float | None) -> None:
    """Wait for the first of them; its fault is raised."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
