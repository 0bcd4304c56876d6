"""Requests through the lane: what leaves for the application, what the client sees, in which order."""

from __future__ import annotations

import pytest

from graph.model import Mode, Origin, Peer, Verdict
from graph.policy import Reason
from tests.sidecar.http.fakes import Bench, allow
from tests.sidecar.http.requests import FIXED, OK, TRACE, UUID, forwarded, request, serve, statuses


def test_a_request_passes_as_it_was_judged_and_its_response_unchanged():
    bench = Bench()
    client = bench.client()
    client.feed(request(b"/cart/17?x=1"))
    assert bench.app.take() == forwarded(request(b"/cart/17?x=1"))
    response = b"HTTP/1.1 201 Anything\r\nX: y\r\ncontent-length:5\r\n\r\nhello"
    bench.now += 2
    bench.app.feed(response)
    assert client.take() == response
    (told,) = bench.flows.requests
    assert (told.operation, told.status, told.seconds, told.protocol) == ("GET /cart/{id}", 201, 2.0, "http")
    assert (told.method, told.path, told.host, told.request_id) == ("GET", "/cart/17", "x", "r1")
    assert (told.request_bytes, told.response_bytes) == (len(request(b"/cart/17?x=1")), len(response))
    assert told.record is client.record
    assert (client.record.bytes_sent, client.record.bytes_received) == (told.request_bytes, told.response_bytes)
    assert client.record.protocol == "http"


