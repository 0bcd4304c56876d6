"""The frame codec against a reader so simple that it is right: everything at once, no pieces."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.dataplane import frames
from sidecar.dataplane.frames import FrameError, FrameReader, Rate

STREAMS = st.integers(1, 0xFFFFFFFF)
FLAGS = st.sampled_from([0, 1, 2, 4, 8, 5, 6])


def frame(kind: int, flags: int, stream_id: int, length: int, payload: bytes = b"", version: int = 0) -> bytes:
    """The specification's header, written field by field."""
    return struct.pack("!BBHII", version, kind, flags, stream_id, length) + payload


def reference(data: bytes) -> list[tuple]:
    """Every frame of a valid byte string that is complete; of the last one, what is there."""
    events = []
    while len(data) >= 12:
        _, kind, flags, stream_id, length = struct.unpack("!BBHII", data[:12])
        data = data[12:]
        if kind == 0:
            events.append(("data", stream_id, flags & ~4, length))
            if data[:length]:
                events.append(("bytes", stream_id, data[:length]))
            if flags & 4 and len(data) >= length:
                events.append(("fin", stream_id))
            data = data[length:]
        else:
            events.append(("control", kind, flags, stream_id, length))
    return events


class Sink:
    """Writes down what it is told, joining pieces of one payload."""

    def __init__(self) -> None:
        self.events: list[tuple] = []
        self.deaf: set[int] = set()

    class Receiver:
        def __init__(self, sink, stream_id):
            self.sink, self.stream_id = sink, stream_id

        def deliver(self, payload, size):
            assert len(payload) == size > 0
            last = self.sink.events[-1]
            if last[0] == "bytes":
                self.sink.events[-1] = ("bytes", self.stream_id, last[2] + bytes(payload))
            else:
                self.sink.events.append(("bytes", self.stream_id, bytes(payload)))

        def deliver_last(self, payload, size):
            self.deliver(payload, size)
            self.finish()

        def finish(self):
            self.sink.events.append(("fin", self.stream_id))

    def on_data(self, stream_id, flags, length):
        self.events.append(("data", stream_id, flags & ~frames.FIN, length))
        return None if stream_id in self.deaf else self.Receiver(self, stream_id)

    def on_control(self, kind, flags, stream_id, length):
        self.events.append(("control", kind >> 16, flags, stream_id, length))

    def fault(self, stream_id):
        raise  # what is handled now


class Feed:
    """Feeds a reader as a tunnel does: what it held comes first."""

    def __init__(self, sink) -> None:
        self.reader = FrameReader(sink)
        self.buffer = bytearray(1 << 20)
        self.view = memoryview(self.buffer)

    def __call__(self, data: bytes) -> None:
        data = self.reader.held + data
        self.buffer[: len(data)] = data
        self.reader.feed(self.buffer, self.view, len(data))
        self.calls = 1
        while len(self.reader.held) >= 12 and not self.reader.closed:
            held = len(self.reader.held)
            self.buffer[:held] = self.reader.held
            self.reader.feed(self.buffer, self.view, held)
            self.calls += 1


class Codec(RuleBasedStateMachine):
    """Frames are written to a wire that is read in pieces of any size."""

    @initialize()
    def begin(self):
        self.sink = Sink()
        self.feed = Feed(self.sink)
        self.wire = b""
        self.read = 0

    @rule(flags=FLAGS, stream_id=STREAMS, payload=st.binary(max_size=300))
    def data(self, flags, stream_id, payload):
        if flags & 8:
            payload = b""
        self.wire += frame(0, flags, stream_id, len(payload), payload)

    @rule(flags=FLAGS, stream_id=STREAMS, number=st.integers(0, 0xFFFFFFFF))
    def window(self, flags, stream_id, number):
        self.wire += frame(1, flags, stream_id, 0 if flags & 8 else number)

    @rule(flags=st.sampled_from([1, 2]), number=st.integers(0, 0xFFFFFFFF))
    def ping(self, flags, number):
        self.wire += frame(2, flags, 0, number)

    @rule(code=st.integers(0, 0xFFFFFFFF))
    def go_away(self, code):
        self.wire += frame(3, 0, 0, code)

    @precondition(lambda self: self.read < len(self.wire))
    @rule(size=st.integers(1, 500))
    def piece(self, size):
        piece = self.wire[self.read : self.read + size]
        self.read += len(piece)
        self.feed(piece)

    @invariant()
    def the_sink_knows_what_the_reference_knows(self):
        assert self.sink.events == reference(self.wire[: self.read])

    def teardown(self):
        self.feed(self.wire[self.read :])
        assert self.sink.events == reference(self.wire)


