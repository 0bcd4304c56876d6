"""Whether SQLite's write-ahead log still holds every transaction that was acknowledged. Reads, and changes nothing.

SQLite reads its log up to the first frame whose checksum does not match, and takes the rest for the end of a write that
a power cut interrupted. That is right for the last transaction, which nobody was told of. But every transaction is on
the disk before the next one begins (``synchronous=FULL``): where more than one commit stands behind the first frame
that does not match, one that was acknowledged is lost, and the database would quietly be what it was before it.

The format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final

_HEADER: Final = 32
_FRAME: Final = 24
_MAGIC: Final = {0x377F0682: "<", 0x377F0683: ">"}


def loses(path: Path) -> bool:
    """Whether the log at ``path`` lost something. One that is not there, or empty, did not.

    :raises OSError: when it can not be read
    """
    try:
        with path.open("rb") as file:
            return _loses(file, path.stat().st_size)
    except FileNotFoundError:
        return False


def _loses(file: BinaryIO, size: int) -> bool:
    if size <= _HEADER:  # the header is on the disk before any frame is
        return False
    header = file.read(_HEADER)
    magic, _, page, _, *salts, first, second = struct.unpack(">8I", header)
    order = _MAGIC.get(magic, "<")
    sums = _sums((0, 0), header[:24], order)
    if magic not in _MAGIC or sums != (first, second):
        return True
    page = 65_536 if page == 1 else page
    commits, intact = 0, True
    for _ in range((size - _HEADER) // (_FRAME + page)):
        head = file.read(_FRAME)
        content = file.read(page)
        _, pages, salt, other_salt, first, second = struct.unpack(">6I", head)
        if intact:
            # those of an earlier round of the log end it, and are nobody's loss
            intact = [salt, other_salt] == salts
            if intact:
                sums = _sums(_sums(sums, head[:8], order), content, order)
                intact = sums == (first, second)
        if not intact and [salt, other_salt] == salts and pages:
            commits += 1
    return commits > 1


def _sums(sums: tuple[int, int], data: bytes, order: str) -> tuple[int, int]:
    """The checksum of the log's format, of data that follows data which had ``sums``."""
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for word in words:
        first = (first + word + second) & 0xFFFFFFFF
        second = (second + next(words) + first) & 0xFFFFFFFF
    return first, second
