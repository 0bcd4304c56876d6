"""The periodic job: asks the database for its total every ``EVERY`` seconds and counts as the shopper does."""

from __future__ import annotations

import asyncio
import os

from hedgerow.local.shop import database
from hedgerow.local.shop.serving import CALL_TIMEOUT, target, until_told_to_stop
from hedgerow.local.shop.tally import Tally


async def _run(every: float, tally: Tally) -> None:
    while True:
        try:
            total = await asyncio.wait_for(database.ask(*target("DATABASE"), "TOTAL"), CALL_TIMEOUT)
            if not isinstance(total, int):
                raise ConnectionError(f"the database answered {total!r}")
            tally.succeeded()
        except (OSError, TimeoutError) as error:
            tally.failed_with(f"report: {type(error).__name__}: {error}")
        await asyncio.sleep(every)


async def _main() -> None:
    job = asyncio.create_task(_run(float(os.environ["EVERY"]), Tally()))
    stop = asyncio.create_task(until_told_to_stop())
    done, _ = await asyncio.wait((job, stop), return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    job.cancel()


if __name__ == "__main__":
    asyncio.run(_main())
