"""Upgrades in the lane, and how each end may end: the client sees what it would have seen without us."""

from __future__ import annotations

import pytest

from graph.model import Verdict
from tests.sidecar.http.fakes import Bench, allow
from tests.sidecar.http.requests import OK, forwarded, pooled, request, serve, statuses

# upgrades -----------------------------------------------------------------------------------------

UPGRADE = request(b"/chat", b"Connection: Upgrade", b"Upgrade: websocket")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_an_upgrade_is_allowed_by_its_own_operation_only():
    bench = Bench(allow("GET /chat"))
    client = bench.client()
    client.feed(UPGRADE)
    assert statuses(client.take()) == [403]
    assert bench.apps == []


def test_an_upgrade_does_not_hide_an_operation_that_is_denied():
    """Found by a review: whoever adds ``Upgrade: x`` was judged by UPGRADE /admin, and an application that knows no x
    serves GET /admin."""
    for named in (b"x", b"websocket"):
        bench = Bench(allow("GET /admin", rule="static/deny", effect=Verdict.DENY), allow())
        client = bench.client()
        client.feed(request(b"/admin", b"Connection: Upgrade", b"Upgrade: " + named))
        assert statuses(client.take()) == [403]
        assert bench.apps == []
        client.feed(request(b"/chat", b"Connection: Upgrade", b"Upgrade: " + named))
        assert b"GET /chat " in bench.app.take()


@pytest.mark.parametrize("named", [b"websocket", b"x"])
def test_an_upgrade_allows_no_method_that_changes_things(named):
    operations = ("WEBSOCKET /chat", "UPGRADE /chat")
    upgrade = request(b"/chat", b"Connection: Upgrade", b"Upgrade: " + named, b"Content-Length: 0", method=b"DELETE")
    bench = Bench(allow(*operations))
    client = bench.client()
    client.feed(upgrade)
    assert statuses(client.take()) == [403]
    assert bench.apps == []
    bench = Bench(allow(*operations, "DELETE /chat"))
    client = bench.client()
    client.feed(upgrade)
    assert b"DELETE /chat " in bench.app.take()


def test_an_upgrade_that_waits_is_ended_by_a_new_deny_of_what_it_hides():
    bench = Bench(allow())
    client = bench.client()
    client.feed(UPGRADE)
    assert bench.app.take()
    bench.policy.change(allow("GET /chat", rule="static/deny", effect=Verdict.DENY), allow())
    assert client.was_reset


def test_after_an_upgrade_bytes_pass_until_the_policy_says_no():
    bench = Bench(allow("WEBSOCKET /chat"))
    client = bench.client()
    client.feed(UPGRADE + b"early")
    assert bench.app.take() == forwarded(UPGRADE), "what follows waits for the answer"
    bench.app.feed(SWITCH + b"hello")
    assert client.take() == SWITCH + b"hello"
    assert bench.app.take() == b"early"
    client.feed(b"GET /admin HTTP/1.1\r\n\r\n")
    assert bench.app.take() == b"GET /admin HTTP/1.1\r\n\r\n"
    assert client.record.bytes_sent == len(UPGRADE) + 5 + 23 + 4 - 4
    assert bench.flows.requests[-1].status == 101
    bench.policy.change(allow("WEBSOCKET /chat"))
    assert not client.closed
    bench.policy.change(allow("GET /chat"))
    assert client.was_reset
    assert bench.app.was_reset
    assert client.record.closed


def test_an_upgrade_that_is_declined_goes_on_as_http():
    bench = Bench(allow("WEBSOCKET /chat", "GET /a"))
    client = bench.client()
    client.feed(UPGRADE + request(b"/admin") + request(b"/a"))
    assert bench.app.take() == forwarded(UPGRADE)
    bench.app.feed(OK)
    assert statuses(client.take()) == [200, 403]
    assert bench.app.take() == forwarded(request(b"/a"))


async def test_a_client_that_has_said_all_before_an_upgrade_is_answered_gets_the_answer():
    """Found by a review: its connection was ended at once, and the answer had nobody to go to."""
    bench = Bench()
    client = bench.client()
    client.feed(UPGRADE + b"early")
    client.finish()
    assert bench.app.take() == forwarded(UPGRADE)
    assert not bench.app.did_end, "it has not heard all"
    bench.app.feed(SWITCH + b"hello")
    assert client.take() == SWITCH + b"hello"
    assert bench.app.take() == b"early"
    assert bench.app.did_end
    bench.app.finish()
    assert client.did_end
    assert client.record.closed


