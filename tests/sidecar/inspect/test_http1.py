"""HTTP/1 through the lane: requests, what may be in them, and what is answered."""

from __future__ import annotations

import pytest

from graph.model import Verdict
from tests.sidecar.inspect.connection import FRONT_IDENTITY, inspection, rule, until
from tests.sidecar.inspect.messages import OK, head


async def test_a_request_passes_and_is_reported_once(world):
    w = world(rule("GET /cart/{id}"))
    c = w.connect()
    c.client.give(head("GET /cart/17?x=1"))
    assert c.application.read().startswith(b"GET /cart/17?x=1 HTTP/1.1\r\nHost: cart\r\n")
    c.application.give(OK)
    assert c.client.read() == OK
    (seen,) = w.flows.requests
    assert (seen.operation, seen.status, seen.protocol, seen.decision.rule_id) == (
        "GET /cart/{id}",
        200,
        "http",
        "static/r",
    )
    assert seen.response_bytes > 2
    assert seen.request_id


async def test_byte_by_byte_is_the_same(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("POST /cart", b"Content-Length: 5\r\n") + b"hello", 1)
    assert c.application.read().endswith(b"\r\n\r\nhello")
    c.application.give(OK, 1)
    assert c.client.read() == OK


async def test_a_denied_request_never_reaches_the_application(world):
    w = world(rule("GET /cart/{id}"))
    c = w.connect()
    c.client.give(head("DELETE /cart/17"))
    answer = c.client.read()
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"\r\nx-hedgerow-reason: no-rule\r\n" in answer
    assert c.dials == 0
    (seen,) = w.flows.requests
    assert (seen.status, seen.decision.verdict) == (403, Verdict.DENY)


async def test_after_a_refusal_the_connection_goes_on(world):
    w = world(rule("GET /cart/{id}"))
    c = w.connect()
    c.client.give(head("POST /cart/17", b"Content-Length: 9\r\n") + b"forbidden" + head("GET /cart/18"))
    assert c.client.read().startswith(b"HTTP/1.1 403 ")
    assert c.application.read().startswith(b"GET /cart/18 HTTP/1.1\r\n")
    c.application.give(OK)
    assert c.client.read() == OK


async def test_a_refused_body_is_read_up_to_a_bound(world):
    hub = inspection(discarded=1000)
    w = world(rule("GET /cart/{id}"), hub=hub)
    c = w.connect()
    c.client.give(head("POST /cart/17", b"Content-Length: 9999\r\n") + b"x" * 999)
    assert not c.client.write_ended
    c.client.give(b"xx")
    assert c.client.write_ended
    assert hub.breaches["discarded"] == 1


async def test_many_pipelined_requests_are_answered_in_order_and_do_not_nest(world):
    w = world(rule("GET /cart/{id}"))
    c = w.connect()
    c.client.give(head("DELETE /cart/17") * 3000 + head("GET /cart/99"))
    await until(lambda: c.server is not None)
    assert c.client.read().count(b"HTTP/1.1 403 ") == 3000
    assert c.application.read().startswith(b"GET /cart/99 ")
    assert len(w.flows.requests) == 3000


async def test_a_pipelined_request_waits_for_the_answer_to_the_one_before(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("GET /a") + head("GET /b"))
    assert c.application.read().count(b"GET /") == 1
    c.application.give(OK)
    assert c.application.read().startswith(b"GET /b ")


async def test_a_client_that_pipelines_without_reading_is_not_read(world):
    w = world(rule())
    c = w.connect()
    for _ in range(200):
        if c.client.paused:
            break
        c.client.give(head("GET /a") * 50)
    assert c.client.paused
    held = len(c.lane._inbox) + c.lane.layers.client.held
    assert held < 4 * 65_536


async def test_our_headers_are_set_and_those_of_others_are_not_believed(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("GET /a", b"X-Forwarded-Client-Cert: By=x;URI=spiffe://evil\r\nx_hedgerow_source: me\r\n"))
    sent = c.application.read()
    assert sent.lower().count(b"forwarded-client-cert") == 1
    assert f"URI={FRONT_IDENTITY}\r\n".encode() in sent
    assert b"evil" not in sent
    assert b"hedgerow" not in sent.lower()
    assert sent.count(b"traceparent: 00-") == 1
    assert sent.count(b"x-request-id: ") == 1


async def test_trace_and_request_id_pass(world):
    w = world(rule())
    c = w.connect()
    trace = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nx-request-id: abc\r\n"
    c.client.give(head("GET /a", trace))
    sent = c.application.read()
    assert trace in sent
    assert sent.count(b"traceparent") == sent.count(b"x-request-id") == 1
    c.application.give(OK)
    assert w.flows.requests[0].request_id == "abc"


