"""The directory's answers as a sidecar keeps them for its next run: each a message, with its length behind it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from google.protobuf.message import DecodeError as ProtobufDecodeError

from graph.directory import Destination
from graph.errors import DecodeError, InvalidValue
from graph.wire import hedgerow_pb2 as pb
from graph.wire.codec import destination_from_message, destination_to_message
from sidecar.state import MAX_STATE_BYTES

#: Bytes of the state's file beside the answers.
SPARE = 1024


def encode(destinations: Sequence[Destination]) -> bytes:
    """:param destinations: those used last are last; of more than a file may hold, the first are left out"""
    parts: list[bytes] = []
    room = MAX_STATE_BYTES - SPARE
    for destination in reversed(destinations):
        try:
            message = destination_to_message(destination).SerializeToString()
        except InvalidValue:
            continue
        room -= 4 + len(message)
        if room < 0:
            break
        parts += (message, struct.pack(">I", len(message)))
    return b"".join(reversed(parts))


def decode(data: bytes) -> list[Destination]:
    """:raises DecodeError: when any part is not what :func:`encode` writes"""
    destinations: list[Destination] = []
    position = 0
    while position < len(data):
        end = position + 4
        if end > len(data):
            raise DecodeError("cut off", "directory")
        end += struct.unpack_from(">I", data, position)[0]
        if end > len(data):
            raise DecodeError("cut off", "directory")
        try:
            message = pb.Destination.FromString(data[position + 4 : end])
        except ProtobufDecodeError as error:
            raise DecodeError(f"not a destination: {error}", "directory") from None
        destinations.append(destination_from_message(message))
        position = end
    return destinations