def test_and_also_where_the_upgrade_is_declined():
    bench = Bench()
    client = bench.client()
    client.feed(UPGRADE + request(b"/a") + b"half a req")
    client.finish()
    assert bench.app.take() == forwarded(UPGRADE)
    bench.app.feed(OK)
    assert bench.app.take() == forwarded(request(b"/a"))
    bench.app.feed(OK)
    assert client.take() == OK + OK
    assert client.did_end
    assert client.record.closed


# legs ---------------------------------------------------------------------------------------------


def test_a_client_that_ends_after_its_request_gets_its_response():
    bench = Bench()
    client = bench.client()
    client.feed(request())
    client.finish()
    assert bench.app.did_end, "the application sees it too"
    serve(bench.app)
    assert client.take() == OK
    assert client.did_end
    assert client.record.closed
    assert pooled(bench) == 0


def test_a_client_that_pipelines_and_ends_gets_all_responses():
    bench = Bench()
    client = bench.client()
    client.feed(request(b"/1") + request(b"/2", method=b"POST", body=b"12"))
    client.finish()
    assert not bench.app.did_end
    bench.app.take()
    bench.app.feed(OK)
    assert bench.app.take() == forwarded(request(b"/2", method=b"POST", body=b"12"))
    bench.app.feed(OK)
    assert client.take() == OK + OK
    assert client.did_end
    assert client.record.closed


def test_a_client_that_ends_in_a_body_is_heard_by_the_application():
    bench = Bench()
    client = bench.client()
    client.feed(request(b"/", b"Content-Length: 10", method=b"POST") + b"123")
    client.finish()
    assert bench.app.take().endswith(b"123")
    assert bench.app.did_end
    bench.app.feed(b"HTTP/1.1 400 Short\r\nContent-Length: 0\r\n\r\n")
    assert statuses(client.take()) == [400]
    assert client.did_end


def test_a_client_that_ends_in_a_body_behind_another_request_too():
    bench = Bench()
    client = bench.client()
    client.feed(request() + request(b"/", b"Content-Length: 10", method=b"POST") + b"123")
    client.finish()
    bench.app.take()
    bench.app.feed(OK)
    assert bench.app.take().endswith(b"123")
    assert bench.app.did_end


@pytest.mark.parametrize("part", [b"", b"GET / HT"])
def test_a_client_that_ends_between_requests_is_over(part):
    bench = Bench()
    client = bench.client()
    client.feed(request())
    serve(bench.app)
    if part:
        client.feed(part)
    client.finish()
    assert client.did_end
    assert client.record.closed
    assert not client.record.failed


def test_a_client_that_resets_takes_its_request_along():
    bench = Bench()
    client = bench.client()
    client.feed(request())
    client.break_off()
    assert bench.app.was_reset
    assert client.record.closed
    assert bench.flows.requests[-1].status == 0
    idle = bench.client()
    idle.feed(request())
    serve(bench.app)
    idle.break_off()
    assert not bench.app.was_reset
    assert pooled(bench) == 1


def test_an_application_that_can_not_be_reached_looks_as_it_would_without_us():
    bench = Bench()
    bench.connecting = True
    client = bench.client()
    client.feed(request())
    bench.app.break_off("ECONNREFUSED")
    assert client.was_reset
    assert client.record.failed
    assert len(bench.flows.requests) == 1
    bench.refuse_dials = True
    client = bench.client()
    client.feed(request())
    assert client.was_reset
    assert client.record.closed
    assert client.record.failed, "it is the same to people whether that is known at once"
    assert [each.status for each in bench.flows.requests] == [0, 0]


