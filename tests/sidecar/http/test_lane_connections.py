"""The application's connections behind the lane: who gets them, how long they are kept, when they are not trusted."""

from __future__ import annotations

import pytest

from graph.model import Verdict
from tests.sidecar.http.fakes import Bench, allow
from tests.sidecar.http.requests import OK, forwarded, pooled, request, serve


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


@pytest.mark.parametrize(
    ("path", "more"),
    [(b"/%61dmin", ()), (b"/other", (b"X-Original-URL: /admin",)), (b"/admin", ())],
    ids=["path", "header", "plain"],
)
def test_an_open_upgrade_is_ended_by_a_deny_that_may_mean_it(path, more):
    bench = Bench(allow())
    client = bench.client()
    client.feed(request(path, b"Connection: Upgrade", b"Upgrade: websocket", *more))
    bench.app.feed(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert not client.was_reset
    bench.policy.change(allow("WEBSOCKET /admin", rule="static/deny", effect=Verdict.DENY), allow())
    assert client.was_reset
