"""Messages of gRPC, counted as they pass. Pure; nothing is kept of them but where in one we are.

A message is a byte that says whether it is compressed, four bytes of length, and so many more
(https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Length-Prefixed-Message"); how HTTP/2 cuts a body into
DATA frames, and a network cuts those, says nothing of it. As Envoy does, whose counts Istio shows
(``source/common/grpc/codec.h``, ``FrameInspector``, and ``source/extensions/filters/http/grpc_stats``):

1. A message counts with its first byte. So what a length promises and nobody sends neither costs nor changes anything.
2. Requests count where their content type is gRPC's, responses where theirs is too and their status is 200. gRPC-Web is
   not gRPC: its trailers are a message's form.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

_GRPC: Final = b"application/grpc"
_MORE: Final = (b"application/grpc+", b"application/grpc;")
_PREFIX: Final = 5
_LENGTH: Final = Struct(">xI")
#: Stands in front of what was read of a prefix, and alone where nothing was.
_NOTHING: Final = 1


def is_grpc(content_type: bytes) -> bool:
    """Whether a message with this ``content-type`` is gRPC: ``application/grpc`` by itself, with a format behind ``+``,
    or with parameters; ``application/grpc-web`` is something else."""
    return content_type == _GRPC or content_type.startswith(_MORE)


class Messages:
    """Of one direction of one call."""

    __slots__ = ("_left", "_prefix")

    def __init__(self) -> None:
        self._left = 0  # bytes of a message that are to come
        self._prefix = _NOTHING  # what was read of a prefix that is not whole, behind _NOTHING

    def take(self, data: bytes | memoryview, at: int, end: int) -> int:
        """The next bytes of the body: those of ``data`` from ``at`` to ``end``.

        :return: how many messages begin in them
        """
        at += self._left
        if at < end:
            began, prefix = 0, self._prefix
            while at < end:
                if prefix == _NOTHING:
                    began += 1
                    if end - at >= _PREFIX:
                        at += _PREFIX + _LENGTH.unpack_from(data, at)[0]
                        continue
                prefix = prefix << 8 | data[at]
                at += 1
                if prefix >> 8 * _PREFIX:
                    at += prefix & 0xFFFFFFFF
                    prefix = _NOTHING
            self._prefix = prefix
            self._left = at - end
            return began
        self._left = at - end
        return 0
