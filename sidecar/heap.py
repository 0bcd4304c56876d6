"""What stays for the life of the process is kept out of the way: of the garbage collector, and of memory.

Modules, classes and settings are some 40,000 objects, and a full collection that visits them holds everything up for
15 ms and more (40 ms once mitmproxy is loaded). What connections leave behind is freed by counting; what is collected
is the little that refers to itself.

Half of what is resident after the start is program code that only the start needed: gRPC's and OpenSSL's set-up, and
the interpreter's. It is let go of, and comes back from the page cache by the page where it is needed after all.
"""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Final

from sidecar.dataplane.memory import give_back

#: Allocations before the youngest are looked at, and collections of each age before the next older is (``gc`` module).
#: The little that refers to itself comes to 20 objects a second under load: with 10,000 it waits for eight minutes, and
#: a soak sees a megabyte come and go. Everybody waits for a collection, 0.4 us for each object: while connections come,
#: all that the second one finds is theirs, and with ten times as many it took 15 ms.
_THRESHOLDS = (500, 4, 400)

#: Seconds after which what was just loaded has begun: connections to the controller are made, certificates are read.
#: The second time is for a start on a machine that has little time for us.
BEGUN: Final = (3.0, 60.0)


def settle() -> None:
    """What there is now will stay. To be called in the event loop when everything is loaded, and when more was."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    loop = asyncio.get_running_loop()
    for seconds in BEGUN:
        loop.call_later(seconds, let_go)


def let_go(smaps: Path = Path("/proc/self/smaps")) -> int:
    """Let go of pages that can be read again from their files, and of what the allocator keeps for nothing.

    :param smaps: our mappings, proc(5)
    :returns: bytes that were resident in the mappings that were let go of; 0 where the kernel does not say
    """
    from graph.pages import let_go_of_files

    give_back()
    return let_go_of_files(smaps)
