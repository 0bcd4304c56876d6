"""Requests through the lane: what leaves for the application, what the client sees, in which order."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.model import Mode, Origin, Peer, Verdict
from graph.policy import Reason
from tests.sidecar.http.fakes import CART_ID, FRONT_ID, PORT, Bench, allow

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
XFCC = f"x-forwarded-client-cert: By={CART_ID};URI={FRONT_ID}\r\n".encode()
FIXED = (b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", b"x-request-id: r1")
UUID = re.compile(rb"x-request-id: [0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\r\n")
TRACE = re.compile(rb"traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-00\r\n")


def request(target=b"/", *lines, method=b"GET", body=b"", version=b"1.1"):
    """A request that needs nothing added but the certificate's line."""
    if body:
        lines += (b"Content-Length: %d" % len(body),)
    return b"\r\n".join((method + b" " + target + b" HTTP/" + version, b"Host: x", *FIXED, *lines)) + b"\r\n\r\n" + body


def forwarded(data):
    """What the application gets of it."""
    head, _, body = data.partition(b"\r\n\r\n")
    return head + b"\r\n" + XFCC + b"\r\n" + body


def serve(leg):
    """Answer everything that came."""
    seen = leg.take()
    for _ in range(seen.count(b" HTTP/1.1\r\n")):
        leg.feed(OK)
    return seen


def statuses(data):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3})", data)]


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


# bodies and bounds --------------------------------------------------------------------------------


@given(st.data())
def test_where_bytes_are_cut_changes_nothing(data):
    parts = [
        request(b"/a"),
        request(b"/b", method=b"POST", body=b"0123456789" * 5),
        request(b"/c", b"Transfer-Encoding: chunked", method=b"POST") + b"5\r\nhello\r\n1\r\n!\r\n0\r\nT: 1\r\n\r\n",
        request(b"/denied", method=b"PUT", body=b"xyz"),
        request(b"/a", b"Connection: keep-alive"),
        request(b"/d"),
    ]
    replies = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nHTTP/1.1 999",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nX: y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nZ: 1\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    ]
    stream = b"".join(parts)
    bench = Bench(allow("GET /a", "POST /b", "POST /c", "GET /d"))
    client = bench.client()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=12)))
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        client.feed(stream[start:end])
    got = b""
    for number, reply in enumerate(replies):
        (app,) = bench.apps
        got += app.take()
        cuts = sorted(data.draw(st.sets(st.integers(1, len(reply) - 1), max_size=5)))
        for start, end in zip([0, *cuts], [*cuts, len(reply)], strict=True):
            app.feed(reply[start:end])
        if number == 4:
            app.finish()
    assert got == b"".join(forwarded(part) for part in parts if b"/denied" not in part)
    answered = client.take()
    assert answered.count(b"HTTP/1.1 403 Forbidden") == 1
    refusal = answered[answered.index(b"HTTP/1.1 403") : answered.index(b"HTTP/1.1 304")]
    assert answered.replace(refusal, b"") == b"".join(replies)
    assert client.did_end


def test_a_large_body_waits_for_the_application():
    bench = Bench()
    bench.connecting = True
    client = bench.client()
    client.feed(request(b"/", b"Content-Length: 300", method=b"POST") + b"a" * 100)
    assert client.paused
    client.feed(b"b" * 100)
    bench.app.unblock()
    assert not client.paused
    client.feed(b"c" * 100)
    assert bench.app.take().endswith(b"a" * 100 + b"b" * 100 + b"c" * 100)


def test_a_large_body_behind_another_request_is_not_forgotten():
    bench = Bench(head_bytes=1000)
    client = bench.client()
    body = b"x" * 5000
    client.feed(request())
    post = request(b"/2", method=b"POST", body=body)
    client.feed(post[:1500])
    assert client.paused
    client.feed(post[1500:])
    bench.app.take()
    bench.app.feed(OK)
    assert not client.paused
    assert bench.app.take() == forwarded(post)


