"""HTTP/1 connections through the lane: how they end, wait, are drained, judged again and upgraded."""

from __future__ import annotations

import h2.events
import pytest

from graph.model import Verdict
from tests.sidecar.inspect.connection import Kind, rule
from tests.sidecar.inspect.http2_ends import Pair
from tests.sidecar.inspect.messages import OK, head


async def test_a_response_without_length_ends_with_the_connection(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head())
    c.application.give(b"HTTP/1.1 200 OK\r\n\r\nall of it")
    c.application.finish()
    assert c.client.read().endswith(b"\r\n\r\nall of it")
    assert c.client.write_ended
    assert w.flows.requests[0].status == 200


async def test_a_client_that_ended_its_half_still_gets_its_answer(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head())
    c.client.finish()
    assert not c.client.closed
    assert not c.client.write_ended
    c.application.give(OK)
    assert c.client.read() == OK
    assert c.client.write_ended
    assert c.record.closed


async def test_the_application_is_told_that_the_client_ended_its_half(world):
    """It may wait for that before it answers."""
    w = world(rule())
    c = w.connect()
    c.client.give(head())
    c.application.give(OK)
    assert c.client.read() == OK
    c.client.give(head("POST /a", b"Content-Length: 5\r\n") + b"hell")
    c.client.give(b"o")
    assert not c.application.write_ended
    c.client.finish()
    assert c.application.write_ended
    assert not c.client.write_ended
    c.application.give(OK)
    assert c.client.read() == OK
    assert c.client.write_ended
    assert c.record.closed


async def test_the_application_is_told_of_the_end_behind_the_last_pipelined_request(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("GET /a") + head("GET /b"))
    c.client.finish()
    assert not c.application.write_ended
    c.application.give(OK)
    assert c.application.write_ended
    assert c.application.read().count(b"GET /") == 2
    c.application.give(OK)
    assert c.client.read() == OK + OK
    assert c.client.write_ended
    assert c.record.closed


async def test_a_pipelined_body_that_will_never_be_whole_is_not_waited_for(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("GET /a") + head("POST /b", b"Content-Length: 9\r\n") + b"half")
    c.client.finish()
    c.application.give(OK)
    assert c.client.read().startswith(OK)
    assert c.client.write_ended
    assert c.application.write_ended


async def test_what_is_said_early_behind_an_upgrade_comes_before_the_end(world):
    w = world(rule("WEBSOCKET /chat"))
    c = w.connect()
    c.client.give(head("GET /chat", WEBSOCKET) + b"\x81\x82early")
    c.client.finish()
    assert not c.application.write_ended
    c.application.give(SWITCHED)
    assert c.application.read().endswith(b"\x81\x82early")
    assert c.application.write_ended


@pytest.mark.parametrize("behind", [b"\r\n", b"\r\n\r\n", b"GET /b HTTP/1.1\r\nHo"])
async def test_half_a_request_of_a_client_that_ended_its_half_is_not_waited_for(world, behind):
    w = world(rule())
    c = w.connect()
    c.client.give(head() + behind)
    c.client.finish()
    assert c.application.write_ended
    c.application.give(OK)
    assert c.client.read() == OK
    assert c.client.write_ended
    assert c.record.closed


async def test_the_application_closes_before_it_answers(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head())
    c.application.finish()
    assert c.client.read() == b""
    assert c.client.write_ended
    assert [seen.status for seen in w.flows.requests] == [0]


async def test_the_application_resets(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head())
    c.application.lose()
    assert c.client.was_reset
    assert c.record.closed
    assert c.record.failed
    assert len(w.flows.requests) == 1


async def test_the_application_can_not_be_called(world):
    w = world(rule())
    c = w.connect(reachable=False)
    c.client.give(head())
    assert c.client.was_reset
    assert c.record.failed


async def test_the_client_vanishes(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("POST /a", b"Content-Length: 9\r\n") + b"half")
    c.client.lose()
    assert c.application.was_reset
    assert c.record.closed
    assert w.hub.lanes == 0


async def test_half_a_body_and_then_the_end_is_not_passed_as_a_whole_one(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("POST /a", b"Transfer-Encoding: chunked\r\n") + b"5\r\nhello\r\n")
    c.client.finish()
    assert not c.application.read().endswith(b"0\r\n\r\n")
    assert c.client.write_ended


