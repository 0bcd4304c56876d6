"""How much is read at once of one source, so that what is made of it does not keep the others waiting. Pure.

A read of 256 KiB is what makes bulk cheap, and what holds thousands of frames of twelve bytes, or heads that take
milliseconds each to decompress. Nobody knows before what a read will cost, but the next one of the same source will
cost about the same: so a source whose reads take long gets smaller ones, until they take less again.
"""

from __future__ import annotations

from typing import Final

#: Seconds of work on one read, beyond which the next one is half as large.
LONG: Final = 0.001
#: Seconds below which it is twice as large, up to the source's most, and beyond which others go before the next one.
SHORT: Final = 0.000_5
#: Bytes that are always read.
LEAST: Final = 4096


def adapted(portion: int, took: float, most: int) -> int:
    """The size of the next read, bytes.

    :param portion: of the last one
    :param took: seconds that were spent on it
    :param most: the largest that the source ever reads
    """
    if took > LONG:
        return max(LEAST, portion >> 1)
    return min(most, portion << 1) if took < SHORT else portion