def test_a_small_request_does_not_pause_its_client_while_the_application_connects():
    bench = Bench()
    bench.connecting = True
    client = bench.client()
    client.feed(request())
    assert not client.paused
    bench.app.unblock()
    serve(bench.app)
    assert statuses(client.take()) == [200]


def test_a_large_response_waits_for_the_client():
    bench = Bench()
    client = bench.client()
    client.feed(request())
    client.stuck = True
    bench.app.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n0123456789")
    assert bench.app.paused
    bench.app.feed(b"x" * 20)
    client.unblock()
    assert not bench.app.paused
    assert client.take().endswith(b"0123456789" + b"x" * 20)
    client.feed(request(b"/2"))
    assert bench.app.take().endswith(forwarded(request(b"/2")))


def test_a_client_that_pipelines_and_does_not_read_is_stopped():
    bench = Bench(head_bytes=1000)
    client = bench.client()
    client.stuck = True
    client.feed(request() * 40)
    for _ in range(3):
        client.feed(request())
    assert client.paused
    assert bench.app.take() == forwarded(request())
    bench.app.feed(OK)
    assert bench.app.take() == b"", "the next one waits until the client has taken the response"
    client.stuck = False
    client.unblock()
    for _ in range(42):
        assert bench.app.take() == forwarded(request())
        bench.app.feed(OK)
    assert not client.paused
    assert statuses(client.take()) == [200] * 43


def test_denied_requests_of_a_client_that_does_not_read_are_stopped_too():
    bench = Bench(allow("GET /a"))
    client = bench.client()
    client.stuck = True
    client.feed(request(b"/x") * 50)
    assert statuses(client.take()) == [403]
    client.unblock()
    assert statuses(client.take()) == [403] * 49


def test_a_repeated_head_is_not_taken_for_a_longer_one():
    bench = Bench()
    client = bench.client()
    client.feed(request(b"/a"))
    bench.app.feed(OK)
    bench.app.take()
    client.feed(request(b"/a") + request(b"/b"))
    assert bench.app.take() == forwarded(request(b"/a"))
    bench.app.feed(OK)
    assert bench.app.take() == forwarded(request(b"/b"))


# responses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000,
    ],
)
def test_a_response_that_has_no_one_meaning_is_not_passed_on(reply):
    bench = Bench()
    client = bench.client()
    client.feed(request())
    bench.app.feed(reply)
    assert statuses(client.take()) == [502]
    assert client.did_end
    assert bench.app.was_reset
    assert bench.flows.requests[-1].status == 502


def test_a_response_that_breaks_its_framing_later_is_cut():
    bench = Bench()
    client = bench.client()
    client.feed(request())
    bench.app.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    bench.app.feed(b"zz\r\n")
    assert client.was_reset