def test_what_is_missing_is_made_and_differs_every_time():
    bench = Bench()
    client = bench.client()
    seen = []
    for _ in range(1100):  # more than one block of random digits
        client.feed(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        seen.append(bench.app.take())
        assert len(UUID.findall(seen[-1])) == 1
        assert len(TRACE.findall(seen[-1])) == 1
        bench.app.feed(OK)
    assert len(set(seen)) == len(seen)
    assert bench.flows.requests[-1].request_id.encode() in seen[-1]
    client.feed(b"GET / HTTP/1.1\r\nHost: x\r\n" + FIXED[0] + b"\r\n\r\n")
    assert len(UUID.findall(bench.app.sent)) == 1
    assert bench.app.take().count(b"traceparent") == 1
    bench.app.feed(OK)
    client.feed(b"GET / HTTP/1.1\r\nHost: x\r\n" + FIXED[1] + b"\r\n\r\n")
    assert len(TRACE.findall(bench.app.sent)) == 1
    assert bench.app.take().count(b"x-request-id") == 1


def test_a_forged_certificate_is_replaced_by_the_proved_one_or_by_none():
    bench = Bench(mode=Mode.LEARN)
    forged = request(b"/", b"X-Forwarded-Client-Cert: URI=spiffe://hedgerow.test/ns/shop/sa/default/wl/admin")
    client = bench.client()
    client.feed(forged)
    assert bench.app.take() == forwarded(request())
    stranger = bench.client(source=Peer(address="192.0.2.9"))
    stranger.feed(forged)
    assert bench.app.take() == request()


# refusals -----------------------------------------------------------------------------------------


def test_the_policy_is_asked_before_a_byte_leaves():
    bench = Bench(allow("GET /cart/{id}"))
    client = bench.client()
    client.feed(request(b"/admin"))
    answer = client.take()
    assert statuses(answer) == [403]
    assert b"\r\nx-hedgerow-reason: no-rule\r\n" in answer
    assert b"GET /admin is not allowed" in answer
    assert b"connection: close" not in answer
    assert bench.apps == []
    (told,) = bench.flows.requests
    assert (told.operation, told.status, told.decision.allowed) == ("GET /admin", 403, False)
    client.feed(request(b"/cart/4"))
    assert bench.app.take() == forwarded(request(b"/cart/4"))


def test_refusals_keep_the_order_of_pipelined_requests():
    bench = Bench(allow("GET /a", "POST /b"))
    client = bench.client()
    targets = [b"/a", b"/x", b"/x", b"/a", b"/x"]
    bodies = request(b"/x", method=b"POST", body=b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
    client.feed(
        b"".join(map(request, targets)) + bodies + request(b"/b", method=b"POST", body=b"12345") + request(b"/x")
    )
    seen = bench.app.take()
    assert seen == forwarded(request(b"/a"))
    assert client.take() == b""
    bench.app.feed(OK)
    assert statuses(client.take()) == [200, 403, 403]
    assert bench.app.take() == forwarded(request(b"/a"))
    bench.app.feed(OK)
    assert statuses(client.take()) == [200, 403, 403]
    assert bench.app.take() == forwarded(request(b"/b", method=b"POST", body=b"12345"))
    bench.app.feed(OK)
    assert statuses(client.take()) == [200, 403]
    assert [told.status for told in bench.flows.requests] == [200, 403, 403, 200, 403, 403, 200, 403]


@pytest.mark.parametrize("cut", [0, 3, 10])
def test_the_body_of_a_refused_request_is_dropped(cut):
    bench = Bench(allow("GET /a"))
    client = bench.client()
    data = request(b"/x", method=b"POST", body=b"0123456789")
    size = len(data) - 10 + cut
    client.feed(data[:size])
    assert statuses(client.take()) == [403]
    client.feed(data[size:] + request(b"/a")) if cut < 10 else client.feed(request(b"/a"))
    assert bench.app.take() == forwarded(request(b"/a"))


@pytest.mark.parametrize(
    "data",
    [
        request(b"/x", b"Content-Length: 100000", method=b"POST"),
        request(b"/x", b"Transfer-Encoding: chunked", method=b"POST"),
        request(b"/x", b"Expect: 100-continue", b"Content-Length: 5", method=b"POST"),
        request(b"/x", b"Connection: close"),
        request(b"/x", version=b"1.0"),
    ],
)
def test_a_refusal_that_can_not_be_followed_ends_the_connection(data):
    bench = Bench(allow("GET /a"))
    client = bench.client()
    client.feed(data)
    answer = client.take()
    assert statuses(answer) == [403]
    assert b"\r\nconnection: close\r\n" in answer
    assert client.did_end
    client.feed(request(b"/a"))
    assert bench.apps == []
    client.finish()
    assert client.record.closed


def test_a_refusal_of_head_has_no_body():
    bench = Bench(allow("GET /a"))
    client = bench.client()
    client.feed(request(b"/x", method=b"HEAD"))
    assert client.take().endswith(b"\r\n\r\n")


@pytest.mark.parametrize("target", [b"/a/../b", b"/a%2fb", b"//a", b"/a;b", b"/%61"])
def test_an_unclear_path_is_refused_where_operations_are_judged_only(target):
    bench = Bench(allow("GET /a"))
    client = bench.client()
    client.feed(request(target))
    answer = client.take()
    assert statuses(answer) == [400]
    assert b"x-hedgerow-reason: target\r\n" in answer
    assert client.did_end
    assert bench.apps == []
    assert bench.flows.requests[-1].operation == "GET /{unclear}"
    free = Bench()
    client = free.client()
    client.feed(request(target))
    assert free.app.take() == forwarded(request(target))
    free.app.feed(OK)
    assert free.flows.requests[-1].operation == "GET /{unclear}"


def test_an_unclear_path_is_refused_where_one_operation_is_denied():
    bench = Bench(allow(), allow("GET /admin", rule="o", effect=Verdict.DENY, origin=Origin.OVERRIDE))
    client = bench.client()
    client.feed(request(b"/free"))
    assert bench.app.take() == forwarded(request(b"/free"))
    bench.app.feed(OK)
    client.take()
    client.feed(request(b"/%61dmin"))
    assert statuses(client.take()) == [400]
    assert bench.app.take() == b""


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a\r\nhello\r\n",
    ],
)
def test_an_unclear_framing_is_refused_always(data):
    bench = Bench(mode=Mode.LEARN)
    for cut in range(1, len(data)):
        client = bench.client()
        client.feed(request())
        bench.app.feed(OK)
        before = len(bench.app.take())
        client.take()
        client.feed(data[:cut])
        client.feed(data[cut:])
        assert statuses(client.take()) == [400]
        assert client.did_end
        assert not any(b"GET" in leg.sent for leg in bench.apps)
        assert before
        client.finish()
        assert client.record.closed
    assert bench.site.malformed.total() == len(data) - 1
    assert bench.site.fabric.guards.counters.requests_malformed == len(data) - 1


