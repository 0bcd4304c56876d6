"""What stays for the life of the process is kept out of the garbage collector's way.

Modules, classes and settings are some 40,000 objects, and a full collection that visits them holds everything up for
15 ms and more (40 ms once mitmproxy is loaded). What connections leave behind is freed by counting; what is collected
is the little that refers to itself.
"""

from __future__ import annotations

import gc

#: Allocations before the youngest are looked at, and collections of each age before the next older is (``gc`` module).
_THRESHOLDS = (10_000, 20, 20)


def settle() -> None:
    """What there is now will stay. To be called when everything is loaded, and again when more was."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
