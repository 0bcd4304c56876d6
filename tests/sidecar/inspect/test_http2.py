"""HTTP/2 and gRPC through the lane.

Over 400 lines: a row of short tests of one pair of ends; crossings and sequences have files of their own.
"""

from __future__ import annotations

import h2.events
import h2.exceptions
import pytest

from graph.model import Verdict
from tests.sidecar.inspect.connection import FRONT_IDENTITY, IDENTITY, Kind, inspection, rule, until
from tests.sidecar.inspect.http2_ends import GRPC, Pair, frame

GET = "GET /cart/{id}"
CALL = "POST /shop.Cart/Get"


def fields_of(event) -> dict[str, str]:
    return dict(event.headers)


async def test_a_request_passes_and_is_reported_once(world):
    w = world(rule(GET))
    pair = Pair(w.connect(Kind.HTTP2))
    stream = pair.request("/cart/17?x=1", fields=[("x-forwarded-client-cert", "URI=spiffe://evil")])
    (asked,) = pair.application.all(h2.events.RequestReceived)
    head = fields_of(asked)
    assert head[":path"] == "/cart/17?x=1"
    assert head["x-forwarded-client-cert"].endswith(FRONT_IDENTITY)
    assert "evil" not in str(head)
    pair.answer(asked.stream_id, body=b"hello", fields=[("x-a", "b")])
    assert pair.client.body(stream) == b"hello"
    assert pair.client.all(h2.events.StreamEnded, stream)
    (seen,) = w.flows.requests
    assert (seen.operation, seen.protocol, seen.status) == (GET, "http2", 200)


async def test_a_denied_request_never_reaches_the_application(world):
    w = world(rule(GET))
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    stream = pair.request("/cart/17", method="DELETE")
    (answer,) = pair.client.all(h2.events.ResponseReceived, stream)
    assert fields_of(answer)[":status"] == "403"
    assert fields_of(answer)["x-hedgerow-reason"] == "no-rule"
    assert c.dials == 0
    (seen,) = w.flows.requests
    assert (seen.status, seen.decision.verdict) == (403, Verdict.DENY)
    allowed = pair.request("/cart/17")
    pair.answer(pair.application.all(h2.events.RequestReceived)[0].stream_id)
    assert pair.client.all(h2.events.ResponseReceived, allowed)


async def test_a_denied_call_is_answered_as_grpc_answers(world):
    w = world(rule(CALL))
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    stream = pair.request("/shop.Cart/Drop", method="POST", fields=GRPC, body=b"\0\0\0\0\0")
    (answer,) = pair.client.all(h2.events.ResponseReceived, stream)
    head = fields_of(answer)
    assert (head[":status"], head["grpc-status"], head["x-hedgerow-reason"]) == ("200", "7", "no-rule")
    assert answer.stream_ended is not None
    assert c.dials == 0
    (seen,) = w.flows.requests
    assert (seen.operation, seen.protocol, seen.grpc_status) == ("POST /shop.Cart/Drop", "grpc", 7)


async def test_a_refused_upload_is_told_to_stop_and_the_connection_goes_on(world):
    w = world(rule(CALL))
    pair = Pair(w.connect(Kind.HTTP2))
    stream = pair.request("/shop.Cart/Drop", method="POST", fields=GRPC, end=False)
    (reset,) = pair.client.all(h2.events.StreamReset, stream)
    assert reset.error_code == 0
    for _ in range(300):  # more than the limit of resets: those are our wish
        pair.request("/shop.Cart/Drop", method="POST", fields=GRPC, end=False)
    assert not pair.connection.client.write_ended
    pair.request("/shop.Cart/Get", method="POST", fields=GRPC, body=b"x")
    assert pair.application.all(h2.events.RequestReceived)


async def test_a_call_with_trailers(world):
    w = world(rule(CALL))
    pair = Pair(w.connect(Kind.HTTP2))
    stream = pair.request("/shop.Cart/Get", method="POST", fields=GRPC, body=b"\0\0\0\0\0")
    asked = pair.application.all(h2.events.RequestReceived)[0].stream_id
    pair.answer(asked, body=b"answer", fields=[("content-type", "application/grpc")],
                trailers=[("grpc-status", "5"), ("grpc-message", "not found")])  # fmt: skip
    (trailers,) = pair.client.all(h2.events.TrailersReceived, stream)
    assert fields_of(trailers) == {"grpc-status": "5", "grpc-message": "not found"}
    (seen,) = w.flows.requests
    assert (seen.grpc_status, seen.status) == (5, 200)