def test_a_second_response_is_nobodys():
    bench = Bench()
    client = bench.client()
    client.feed(request())
    app = bench.app
    app.feed(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
    assert client.take() == OK
    assert app.did_end
    client.feed(request())
    assert bench.app is not app
    serve(bench.app)
    assert client.take() == OK
    bench.app.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
    client.feed(request())
    assert len(bench.apps) == 3
    assert client.take() == b""


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_some_responses_have_no_body_whatever_they_say(status):
    bench = Bench()
    client = bench.client()
    client.feed(request() + request(b"/2"))
    bench.app.take()
    bench.app.feed(b"HTTP/1.1 " + status + b"\r\nContent-Length: 10\r\n\r\n")
    assert bench.app.take() == forwarded(request(b"/2"))


def test_the_response_to_head_has_no_body():
    bench = Bench()
    client = bench.client()
    client.feed(request(method=b"HEAD") + request())
    bench.app.take()
    bench.app.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
    assert bench.app.take() == forwarded(request())
    bench.app.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
    bench.app.feed(b"0123456789")
    assert client.take().endswith(b"0123456789")


def test_interim_responses_pass():
    bench = Bench()
    client = bench.client()
    client.feed(request(b"/", b"Expect: 100-continue", b"Content-Length: 5", method=b"POST"))
    bench.app.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.feed(b"hello")
    bench.app.feed(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK)
    assert client.take() == b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK
    assert bench.flows.requests[-1].status == 200


def test_draining_asks_the_client_to_go_elsewhere():
    bench = Bench()
    client, quiet = bench.client(), bench.client()
    for leg in (client, quiet):
        leg.feed(request())
        serve(bench.apps[-1])
        leg.take()
    bench.draining = True
    client.feed(request())
    bench.apps[0].feed(
        b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nok"
    )
    assert client.take() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nconnection: close\r\n\r\nok"
    assert client.did_end
    bench.later(3)
    assert quiet.did_end


def test_who_is_to_be_watched_is_asked_to_come_again():
    bench = Bench()
    client, quiet = bench.client(), bench.client()
    for leg in (client, quiet):
        leg.feed(request())
        serve(bench.apps[-1])
        leg.take()
    bench.tapped.add(PORT)
    bench.later(1)
    client.feed(request())
    serve(bench.apps[0])
    assert b"connection: close\r\n" in client.take()
    assert client.did_end
    bench.later(3)
    assert quiet.did_end


# the application's connections --------------------------------------------------------------------


def pooled(bench):
    return len(bench.site.pool(bench.context().application))


def test_a_connection_serves_one_client_after_another():
    bench = Bench()
    first = bench.client()
    first.feed(request())
    serve(bench.app)
    first.finish()
    assert first.record.closed
    assert first.did_end
    assert pooled(bench) == 1
    second = bench.client()
    second.feed(request(b"/2"))
    assert bench.app.take() == forwarded(request(b"/2"))
    bench.app.feed(OK)
    assert second.take() == OK
    assert len(bench.apps) == 1


def test_a_client_that_closes_costs_no_connection_of_the_application():
    bench = Bench()
    for _ in range(3):
        client = bench.client()
        client.feed(request(b"/", b"Connection: close"))
        assert bench.app.take() == forwarded(request())
        bench.app.feed(OK)
        assert client.take() == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nconnection: close\r\n\r\nok"
        assert client.did_end
        client.finish()
        assert client.record.closed
    assert len(bench.apps) == 1


def test_a_client_that_pauses_gives_its_connection_to_others():
    bench = Bench(attached_idle=2.0)
    first, second = bench.client(), bench.client()
    first.feed(request())
    serve(bench.app)
    bench.later(2)
    second.feed(request())
    serve(bench.app)
    assert len(bench.apps) == 1
    first.feed(request())
    assert len(bench.apps) == 2


def test_idle_connections_are_few_and_go_in_time():
    bench = Bench(pool_connections=2, pool_idle=50.0)
    clients = [bench.client() for _ in range(4)]
    for client in clients:
        client.feed(request())
        serve(bench.app)
        bench.now += 1
    for client in clients:
        client.finish()
    assert pooled(bench) == 2
    assert [leg.was_reset for leg in bench.apps] == [True, True, False, False]
    bench.later(48.5)
    assert [leg.was_reset for leg in bench.apps] == [True, True, True, False]
    bench.later(1)
    assert pooled(bench) == 0


def test_what_the_application_says_of_its_patience_is_believed():
    bench = Bench()
    client = bench.client()
    client.feed(request())
    bench.app.feed(b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=100\r\nContent-Length: 0\r\n\r\n")
    client.finish()
    bench.later(3.9)
    assert pooled(bench) == 1
    bench.later(0.2)
    assert pooled(bench) == 0


@pytest.mark.parametrize("how", ["bytes", "end", "reset"])
def test_an_idle_connection_on_which_anything_happens_is_not_used(how):
    bench = Bench()
    client = bench.client()
    client.feed(request())
    serve(bench.app)
    client.finish()
    app = bench.app
    {"bytes": lambda: app.feed(OK), "end": app.finish, "reset": app.break_off}[how]()
    assert app.closed
    again = bench.client()
    again.feed(request())
    assert bench.app is not app
    assert again.take() == b""


@pytest.mark.parametrize("how", ["finish", "break_off"])
@pytest.mark.parametrize("held", [False, True])
def test_a_stale_connection_costs_nothing(how, held):
    """``held``: the client's connection keeps the application's; else it comes from the pool."""
    bench = Bench()
    client = bench.client()
    client.feed(request())
    serve(bench.app)
    client.take()
    if not held:
        client.finish()
        client = bench.client()
    stale = bench.app
    data = request(b"/put", method=b"PUT", body=b"12345")
    client.feed(data)
    getattr(stale, how)()
    assert bench.app is not stale
    assert bench.app.take() == forwarded(data)
    assert bench.site.retries == 1
    bench.app.break_off()
    assert client.was_reset, "once is enough: a new connection was not stale"


def test_what_can_not_be_sent_again_goes_on_a_fresh_connection():
    bench = Bench(pool_unsafe_idle=1.0)
    client = bench.client()
    post = request(b"/", method=b"POST", body=b"1")
    client.feed(post)
    serve(bench.app)
    client.feed(post)
    assert len(bench.apps) == 1
    serve(bench.app)
    client.take()
    bench.now += 1.5
    client.feed(post)
    assert len(bench.apps) == 2
    bench.app.break_off()
    assert client.was_reset
    assert bench.site.retries == 0


def test_a_request_is_not_sent_again_after_a_byte_of_a_response():
    bench = Bench()
    client = bench.client()
    client.feed(request())
    serve(bench.app)
    client.take()
    client.feed(request())
    bench.app.feed(b"HTTP/1.1 2")
    bench.app.finish()
    assert len(bench.apps) == 1
    assert client.did_end
    assert client.take() == b""


def test_a_request_is_not_sent_again_when_its_client_has_ended():
    bench = Bench()
    client = bench.client()
    client.feed(request())
    serve(bench.app)
    client.take()
    client.feed(request())
    client.finish()
    assert bench.app.did_end
    bench.app.finish()
    assert len(bench.apps) == 1
    assert client.take() == b""
    assert client.record.closed


@pytest.mark.parametrize("side", ["request", "response"])
def test_a_connection_that_knows_its_client_serves_nobody_else(side):
    bench = Bench()
    client = bench.client()
    line = b"Authorization: NTLM TlRMTVNTUAAB" if side == "request" else b"A: b"
    client.feed(request(b"/", line))
    demand = b"WWW-Authenticate: Negotiate\r\n" if side == "response" else b""
    bench.app.feed(b"HTTP/1.1 401 Who\r\n" + demand + b"Content-Length: 0\r\n\r\n")
    bench.later(30)
    client.feed(request(method=b"POST"))
    assert len(bench.apps) == 1, "it stays, however long its client pauses"
    serve(bench.app)
    client.finish()
    assert pooled(bench) == 0
    assert bench.app.did_end


def test_a_connection_that_knew_its_client_takes_it_along():
    bench = Bench()
    client = bench.client()
    client.feed(request(b"/", b"Authorization: Negotiate abc"))
    serve(bench.app)
    bench.app.finish()
    assert client.did_end


# upgrades -----------------------------------------------------------------------------------------

UPGRADE = request(b"/chat", b"Connection: Upgrade", b"Upgrade: websocket")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_an_upgrade_is_allowed_by_its_own_operation_only():
    bench = Bench(allow("GET /chat"))
    client = bench.client()
    client.feed(UPGRADE)
    assert statuses(client.take()) == [403]
    assert bench.apps == []


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
    bench.refuse_dials = True
    client = bench.client()
    client.feed(request())
    assert client.was_reset
    assert client.record.closed


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
