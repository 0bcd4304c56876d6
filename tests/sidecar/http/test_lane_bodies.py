"""Bodies and responses through the lane: their bounds, their framing, and what is passed on of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sidecar.http.fakes import PORT, Bench, allow
from tests.sidecar.http.requests import OK, forwarded, request, serve, statuses

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


def test_an_application_that_says_to_wait_without_end_waits_for_its_client():
    """Found by a review: interim responses were held without a bound of their own, until what all may hold was full."""
    bench = Bench()
    client = bench.client()
    client.feed(request())
    client.stuck = True
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    bench.app.feed(interim)
    assert bench.app.paused
    bench.app.feed(interim)
    bench.app.feed(OK)
    assert client.take() == interim
    client.unblock()
    assert not bench.app.paused
    assert client.take() == interim + OK
    client.feed(request())
    assert bench.app.take().endswith(forwarded(request()))


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
    assert (bench.flows.requests[-1].status, bench.flows.requests[-1].detail) == (502, "bad-response")


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


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        (request(b"/", b"Content-Length: 10", method=b"POST") + b"01234", b"56789"),
        (request(b"/", b"Transfer-Encoding: chunked", method=b"POST") + b"5\r\nabc", b"de\r\n0\r\n\r\n"),
    ],
)
def test_what_comes_behind_an_early_response_ends_both(body, rest):
    """Found by a review: an application that answered before the body's end, and then refused the body as a request,
    left the client's next byte without a receiver; that was an exception, and the end of all of a tunnel's streams."""
    bench = Bench()
    client = bench.client()
    client.feed(body)
    bench.app.feed(OK)
    bench.app.feed(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    client.feed(rest)
    client.finish()
    assert client.take() == OK
    assert client.did_end
    assert client.record.closed
    assert [one.status for one in bench.flows.requests] == [200]


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
