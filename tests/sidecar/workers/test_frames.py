"""Frames are read as they were written, in any pieces, and what is none is refused."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.workers.frames import (
    FROM_WORKER,
    MAX_BLOBS,
    TO_WORKER,
    Broken,
    Frame,
    Kind,
    Reader,
    encode,
    number,
    one_blob,
    place,
    words,
)

ANY = dict.fromkeys(Kind, 1 << 20)
HEADS = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20) | st.booleans(), max_size=4)
FRAMES = st.tuples(
    st.sampled_from(Kind), HEADS, st.lists(st.binary(max_size=50), max_size=MAX_BLOBS).map(tuple), st.integers(0, 128)
)


@given(st.lists(FRAMES, max_size=5), st.data())
def test_what_was_written_is_read_in_whatever_pieces_it_comes(frames, data):
    written = b"".join(encode(*one) for one in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(written)), max_size=8)))
    reader = Reader(ANY)
    pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    read = [frame for piece in pieces for frame in reader.feed(piece)]
    assert read == [Frame(kind, head, blobs, beside) for kind, head, blobs, beside in frames]


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_refused(data):
    reader = Reader(FROM_WORKER)
    try:
        for frame in reader.feed(data):
            assert frame.kind in FROM_WORKER
    except Broken:
        pass


def test_every_kind_goes_in_one_direction_alone():
    assert set(TO_WORKER) | set(FROM_WORKER) == set(Kind)
    assert not set(TO_WORKER) & set(FROM_WORKER)


def raw(kind=Kind.READY, body=b"{}", *, length=None, head=None, descriptors=0):
    head = len(body) if head is None else head
    return struct.pack(">IBBI", len(body) + 6 if length is None else length, kind, descriptors, head) + body


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (raw(255), "unknown kind 255"),
        (raw(Kind.SVID), "a frame SVID"),  # a worker may not say that
        (raw(length=1 << 20), "READY of 1048576 bytes"),
        (raw(descriptors=200), "200 descriptors"),
        (raw(head=3), "shorter than its head"),
        (raw(body=b"{"), "not JSON"),
        (raw(body=b"[" * 900), "not JSON"),
        (raw(body=b"[1]"), "no object"),
        (raw(body=b"{}\0\0", head=2), "no blob"),
        (raw(body=b"{}\0\0\0\5abc", head=2), "within a blob"),
        (raw(body=b"{}" + b"\0\0\0\0" * (MAX_BLOBS + 1), head=2), "no blob"),
    ],
)
def test_what_is_no_frame_is_refused(data, problem):
    with pytest.raises(Broken, match=problem):
        list(Reader(FROM_WORKER).feed(data))


def test_a_frame_that_is_too_long_is_refused_before_it_has_come():
    head = struct.pack(">IBBI", FROM_WORKER[Kind.REPORT] + 1, Kind.REPORT, 0, 2)
    with pytest.raises(Broken, match="REPORT"):
        list(Reader(FROM_WORKER).feed(head))


def test_fields_are_what_they_should_be():
    frame = Frame(Kind.RESOLVE, {"address": "10.0.0.1", "port": 80, "text": "x" * 10})
    assert place(frame) == ("10.0.0.1", 80)
    assert words(frame, "text", 10) == "x" * 10
    with pytest.raises(Broken, match="no such text"):
        words(frame, "text", 9)
    with pytest.raises(Broken, match="no such text"):
        words(frame, "port")


@pytest.mark.parametrize("value", [None, -1, True, 1.5, "1", 65_536])
def test_a_port_is_a_number(value):
    with pytest.raises(Broken, match="port is no such number"):
        number(Frame(Kind.RESOLVE, {"port": value}), "port", 65_535)


@pytest.mark.parametrize("blobs", [(), (b"", b"")])
def test_one_blob_is_one(blobs):
    with pytest.raises(Broken, match="blobs"):
        one_blob(Frame(Kind.FLOWS, {}, blobs))


def test_what_a_frame_holds_is_not_shown():
    frame = Frame(Kind.SVID, {}, (b"-----BEGIN PRIVATE KEY-----",))
    assert "PRIVATE" not in repr(frame) + str(frame) + json.dumps(repr(frame))