@pytest.mark.parametrize(
    "bad",
    [
        b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\nHost: a\n\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"GET http://cart/a HTTP/1.1\r\nHost: cart\r\n\r\n",
        b"CONNECT cart:80 HTTP/1.1\r\nHost: cart\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a HTTP/2.0\r\nHost: a\r\n\r\n",
    ],
)
async def test_what_can_be_read_in_two_ways_is_refused(world, bad):
    w = world(rule())
    c = w.connect()
    c.client.give(bad)
    assert c.client.read().startswith(b"HTTP/1.1 400 ")
    assert c.client.write_ended
    assert c.dials == 0
    assert w.hub.unreadable == 1
    assert w.fabric.guards.counters.requests_malformed == 1


@pytest.mark.parametrize("path", ["/cart/%2e%2e/admin", "/cart/../admin", "//admin", "/a%2fb", "/a;b=c"])
async def test_a_path_that_two_would_understand_differently_is_no_operation(world, path):
    w = world(rule("GET /cart/{id}", "GET /admin"))
    c = w.connect()
    c.client.give(head(f"GET {path}"))
    assert c.client.read().startswith(b"HTTP/1.1 403 ")
    assert c.dials == 0


async def test_trailers_pass_both_ways(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("POST /a", b"Transfer-Encoding: chunked\r\n") + b"2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n")
    assert c.application.read().endswith(b"\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n")
    c.application.give(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n0\r\nX-Done: yes\r\n\r\n"
    )
    assert c.client.read().endswith(b"3\r\nabc\r\n0\r\nX-Done: yes\r\n\r\n")
    assert len(w.flows.requests) == 1


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length: 5",
        b"x_forwarded_client_cert: URI=me",
        b"X.Forwarded.Client.Cert: a",
        b"X-Hedgerow-A: 1",
        b"X-HTTP-Method-Override: DELETE",
        b"x.original.url: /admin",
        b"Authorization: Basic YTpi",
    ],
)
async def test_a_trailer_that_belongs_into_the_head_ends_it(world, line):
    w = world(rule())
    c = w.connect()
    c.client.give(head("POST /a", b"Transfer-Encoding: chunked\r\n") + b"0\r\n" + line + b"\r\n\r\n")
    assert line not in c.application.read()
    assert c.client.write_ended


async def test_interim_responses_pass(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("POST /a", b"Content-Length: 2\r\nExpect: 100-continue\r\n"))
    assert b"\r\nExpect: 100-continue\r\n" in c.application.read()
    assert c.client.read() == b""
    c.application.give(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert c.client.read() == b"HTTP/1.1 100 Continue\r\n\r\n"
    c.client.give(b"hi")
    assert c.application.read() == b"hi"
    c.application.give(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK)
    assert c.client.read() == b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK


async def test_a_bad_response_is_a_502(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head())
    c.application.give(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx")
    said = c.client.read()
    assert said.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert b"x-hedgerow-reason: bad-response\r\n" in said
    assert b"mitmproxy" not in said.lower()
    assert c.client.write_ended
    assert [(one.status, one.detail) for one in w.flows.requests] == [(502, "bad-response")]


async def test_a_head_that_is_too_large(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head()[:-2] + b"X: " + b"x" * 70_000)
    assert c.client.read().startswith(b"HTTP/1.1 431 ")
    assert c.client.write_ended
    assert w.hub.breaches["head-bytes"] == 1
    c.client.finish()
    assert c.record.closed


async def test_a_head_that_takes_too_long(world):
    hub = inspection(head_seconds=0.1)
    w = world(rule(), hub=hub)
    c = w.connect()
    c.client.give(b"GET /a HTTP/1.1\r\nHo")
    await until(lambda: c.client.write_ended)
    assert c.client.read().startswith(b"HTTP/1.1 408 ")
    assert hub.breaches["head-seconds"] == 1


async def test_a_chunk_line_without_end(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("POST /a", b"Transfer-Encoding: chunked\r\n"))
    for _ in range(100):
        c.client.give(b"0" * 10_000)
    assert c.client.write_ended
    assert sum(w.hub.breaches.values()) <= 1


async def test_a_response_head_that_is_too_large(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head())
    c.application.give(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000)
    assert c.client.was_reset
    assert w.hub.breaches["application-head-bytes"] == 1


async def test_no_limit_ends_an_answer_whose_head_stalls(world):
    """As without the mesh, its client waits; the limits on heads are for clients."""
    w = world(rule())
    c = w.connect()
    c.client.give(head())
    c.application.give(b"HTTP/1.1 200 OK\r\nCon")
    assert c.lane._timer is None, "something would look at it later"
    c.application.give(b"tent-Length: 2\r\n\r\nhi")
    assert c.client.read().endswith(b"\r\n\r\nhi")