async def test_a_response_of_trailers_only_stays_one(world):
    w = world(rule(CALL))
    pair = Pair(w.connect(Kind.HTTP2))
    stream = pair.request("/shop.Cart/Get", method="POST", fields=GRPC, body=b"x")
    asked = pair.application.all(h2.events.RequestReceived)[0].stream_id
    head = [(":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "12")]
    pair.application.h2.send_headers(asked, head, end_stream=True)
    pair.application.flush()
    pair.turn()
    (answer,) = pair.client.all(h2.events.ResponseReceived, stream)
    assert answer.stream_ended is not None
    assert w.flows.requests[0].grpc_status == 12


async def test_request_trailers_pass(world):
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    stream = pair.request("/a", method="POST", body=b"x", end=False)
    pair.client.h2.send_headers(stream, [("x-sum", "1")], end_stream=True)
    pair.client.flush()
    pair.turn()
    (trailers,) = pair.application.all(h2.events.TrailersReceived)
    assert fields_of(trailers) == {"x-sum": "1"}


@pytest.mark.parametrize("name", ["x-http-method-override", "x_original_url", "x-forwarded-client-cert", "cookie"])
async def test_request_trailers_that_belong_into_the_head_do_not_pass(world, name):
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    stream = pair.request("/a", method="POST", body=b"x", end=False)
    pair.client.h2.send_headers(stream, [(name, "/admin")], end_stream=True)
    pair.client.flush()
    pair.turn()
    assert not pair.application.all(h2.events.TrailersReceived)
    assert pair.application.all(h2.events.StreamReset)


async def test_a_stream_in_both_directions(world):
    w = world(rule(CALL))
    pair = Pair(w.connect(Kind.HTTP2))
    stream = pair.request("/shop.Cart/Get", method="POST", fields=GRPC, end=False)
    asked = pair.application.all(h2.events.RequestReceived)[0].stream_id
    pair.application.h2.send_headers(asked, [(":status", "200"), ("content-type", "application/grpc")])
    for turn in range(20):
        pair.client.h2.send_data(stream, b"ping%d" % turn)
        pair.client.flush()
        pair.application.h2.send_data(asked, b"pong%d" % turn)
        pair.application.flush()
        pair.turn()
    assert pair.application.body(asked) == b"".join(b"ping%d" % turn for turn in range(20))
    assert pair.client.body(stream) == b"".join(b"pong%d" % turn for turn in range(20))
    assert not w.flows.requests


async def test_interim_responses_pass(world):
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    stream = pair.request("/a")
    asked = pair.application.all(h2.events.RequestReceived)[0].stream_id
    pair.application.h2.send_headers(asked, [(":status", "103"), ("link", "</x>")])
    pair.answer(asked)
    (interim,) = pair.client.all(h2.events.InformationalResponseReceived, stream)
    assert fields_of(interim) == {":status": "103", "link": "</x>"}
    assert pair.client.all(h2.events.ResponseReceived, stream)


async def test_many_requests_leave_nothing_behind(world):
    w = world(rule())
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    for _ in range(300):
        pair.request("/a")
        pair.answer(pair.application.events[-2].stream_id)
    assert len(w.flows.requests) == 300
    assert not c.lane.layers.streams
    half = c.lane.layers.server
    assert not half.our_stream_id
    assert not half.their_stream_id
    assert not half.streams
    assert not c.lane.layers.client.streams


async def test_a_new_policy_ends_a_running_call_and_no_other(world):
    w = world(rule("POST /shop.Cart/Watch", CALL))
    pair = Pair(w.connect(Kind.HTTP2))
    watch = pair.request("/shop.Cart/Watch", method="POST", fields=GRPC, end=False)
    get = pair.request("/shop.Cart/Get", method="POST", fields=GRPC, end=False)
    w.policy(rule(CALL))
    pair.turn()
    assert pair.client.all(h2.events.StreamReset, watch)
    assert len(pair.application.all(h2.events.StreamReset)) == 1
    assert not pair.client.all(h2.events.StreamReset, get)
    assert [one.decision.verdict for one in w.flows.requests] == [Verdict.DENY]


async def test_the_application_drains_and_what_runs_goes_on(world):
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    stream = pair.request("/a", method="POST", end=False)
    asked = pair.application.all(h2.events.RequestReceived)[0].stream_id
    pair.application.leg.give(frame(7, 0, 0, asked.to_bytes(4) + bytes(4)))
    said = pair.connection.client.read()
    assert said[3] == 7
    pair.client.h2.send_data(stream, b"rest", end_stream=True)
    pair.client.flush()
    pair.turn()
    assert pair.application.body(asked) == b"rest"
    pair.answer(asked, body=b"done")
    assert pair.client.body(stream) == b"done"


async def test_the_client_says_that_it_leaves_and_what_runs_goes_on(world):
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    stream = pair.request("/a")
    pair.client.leg.give(frame(7, 0, 0, bytes(8)))
    pair.answer(pair.application.all(h2.events.RequestReceived)[0].stream_id, body=b"done")
    assert pair.client.body(stream) == b"done"


async def test_draining_sends_goaway(world):
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    pair.request("/a")
    w.hub.drain()
    pair.turn()
    (said,) = pair.client.all(h2.events.ConnectionTerminated)
    assert (said.error_code, said.last_stream_id) == (0, 2**31 - 1), "it turns nothing away that is on its way"
    w.hub.drain()
    pair.turn()
    assert len(pair.client.all(h2.events.ConnectionTerminated)) == 1


@pytest.mark.parametrize(
    "name",
    ["x-forwarded-client-cert", "x_forwarded_client-cert", "x.forwarded.client.cert", "x-hedgerow-a", "x_hedgerow_b"],
)
async def test_a_client_can_not_say_who_it_is(world, name):
    w = world(rule())
    pair = Pair(w.connect(Kind.HTTP2))
    pair.request("/a", fields=[(name, "URI=spiffe://example.org/ns/shop/sa/default/wl/admin"), ("x-mine", "stays")])
    (seen,) = pair.application.all(h2.events.RequestReceived)
    assert ("x-mine", "stays") in seen.headers
    assert not any("admin" in value for _, value in seen.headers)
    certificates = [value for field, value in seen.headers if field == "x-forwarded-client-cert"]
    assert certificates == [f"By={IDENTITY};URI={FRONT_IDENTITY}"]


async def test_operations_are_reported_by_so_many_names_and_judged_by_all(world):
    paths = ["/" + "".join("abcdefghij"[int(digit)] for digit in str(number)) for number in range(399)]
    w = world(rule(*(f"GET {path}" for path in paths)))
    pair = Pair(w.connect(Kind.HTTP2))
    for path in paths:
        pair.request(path)
        pair.answer(pair.application.all(h2.events.RequestReceived)[-1].stream_id)
    assert [one.status for one in w.flows.requests] == [200] * 399
    names = {one.operation for one in w.flows.requests}
    assert len(names) == 201
    assert "GET /{other}" in names


async def test_the_application_closes(world):
    w = world(rule())
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    pair.request("/a")
    c.application.finish()
    assert c.client.write_ended
    assert len(w.flows.requests) == 1
    c.client.finish()
    assert c.record.closed


async def test_the_client_closes(world):
    w = world(rule())
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    pair.request("/a")
    c.client.finish()
    assert c.application.write_ended
    assert not c.client.write_ended
    c.application.finish()  # as most do then
    assert c.client.write_ended
    assert c.record.closed
    assert len(w.flows.requests) == 1


async def test_a_client_that_ended_its_half_still_gets_its_answer(world):
    w = world(rule())
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    stream = pair.request("/a")
    c.client.finish()
    (asked,) = pair.application.all(h2.events.RequestReceived)
    pair.application.h2.send_headers(asked.stream_id, [(":status", "200")])
    pair.application.h2.send_data(asked.stream_id, b"hello", end_stream=True)
    pair.application.flush()
    pair.client.h2.receive_data(c.client.read())
    assert c.client.write_ended
    assert c.record.closed
    assert [seen.status for seen in w.flows.requests] == [200]
    assert stream == 1


async def test_an_idle_client_that_ends_its_half_has_its_connection_ended(world):
    w = world(rule())
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    stream = pair.request("/a")
    pair.answer(pair.application.all(h2.events.RequestReceived)[0].stream_id)
    assert pair.client.all(h2.events.StreamEnded, stream)
    c.client.finish()
    assert c.client.write_ended
    assert c.record.closed


@pytest.mark.parametrize(
    "fields",
    [
        [("x-http-method-override", "DELETE")],
        [("x-original-url", "/admin")],
        [("x_http_method_override", "DELETE")],
    ],
)
async def test_a_request_that_says_elsewhere_what_it_wants(world, fields):
    w = world(rule(GET))
    pair = Pair(w.connect(Kind.HTTP2))
    stream = pair.request("/cart/17", fields=fields)
    assert fields_of(pair.client.all(h2.events.ResponseReceived, stream)[0])[":status"] == "403"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/cart/17 HTTP/1.1", []),
        ("/cart/17#x", []),
        ("cart/17", []),
        ("/cart/17", [("host", "elsewhere")]),
        ("/cart/17", [("content_length", "0")]),
        ("/cart/17", [("transfer_encoding", "chunked")]),
    ],
)
async def test_a_form_that_nobody_should_have_to_read(world, path, fields):
    w = world(rule(GET))
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    pair.client.h2.config.validate_outbound_headers = False
    stream = pair.request(path, fields=fields)
    answers = pair.client.all(h2.events.ResponseReceived, stream)
    assert c.dials == 0
    if answers:  # else the parser ended the connection
        assert fields_of(answers[0])[":status"] in ("400", "403")
    else:
        assert c.client.write_ended


