"""Messages of gRPC in what is inspected: those that reach the application, and those that reach the client."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings, Limits
from tests.sidecar.http.grpc_bodies import BODIES, PLACES, begun, cut, message
from tests.sidecar.inspect.connection import Kind, rule
from tests.sidecar.inspect.http2_ends import GRPC, Pair

ADD = "POST /shop.Cart/Add"
TRAILERS = [("grpc-status", "0")]


def counted(connection):
    return connection.record.request_messages, connection.record.response_messages


def call(pair, questions, answers, *, fields=GRPC, status=200, answered=GRPC[:1], pad=None):
    """One call, each piece of whose bodies is a DATA frame."""
    stream = pair.request("/shop.Cart/Add", method="POST", fields=fields, end=False)
    for piece in questions:
        pair.client.h2.send_data(stream, piece, pad_length=pad)
    pair.client.h2.end_stream(stream)
    pair.client.flush()
    pair.turn()
    if pair.connection.server is None:
        return stream
    pair.application.h2.send_headers(stream, [(":status", str(status)), *answered])
    for piece in answers:
        pair.application.h2.send_data(stream, piece, pad_length=pad)
    pair.application.h2.send_headers(stream, TRAILERS, end_stream=True)
    pair.application.flush()
    pair.turn()
    return stream


@pytest.mark.parametrize("pad", [None, 0, 100])
async def test_messages_of_both_directions(world, pad):
    c = world(rule(ADD)).connect(Kind.HTTP2)
    pair = Pair(c)
    call(pair, [message(b"a") * 3 + b"\0\0", b"\0\0\4abcd"], [message(b"b" * 1000)[:3]], pad=pad)
    assert counted(c) == (4, 1)
    call(pair, [message(b"")], [message(b"b")] * 5, pad=pad)
    assert counted(c) == (5, 6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (2, 3)),
        ({"fields": ()}, (0, 0)),
        ({"fields": [("content-type", "application/grpc-web")]}, (0, 0)),
        ({"answered": [("content-type", "text/html")]}, (2, 0)),
        ({"answered": ()}, (2, 0)),
        ({"status": 503}, (2, 0)),
    ],
)
async def test_what_is_no_call_has_no_messages(world, options, expected):
    w = world(rule(ADD))
    c = w.connect(Kind.HTTP2)
    call(Pair(c), [message(b"a")] * 2, [message(b"b")] * 3, **options)
    assert counted(c) == expected
    assert [one.protocol for one in w.flows.requests] == ["http2" if expected == (0, 0) else "grpc"]


async def test_messages_of_a_refused_call_went_nowhere(world):
    w = world(rule("POST /shop.Cart/Other"))
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    pair.request("/shop.Cart/Add", method="POST", fields=GRPC, body=message(b"a") * 2)
    assert [one.grpc_status for one in w.flows.requests] == [7]
    assert c.dials == 0
    assert counted(c) == (0, 0)


async def test_a_call_that_runs_and_one_that_is_given_up(world):
    c = world(rule(ADD)).connect(Kind.HTTP2)
    pair = Pair(c)
    stream = pair.request("/shop.Cart/Add", method="POST", fields=GRPC, end=False)
    pair.application.h2.send_headers(stream, [(":status", "200"), *GRPC[:1]])
    for number in range(1, 4):
        pair.client.h2.send_data(stream, message(b"a"))
        pair.client.flush()
        pair.application.h2.send_data(stream, message(b"b") * 2)
        pair.application.flush()
        pair.turn()
        assert counted(c) == (number, 2 * number)
    pair.client.h2.send_data(stream, message(b"a" * 100)[:30])
    pair.client.h2.reset_stream(stream)
    pair.client.flush()
    pair.turn()
    assert counted(c) == (4, 6)
    call(pair, [message(b"a")], [message(b"b")])
    assert counted(c) == (5, 7), "the next call begins anew"


async def test_a_response_of_trailers_only(world):
    c = world(rule(ADD)).connect(Kind.HTTP2)
    pair = Pair(c)
    stream = pair.request("/shop.Cart/Add", method="POST", fields=GRPC, body=message(b"a"))
    pair.application.h2.send_headers(stream, [(":status", "200"), *GRPC[:1], ("grpc-status", "12")], end_stream=True)
    pair.application.flush()
    pair.turn()
    assert counted(c) == (1, 0)


@pytest.mark.parametrize("most", [10, 200, 100_000])
async def test_bodies_that_are_collected_for_addons(world, tmp_path, most):
    """They are streamed at once, after a part was collected, or collected whole."""
    path = tmp_path / "addon.py"
    path.write_text("def request(flow): pass\ndef response(flow): pass\n")
    hub = Inspection(InspectSettings(limits=Limits(slice=60.0), addons=(path,), addon_bodies=most))
    c = world(rule(ADD), hub=hub).connect(Kind.HTTP2)
    pair = Pair(c)
    stream = call(pair, [message(b"a" * 100)] * 3, [message(b"b" * 100)] * 4)
    assert pair.application.body(stream) == message(b"a" * 100) * 3
    assert pair.client.body(stream) == message(b"b" * 100) * 4
    assert counted(c) == (3, 4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BODIES, PLACES, BODIES, PLACES, st.none() | st.integers(0, 20))
async def test_however_frames_are_cut_the_count_is_the_same(world, asked, here, answered, there, pad):
    c = world(rule(ADD)).connect(Kind.HTTP2)
    call(Pair(c), cut(asked, here), cut(answered, there), pad=pad)
    assert counted(c) == (begun(asked), begun(answered))
