"""TLS records of a tunnel, given to OpenSSL one by one.

Given a whole read at once, OpenSSL works off thousands of key updates before anybody else has a turn. So what carries
nothing (new keys, tickets, empty records) is counted, and limited by rate.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Final

from sidecar.dataplane.frames import FrameError, Rate
from sidecar.dataplane.tls import Channel

_TEXT: Final = 16_384
_HEADER: Final = 5
#: Bytes of a record with its header: RFC 8446 section 5.2 lets a ciphertext be 256 bytes longer than its text.
LONGEST: Final = _HEADER + _TEXT + 256
#: Records a second that carry nothing; twice as many at once.
SILENT_RECORDS: Final = 32


class Records:
    """What the peer of ``channel`` sends.

    :ivar partial: the beginning of a record; the caller puts it in front of what comes next
    :ivar ended: the peer has said that it sends no more
    """

    __slots__ = ("_read", "_silent", "_write", "ended", "partial")

    def __init__(self, channel: Channel) -> None:
        self._write = channel.incoming.write
        self._read = channel.read
        self._silent = Rate(SILENT_RECORDS)
        self.partial = b""
        self.ended = False

    def decrypt(
        self, received: bytearray, view: memoryview, size: int, text: memoryview, end: int, now: Callable[[], float]
    ) -> int:
        """Read ``received[:size]``, of which ``view`` is a view, into ``text[end:]``, where there is room for all.

        :param now: seconds; asked only when something carries nothing
        :return: where what was read ends
        :raises FrameError: when the peer sends what no peer of ours does
        :raises ssl.SSLError: when it is no TLS
        """
        write, read = self._write, self._read
        at = 0
        while size - at >= _HEADER:
            length = _HEADER + (received[at + 3] << 8 | received[at + 4])
            if length > LONGEST:
                raise FrameError(f"a TLS record of {length} bytes")
            if length > size - at:
                break
            write(view[at : at + length])
            at += length
            try:
                length = read(_TEXT, text[end:])
            except ssl.SSLWantReadError:
                if not self._silent.take(now()):
                    why = f"more than {SILENT_RECORDS} TLS records a second that carry nothing"
                    raise FrameError(why) from None
                continue
            if length == 0:
                self.ended = True
                break
            end += length
        self.partial = bytes(view[at:size]) if at < size else b""
        return end
