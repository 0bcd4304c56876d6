"""Messages of gRPC in what is only observed: counted on the connection, in both directions, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.frames import PREFACE
from sidecar.http.h2 import H2Lane
from tests.sidecar.http.fakes import Bench
from tests.sidecar.http.grpc_bodies import BODIES, PLACES, begun, cut, message
from tests.sidecar.http.h2_pair import CALL, GET, Pair, frame

ANSWER = [(":status", "200"), ("content-type", "application/grpc")]
TRAILERS = [("grpc-status", "0")]
CUTS = [None, 1, 3, 7, 13]


def counted(leg):
    return leg.record.request_messages, leg.record.response_messages


def call(pair, questions=(), answers=(), asked=CALL, answered=ANSWER, **padding):
    """One call, in which each message is a DATA frame of its own; answers with its stream."""
    stream = pair.client.get_next_available_stream_id()
    pair.client.send_headers(stream, asked)
    for data in questions:
        pair.client.send_data(stream, data, **padding)
    pair.client.end_stream(stream)
    pair.swap()
    pair.server.send_headers(stream, answered)
    for data in answers:
        pair.server.send_data(stream, data, **padding)
    pair.server.send_headers(stream, TRAILERS, end_stream=True)
    pair.swap()
    return stream


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("padding", [{}, {"pad_length": 0}, {"pad_length": 1}, {"pad_length": 200}])
def test_messages_of_both_directions(cut, padding):
    pair = Pair(Bench(), cut)
    call(pair, [message(b"a")], [message(b"b" * 300)] * 5, **padding)
    assert counted(pair.leg) == (1, 5)
    call(pair, [message(b"a" * 1000)] * 3, [message(b"")], **padding)
    assert counted(pair.leg) == (4, 6)


@pytest.mark.parametrize("cut", CUTS)
def test_frames_of_http2_say_nothing_of_messages(cut):
    pair = Pair(Bench(), cut)
    call(pair, [message(b"x") * 4 + b"\0", b"\0\0", b"", b"\0\5abc", b"de"], [message(b"y" * 900)[:450]] * 1)
    assert counted(pair.leg) == (5, 1)


@pytest.mark.parametrize(
    ("asked", "answered", "expected"),
    [
        (CALL, ANSWER, (2, 3)),
        (GET, ANSWER, (0, 0)),
        ([*CALL[:4], ("content-type", "application/grpc-web+proto")], ANSWER, (0, 0)),
        (CALL, [(":status", "200"), ("content-type", "text/html")], (2, 0)),
        (CALL, [(":status", "200")], (2, 0)),
        (CALL, [(":status", "503"), ("content-type", "application/grpc")], (2, 0)),
    ],
)
def test_what_is_no_call_has_no_messages(asked, answered, expected):
    pair = Pair(Bench())
    call(pair, [message(b"a")] * 2, [message(b"b")] * 3, asked, answered)
    assert counted(pair.leg) == expected
    assert pair.leg.record.protocol == ("http2" if expected == (0, 0) else "grpc")


def test_an_interim_answer_and_one_of_trailers_alone():
    pair = Pair(Bench())
    pair.client.send_headers(1, CALL)
    pair.client.send_data(1, message(b"a"), end_stream=True)
    pair.swap()
    pair.server.send_headers(1, [(":status", "103")])
    pair.server.send_headers(1, [*ANSWER, ("grpc-status", "12")], end_stream=True)
    pair.swap()
    assert counted(pair.leg) == (1, 0)


@pytest.mark.parametrize("by_client", [True, False])
def test_a_call_that_is_given_up_in_the_middle_of_a_message(by_client):
    bench = Bench()
    pair = Pair(bench)
    pair.client.send_headers(1, CALL)
    pair.client.send_data(1, message(b"a") + message(b"b" * 100)[:50])
    pair.swap()
    pair.server.send_headers(1, ANSWER)
    pair.server.send_data(1, message(b"c" * 100)[:3])
    pair.swap()
    (pair.client if by_client else pair.server).reset_stream(1)
    pair.swap()
    assert counted(pair.leg) == (2, 1)
    assert len(bench.flows.requests) == 1
    call(pair, [message(b"a")], [message(b"b")])
    assert counted(pair.leg) == (3, 2), "the next call begins anew"


def test_messages_of_a_call_that_runs_are_there():
    pair = Pair(Bench())
    pair.client.send_headers(1, CALL)
    pair.swap()
    pair.server.send_headers(1, ANSWER)
    for number in range(1, 5):
        pair.client.send_data(1, message(b"a"))
        pair.server.send_data(1, message(b"b") * 2)
        pair.swap()
        assert counted(pair.leg) == (number, 2 * number)


@pytest.mark.parametrize("cut", CUTS)
def test_a_response_that_ends_with_data(cut):
    pair = Pair(Bench(), cut)
    pair.client.send_headers(1, CALL, end_stream=True)
    pair.swap()
    pair.server.send_headers(1, ANSWER)
    pair.server.send_data(1, message(b"a" * 50) * 2, end_stream=True)
    pair.swap()
    assert counted(pair.leg) == (0, 2)


def test_a_body_behind_one_that_is_counted_is_not():
    """Another stream's DATA comes while a counted frame was cut in two."""
    pair = Pair(Bench())
    pair.client.send_headers(1, CALL)
    pair.client.send_headers(3, [*GET[:4], ("content-type", "text/plain")])
    pair.swap()
    one, other = frame(0, 0, 1, message(b"a" * 100)), frame(0, 0, 3, b"b" * 100)
    for data in (one[:50], one[50:] + other[:40], other[40:], one[:9], one[9:]):
        pair.leg.feed(data)
    assert counted(pair.leg) == (2, 0)