APPLICATION = {
    "resets before it answers": ([], "break_off", b"", "reset"),
    "resets in a head": ([b"HTTP/1.1 200"], "break_off", b"", "reset"),
    "resets in a body": ([OK[:-1]], "break_off", OK[:-1], "reset"),
    "resets in a chunked body": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na"], "break_off",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na", "reset",
    ),
    "resets in an open body": ([b"HTTP/1.1 200 OK\r\n\r\nab"], "break_off", b"HTTP/1.1 200 OK\r\n\r\nab", "reset"),
    "ends before it answers": ([], "finish", b"", "end"),
    "ends in a head": ([b"HTTP/1.1 200"], "finish", b"", "end"),
    "ends in a body": ([OK[:-1]], "finish", OK[:-1], "end"),
    "ends in a chunked body": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na"], "finish",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na", "end",
    ),
    "ends an open body": ([b"HTTP/1.1 200 OK\r\n\r\nab"], "finish", b"HTTP/1.1 200 OK\r\n\r\nab", "end"),
    "says that it closes": (
        [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"], None,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", "end",
    ),
    "answers in HTTP/1.0": (
        [b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"], None,
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "end",
    ),
    "answers and ends": ([OK], "finish", OK, "open"),
    "answers and resets": ([OK], "break_off", OK, "open"),
}  # fmt: skip


@pytest.mark.parametrize(("bytes_", "how", "seen", "then"), APPLICATION.values(), ids=APPLICATION.keys())
def test_what_an_application_does_is_what_its_client_sees(bytes_, how, seen, then):
    bench = Bench()
    client = bench.client()
    client.feed(request())
    for data in bytes_:
        bench.app.feed(data)
    if how:
        getattr(bench.app, how)()
    assert client.take() == seen
    assert (client.was_reset, client.did_end) == {"reset": (True, False), "end": (False, True), "open": (False, False)}[
        then
    ]
    assert len(bench.flows.requests) == 1
    if then == "end":
        client.finish()
    if then != "open":
        assert client.record.closed
        assert pooled(bench) == 0
    else:
        client.feed(request())
        serve(bench.app)
        assert client.take() == OK
        assert len(bench.apps) == 2


def test_an_early_response_lets_the_body_come_to_its_end():
    bench = Bench()
    client = bench.client()
    client.feed(request(b"/", b"Content-Length: 6", method=b"POST") + b"123")
    bench.app.feed(OK)
    assert client.take() == OK
    client.feed(b"456" + request(b"/2"))
    assert bench.app.take().endswith(b"123456" + forwarded(request(b"/2")))
    assert len(bench.apps) == 1
    assert len(bench.flows.requests) == 1


def test_an_early_response_that_closes_ends_the_body():
    bench = Bench()
    client = bench.client()
    client.feed(request(b"/", b"Content-Length: 6", method=b"POST") + b"123")
    bench.app.feed(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    assert statuses(client.take()) == [413]
    assert client.did_end
    client.feed(b"456")
    client.finish()
    assert client.record.closed


def test_an_application_that_ends_and_goes_on_reading_gets_the_body():
    bench = Bench()
    client = bench.client()
    client.feed(request(b"/", b"Content-Length: 6", method=b"POST") + b"123")
    bench.app.finish()
    assert client.did_end
    client.feed(b"456")
    assert bench.app.take().endswith(b"123456")
    assert bench.app.did_end
    client.finish()
    assert client.record.closed


def test_a_client_that_does_not_go_is_shown_out():
    bench = Bench(linger=5.0, linger_bytes=1000)
    client = bench.client()
    client.feed(b"GET / HTTP/1.1\nHost: x\n\n")
    assert client.did_end
    bench.later(1)
    bench.later(4)
    assert not client.closed
    bench.later(2)
    assert client.was_reset
    talker = bench.client()
    talker.feed(b"GET / HTTP/1.1\nHost: x\n\n")
    talker.feed(b"a" * 900)
    assert not talker.closed
    talker.feed(b"a" * 200)
    assert talker.was_reset
    assert talker.record.closed


def test_a_client_that_still_reads_its_response_is_not_shown_out():
    bench = Bench(linger=5.0)
    client = bench.client()
    client.feed(request(b"/", b"Connection: close"))
    client.stuck = True
    bench.app.feed(OK)
    for _ in range(10):
        bench.later(3)
    assert not client.closed
    client.unblock()
    client.finish()
    assert client.record.closed


def test_nothing_is_left_behind():
    bench = Bench()
    for _ in range(20):
        client = bench.client()
        client.feed(request())
        serve(bench.app)
        client.finish()
    bench.later(60)
    assert bench.fabric.connections.count == 0
    assert not bench.site._watched
    assert not any(bench.site._pools.values())
    assert len(bench.flows.closed_records) == 20