def test_a_body_that_breaks_its_framing_later_takes_the_application_connection_along():
    bench = Bench()
    client = bench.client()
    client.feed(request(b"/", b"Transfer-Encoding: chunked", method=b"POST") + b"5\r\nhello\r\n")
    client.feed(b"zz\r\n")
    assert bench.app.was_reset
    assert not bench.app.sent.endswith(b"0\r\n\r\n")
    assert statuses(client.take()) == [400]
    assert client.did_end


def test_a_head_has_its_limits():
    bench = Bench(head_bytes=500, head_timeout=10.0)
    client = bench.client()
    client.feed(b"GET / HTTP/1.1\r\nA: ")
    client.feed(b"b" * 490)
    assert statuses(client.take()) == [431]
    assert client.did_end
    slow = bench.client()
    for byte in b"GET / HTTP":
        slow.feed(bytes([byte]))
        bench.later(0.9)
    assert slow.take() == b""
    bench.later(1.5)
    assert statuses(slow.take()) == [408]
    assert slow.did_end
    bench.later(1)
    bench.later(10)
    assert slow.was_reset
    assert slow.record.closed


def test_a_new_policy_judges_the_next_request_and_the_one_under_way():
    bench = Bench(allow("GET /a", "GET /b"))
    client = bench.client()
    client.feed(request(b"/a"))
    bench.app.feed(OK)
    asked = bench.policy.asked
    client.feed(request(b"/a"))
    bench.app.feed(OK)
    assert bench.policy.asked == asked, "a verdict is kept while the policy is the same"
    client.take()
    bench.policy.change(allow("GET /b"))
    client.feed(request(b"/a"))
    assert statuses(client.take()) == [403]
    client.feed(request(b"/b"))
    bench.policy.change(allow("GET /b"))
    assert not client.closed
    bench.policy.change(allow("GET /a"))
    assert client.was_reset
    assert bench.app.was_reset
    assert bench.flows.requests[-1].status == 0
    assert not bench.flows.requests[-1].decision.allowed


def test_a_connection_that_may_not_be_open_any_more_is_reset():
    bench = Bench()
    client = bench.client()
    client.feed(request())
    bench.app.feed(OK)
    bench.policy.change()
    assert client.was_reset
    assert client.record.closed


def test_the_reason_of_the_decision_is_reported():
    bench = Bench(allow("GET /a"), mode=Mode.AUDIT)
    client = bench.client()
    client.feed(request(b"/x"))
    serve(bench.app)
    assert statuses(client.take()) == [200]
    told = bench.flows.requests[-1]
    assert (told.decision.reason, told.decision.pending) == (Reason.AUDIT, Verdict.DENY)


def test_names_are_bounded_in_reports_and_not_for_rules():
    bench = Bench(allow("GET /word-z"), operations=3)
    client = bench.client()
    for letter in b"abcdefz":
        client.feed(request(b"/word-%c" % letter))
        if letter == ord("z"):
            serve(bench.app)
    assert statuses(client.take()) == [403] * 6 + [200]
    assert [told.operation for told in bench.flows.requests] == [
        "GET /word-a",
        "GET /word-b",
        "GET /word-c",
        *["GET /{other}"] * 4,
    ]


def test_a_fault_of_one_lane_does_not_keep_a_new_policy_from_the_others(caplog):
    bench = Bench()
    told = []

    class Broken:
        def judge_again(self):
            told.append(self)
            raise ValueError("a fault")

    broken = [Broken(), Broken()]
    for each in broken:
        bench.site.watch(each, 80)
    bench.policy.change()
    assert set(told) == set(broken)
    assert "a fault in the http lane" in caplog.text