@pytest.mark.parametrize("cut", [None, 1])
@pytest.mark.parametrize(
    "payload", [b"\xff" + bytes(20), b"\x05" + bytes(5), b"\x04" + bytes(5), b"", b"\x00", bytes(1)]
)
def test_padding_that_is_longer_than_its_frame_is_for_the_application_to_refuse(cut, payload):
    pair = Pair(Bench())
    pair.client.send_headers(1, CALL)
    pair.swap()
    pair.cut = cut
    data = frame(0, 8, 1, payload)
    pair.feed(pair.leg, data)
    assert pair.bench.app.take() == data
    assert counted(pair.leg) == (1 if payload[:1] == b"\x04" else 0, 0)


def test_a_length_that_lies_holds_nothing():
    leg = Bench().client(H2Lane)
    pair_head = b"\x83\x86\x84\x41\x01x\x0f\x10\x10application/grpc"
    leg.feed(PREFACE + frame(1, 4, 1, pair_head))
    assert leg.record.protocol == "grpc"
    leg.feed((1 << 23).to_bytes(3) + bytes([0, 0, 0, 0, 0, 1]) + b"\0\xff\xff\xff\xff")
    for _ in range(20):
        leg.feed(b"\0" * 65_536)
        assert not leg.lane._from_client._held
    assert counted(leg) == (1, 0)


STREAMS = st.lists(st.tuples(BODIES, PLACES, st.integers(-1, 8)), min_size=1, max_size=4)


@given(STREAMS, st.integers(1, 500), st.randoms(use_true_random=False))
def test_however_frames_and_bytes_are_cut_the_count_is_the_same(streams, size, random):
    """Bodies of several calls, mixed, in frames of any size with any padding, and another body among them."""
    pair = Pair(Bench())
    waiting, expected = [], 0
    for index, (body, places, padding) in enumerate(streams):
        stream = 2 * index + 1
        pair.client.send_headers(stream, CALL)
        waiting.append([_frame(stream, piece, padding) for piece in cut(body, places)])
        expected += begun(body)
    other = 2 * len(streams) + 1
    pair.client.send_headers(other, GET)
    waiting.append([_frame(other, message(b"x"), -1)] * 3)
    pair.swap()
    said = b""
    while waiting:
        which = random.randrange(len(waiting))
        said += waiting[which].pop(0)
        waiting = [frames for frames in waiting if frames]
    pair.cut = size
    pair.feed(pair.leg, said)
    assert pair.bench.app.take() == said
    assert counted(pair.leg) == (expected, 0)


def _frame(stream, piece, padding):
    if padding < 0:
        return frame(0, 0, stream, piece)
    return frame(0, 8, stream, bytes([padding]) + piece + b"\xaa" * padding)