Codec.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCodec = Codec.TestCase


def test_the_payload_of_a_stream_that_is_gone_goes_nowhere_and_the_next_frame_is_found():
    sink = Sink()
    sink.deaf.add(3)
    feed = Feed(sink)
    wire = frame(0, 4, 3, 1000, bytes(1000)) + frame(2, 1, 0, 7)
    for start in range(0, len(wire), 7):
        feed(wire[start : start + 7])
    assert sink.events == [("data", 3, 0, 1000), ("control", 2, 1, 0, 7)]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (frame(0, 0, 1, 0, version=1), "no frame"),
        (frame(4, 0, 0, 0), "no frame"),
        (frame(0, 3, 1, 0), "no frame"),
        (frame(0, 9, 1, 0), "no frame"),
        (frame(1, 12, 1, 0), "no frame"),
        (frame(1, 16, 1, 0), "no frame"),
        (frame(2, 0, 0, 0), "no frame"),
        (frame(2, 3, 0, 0), "no frame"),
        (frame(3, 1, 0, 0), "no frame"),
        (frame(0, 0, 0, 0), "stream 0"),
        (frame(1, 0, 0, 0), "stream 0"),
        (frame(2, 1, 1, 0), "for stream 1"),
        (frame(3, 0, 5, 0), "for stream 5"),
        (frame(0, 8, 1, 1, b"x"), "reset that carries"),
        (frame(1, 8, 1, 1), "reset that grants"),
    ],
)
def test_what_the_specification_does_not_know_ends_the_tunnel(bad, why):
    sink = Sink()
    with pytest.raises(FrameError, match=why):
        Feed(sink)(bad)
    assert sink.events == []


@given(st.binary(max_size=200))
def test_random_bytes_are_frames_or_an_error_and_nothing_else(data):
    sink = Sink()
    try:
        Feed(sink)(data)
    except FrameError:
        assert sink.events == reference(data)[: len(sink.events)]
    else:
        assert sink.events == reference(data)


def test_a_closed_reader_drops_the_rest():
    class Closing(Sink):
        def on_control(self, kind, flags, stream_id, length):
            super().on_control(kind, flags, stream_id, length)
            feed.reader.closed = True

    sink = Closing()
    feed = Feed(sink)
    feed(frame(2, 1, 0, 1) + frame(2, 1, 0, 2))
    assert sink.events == [("control", 2, 1, 0, 1)]


def test_a_rate_gives_twice_its_number_at_once_and_its_number_in_the_long_run():
    rate = Rate(10)
    assert sum(rate.take(100.0) for _ in range(100)) == 20
    assert not rate.take(100.05)
    assert rate.take(100.2)
    assert sum(rate.take(100.2 + step / 100) for step in range(1, 1001)) == pytest.approx(100, abs=2)
    assert sum(rate.take(1000.0) for _ in range(100)) == 20


def test_a_full_frame_fills_whole_tls_records():
    assert (frames.HEADER_SIZE + frames.PAYLOAD) % 16_384 == 0


@pytest.mark.parametrize(
    ("one", "calls"), [(frame(1, 0, 1, 1), 4), (frame(0, 0, 1, 1, b"x"), 16), (frame(1, 1, 1, 0), 32)]
)
def test_one_call_reads_a_bounded_number_of_frames_and_the_rest_is_not_lost(one, calls):
    sink = Sink()
    feed = Feed(sink)
    feed(one * 2048)
    assert feed.calls == calls
    assert sink.events == reference(one * 2048)
    assert feed.reader.held == b""