# what is held


async def test_a_receiver_without_window_bounds_what_we_hold(world):
    w = world(rule(), hub=inspection(stream_window=65_535, connection_window=131_072))
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    pair.client.granting = False
    stream = pair.request("/a")
    asked = pair.application.all(h2.events.RequestReceived)[0].stream_id
    sender = pair.application.h2
    sender.send_headers(asked, [(":status", "200")])
    sent = 0
    for _ in range(200):
        room = min(sender.local_flow_control_window(asked), 16_384)
        if room <= 0:
            break
        sender.send_data(asked, b"x" * room)
        sent += room
        pair.application.flush()
        pair.turn()
    assert 65_535 <= sent <= 65_535 + 2 * 65_535  # the client's window, and ours twice at most
    assert c.lane.layers.client.holds <= 131_072
    received = sum(len(event.data) for event in pair.client.all(h2.events.DataReceived))
    pair.client.granting = True
    pair.client.h2.acknowledge_received_data(received, stream)
    pair.client.flush()
    pair.turn()
    for _ in range(200):
        if sent >= 1_000_000:
            break
        room = min(sender.local_flow_control_window(asked), 16_384)
        assert room > 0
        sender.send_data(asked, b"x" * room)
        sent += room
        pair.application.flush()
        pair.turn()
    assert len(pair.client.body(stream)) == sent