async def test_backpressure_in_both_directions(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("POST /a", b"Content-Length: 1000\r\n"))
    c.application.blocked = True
    c.client.give(b"x" * 10)
    assert c.client.paused
    c.application.unblock()
    assert not c.client.paused
    c.client.give(b"x" * 990)
    c.client.blocked = True
    c.application.give(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234")
    assert c.application.paused
    c.client.unblock()
    assert not c.application.paused


async def test_close_is_kept(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("GET /a", b"Connection: close\r\n"))
    c.application.give(OK)
    assert c.client.read() == OK
    assert c.client.write_ended
    c.client.finish()
    assert c.record.closed


async def test_while_draining_the_answer_is_the_last_one(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head())
    w.fabric.draining = True
    c.application.give(OK)
    assert b"\r\nconnection: close\r\n" in c.client.read()
    assert c.client.write_ended


async def test_draining_lets_idle_clients_go(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head())
    c.application.give(OK)
    w.hub.drain()
    assert c.client.write_ended


async def test_a_policy_that_denies_what_runs_ends_it(world):
    w = world(rule("GET /a"))
    c = w.connect()
    c.client.give(head("GET /a"))
    w.policy(rule("GET /b"))
    assert c.client.was_reset
    assert c.application.was_reset
    assert w.flows.requests[0].decision.verdict is Verdict.DENY


@pytest.mark.parametrize("kind", [Kind.HTTP1, Kind.HTTP2])
async def test_a_policy_by_operation_ends_what_is_no_clear_operation(world, kind):
    w = world(rule())
    c = w.connect(kind)
    pair = Pair(c) if kind is Kind.HTTP2 else None
    if pair is not None:
        stream = pair.request("/a%2fb")
        assert pair.application.all(h2.events.RequestReceived)
    else:
        c.client.give(head("GET /a%2fb"))
        assert c.application.read()
    w.policy(rule(), rule("GET /admin", effect=Verdict.DENY, name="deny"))
    if pair is not None:
        pair.turn()
        assert pair.client.all(h2.events.StreamReset, stream)
    else:
        assert c.client.was_reset


async def test_a_new_policy_counts_for_the_next_request(world):
    w = world(rule("GET /a"))
    c = w.connect()
    c.client.give(head("GET /a"))
    c.application.give(OK)
    c.client.read()
    w.policy(rule("GET /b"))
    c.client.give(head("GET /a"))
    assert c.client.read().startswith(b"HTTP/1.1 403 ")


WEBSOCKET = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def test_a_websocket_passes_with_what_was_sent_early(world):
    w = world(rule("WEBSOCKET /chat"))
    c = w.connect()
    c.client.give(head("GET /chat", WEBSOCKET) + b"\x81\x82early")
    assert c.application.read().startswith(b"GET /chat ")
    c.application.give(SWITCHED + b"\x81\x02hi")
    assert c.client.read().lower() == (SWITCHED + b"\x81\x02hi").lower()
    assert c.application.read() == b"\x81\x82early"
    c.client.give(b"more")
    assert c.application.read() == b"more"
    c.application.give(b"back")
    assert c.client.read() == b"back"
    c.client.finish()
    assert c.application.write_ended
    c.application.finish()
    assert c.client.write_ended
    assert c.record.closed
    assert [(one.operation, one.status) for one in w.flows.requests] == [("WEBSOCKET /chat", 101)]


async def test_behind_101_nobody_gives_way_where_nobody_reads(world):
    w = world(rule("UPGRADE /chat"))
    c = w.connect()
    c.client.give(head("GET /chat", b"Upgrade: chat/2\r\nConnection: Upgrade\r\n"))
    assert c.client.gives_way
    assert c.application.gives_way
    c.application.give(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat/2\r\nConnection: Upgrade\r\n\r\n")
    assert c.client.read().startswith(b"HTTP/1.1 101 ")
    assert not c.client.gives_way
    assert not c.application.gives_way


async def test_a_websocket_is_an_operation_of_its_own(world):
    w = world(rule("GET /chat"))
    c = w.connect()
    c.client.give(head("GET /chat", WEBSOCKET))
    assert c.client.read().startswith(b"HTTP/1.1 403 ")


async def test_a_websocket_does_not_hide_an_operation_that_is_denied(world):
    """Found by a review: an application that ignores the upgrade serves the request."""
    w = world(rule("GET /chat", effect=Verdict.DENY, name="deny"), rule())
    c = w.connect()
    c.client.give(head("GET /chat", WEBSOCKET))
    assert c.client.read().startswith(b"HTTP/1.1 403 ")
    w = world(rule("WEBSOCKET /chat"))
    c = w.connect()
    c.client.give(head("DELETE /chat", WEBSOCKET))
    assert c.client.read().startswith(b"HTTP/1.1 403 ")
    assert c.server is None


async def test_an_upgrade_that_waits_is_ended_by_a_new_deny_of_what_it_hides(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("GET /chat", WEBSOCKET))
    assert c.application.read()
    w.policy(rule("GET /chat", effect=Verdict.DENY, name="deny"), rule())
    assert c.client.was_reset
    assert c.application.was_reset
    assert w.flows.requests[0].decision.rule_id == "static/deny"


async def test_an_upgrade_that_was_answered_is_judged_as_what_it_became(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head("GET /chat", WEBSOCKET))
    c.application.give(SWITCHED)
    w.policy(rule("GET /chat", effect=Verdict.DENY, name="deny"), rule())
    assert not c.client.was_reset


async def test_a_policy_that_denies_an_open_websocket_ends_it(world):
    w = world(rule("WEBSOCKET /chat"))
    c = w.connect()
    c.client.give(head("GET /chat", WEBSOCKET))
    c.application.give(SWITCHED)
    w.policy(rule("GET /b"))
    assert c.client.was_reset


@pytest.mark.parametrize("first", ["GET /%61dmin", "GET /admin\r\nX-Original-URL: /chat"], ids=["path", "header"])
async def test_an_open_websocket_whose_path_is_unclear_is_ended_by_a_deny_that_may_mean_it(world, first):
    line, _, more = first.partition("\r\n")
    w = world(rule())
    c = w.connect()
    c.client.give(head(line, WEBSOCKET + (more.encode() + b"\r\n" if more else b"")))
    c.application.give(SWITCHED)
    assert not c.client.was_reset
    w.policy(rule("WEBSOCKET /admin", effect=Verdict.DENY, name="deny"), rule())
    assert c.client.was_reset


async def test_an_upgrade_that_nobody_asked_for_is_no_response(world):
    w = world(rule())
    c = w.connect()
    c.client.give(head())
    c.application.give(SWITCHED)
    assert b"101" not in c.client.read()


async def test_an_upgrade_to_http2_is_not_offered_to_the_application(world):
    w = world(rule())
    c = w.connect()
    c.client.give(
        head("GET /a", b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n")
    )
    sent = c.application.read().lower()
    assert b"upgrade" not in sent
    assert b"http2-settings" not in sent
