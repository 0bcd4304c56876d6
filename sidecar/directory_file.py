"""The directory's answers as a sidecar keeps them for its next run: each a message, with its length behind it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError as ProtobufDecodeError

from graph.directory import Destination
from graph.errors import DecodeError
from graph.wire import hedgerow_pb2 as pb
from graph.wire.codec import destination_from_message
from sidecar.state import MAX_STATE_BYTES

#: Bytes of the state's file beside the answers.
SPARE = 1024


class Kept(NamedTuple):
    """An answer, and the message that it came in: to write it once more would hold up everybody for thousands of
    endpoints, even from a thread."""

    destination: Destination
    message: bytes


def encode(messages: Sequence[bytes]) -> bytes:
    """:param messages: those used last are last; of more than a file may hold, the first are left out"""
    parts: list[bytes] = []
    room = MAX_STATE_BYTES - SPARE
    for message in reversed(messages):
        room -= 4 + len(message)
        if room < 0:
            break
        parts += (message, struct.pack(">I", len(message)))
    return b"".join(reversed(parts))


def decode(data: bytes) -> list[Kept]:
    """:raises DecodeError: when any part is not what :func:`encode` writes"""
    found: list[Kept] = []
    position = 0
    while position < len(data):
        end = position + 4
        if end > len(data):
            raise DecodeError("cut off", "directory")
        end += struct.unpack_from(">I", data, position)[0]
        if end > len(data):
            raise DecodeError("cut off", "directory")
        written = data[position + 4 : end]
        try:
            message = pb.Destination.FromString(written)
        except ProtobufDecodeError as error:
            raise DecodeError(f"not a destination: {error}", "directory") from None
        found.append(Kept(destination_from_message(message), written))
        position = end
    return found