async def test_an_upload_that_the_application_does_not_take(world):
    w = world(rule(), hub=inspection(stream_window=65_535, connection_window=131_072))
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    stream = pair.request("/a", method="POST", end=False)
    pair.application.granting = False
    sender, sent = pair.client.h2, 0
    while (room := min(sender.local_flow_control_window(stream), 16_384)) > 0:
        sender.send_data(stream, b"x" * room)
        sent += room
        pair.client.flush()
        pair.turn()
        assert sent < 1_000_000
    asked = pair.application.all(h2.events.RequestReceived)[0].stream_id
    taken = len(pair.application.body(asked))
    pair.application.granting = True
    pair.application.h2.acknowledge_received_data(taken, asked)
    pair.application.flush()
    pair.turn()
    sender.send_data(stream, b"y" * 100, end_stream=True)
    pair.client.flush()
    pair.turn()
    assert len(pair.application.body(asked)) == sent + 100


async def test_a_client_that_gives_no_window_for_too_long_is_cut_off(world):
    hub = inspection(stream_window=65_535, connection_window=65_535, head_seconds=0.1, stall=0.2)
    w = world(rule(), hub=hub)
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    pair.client.granting = False
    pair.request("/a")
    asked = pair.application.all(h2.events.RequestReceived)[0].stream_id
    pair.application.h2.send_headers(asked, [(":status", "200")])
    for _ in range(8):
        room = min(16_384, pair.application.h2.local_flow_control_window(asked))
        pair.application.h2.send_data(asked, b"x" * room)
        pair.application.flush()
        pair.turn()
    await until(lambda: c.client.write_ended)
    assert hub.breaches["stall"] == 1


async def test_the_client_can_not_have_us_keep_a_large_header_table(world):
    w = world(rule())
    c = w.connect(Kind.HTTP2)
    pair = Pair(c)
    pair.client.leg.give(frame(4, 0, 0, (1).to_bytes(2) + (1 << 30).to_bytes(4)))
    pair.turn()
    assert c.lane.layers.client.h2_conn.encoder.header_table_size <= 4096
