"""The user's addons: they see and change what they may, and never widen a verdict."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import h2.events
import pytest

from sidecar.inspect.addons import Addons, BadAddon
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings, Limits, OnAddonError
from tests.sidecar.inspect.connection import Kind, rule
from tests.sidecar.inspect.http2_ends import Pair
from tests.sidecar.inspect.messages import OK, head


@pytest.fixture
def addon(world, tmp_path):
    """An inspected connection with an addon of this source."""

    def make(source: str, *rules, kind: Kind = Kind.HTTP1, limits=MappingProxyType({}), **settings):
        path = tmp_path / "addon.py"
        path.write_text(source)
        hub = Inspection(InspectSettings(limits=Limits(**{"slice": 60.0, **limits}), addons=(path,), **settings))
        w = world(*(rules or (rule("GET /cart/{id}"),)), hub=hub)
        return w, w.connect(kind)

    return make


async def test_it_sees_and_changes_requests_and_responses(addon):
    _, c = addon(
        "def requestheaders(flow):\n    flow.request.headers['x-seen'] = flow.request.path\n"
        "def responseheaders(flow):\n    flow.response.headers['x-status'] = str(flow.response.status_code)\n"
    )
    c.client.give(head())
    assert b"x-seen: /cart/17\r\n" in c.application.read()
    c.application.give(OK)
    assert b"x-status: 200\r\n" in c.client.read()


async def test_what_it_makes_of_a_request_is_judged_again(addon):
    w, c = addon("def requestheaders(flow):\n    flow.request.path = '/admin'\n")
    c.client.give(head())
    assert c.client.read().startswith(b"HTTP/1.1 403 ")
    assert c.dials == 0
    assert w.flows.requests[0].operation == "GET /admin"


async def test_it_can_not_save_a_request_that_is_denied(addon):
    _, c = addon("def requestheaders(flow):\n    flow.request.path = '/cart/17'\n")
    c.client.give(head("GET /admin"))
    assert c.client.read().startswith(b"HTTP/1.1 403 ")
    assert c.dials == 0


async def test_a_method_is_judged_too_on_http2(addon):
    _, c = addon("def requestheaders(flow):\n    flow.request.method = 'DELETE'\n", kind=Kind.HTTP2)
    pair = Pair(c)
    stream = pair.request("/cart/17")
    assert dict(pair.client.all(h2.events.ResponseReceived, stream)[0].headers)[":status"] == "403"
    assert c.dials == 0


@pytest.mark.parametrize(
    "change",
    [
        "flow.request.path = '/cart/17 HTTP/1.1\\r\\nX: y'",
        "flow.request.headers['x'] = 'a\\r\\nHost: b'",
        "flow.request.method = 'GET /admin HTTP/1.1'",
        "flow.request.path = '/cart/../admin'",
        "flow.request.headers['x-http-method-override'] = 'DELETE'",
    ],
)
async def test_a_form_that_could_be_read_in_two_ways(addon, change):
    _, c = addon(f"def requestheaders(flow):\n    {change}\n")
    c.client.give(head())
    assert c.client.read().startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 "))
    assert c.dials == 0


async def test_framing_and_what_we_vouch_for_are_not_its_to_change(addon):
    _, c = addon(
        "def requestheaders(flow):\n"
        "    flow.request.headers['content-length'] = '3'\n"
        "    flow.request.headers['transfer-encoding'] = 'chunked'\n"
        "    flow.request.headers['host'] = 'elsewhere'\n"
        "    flow.request.headers['x-forwarded-client-cert'] = 'URI=spiffe://evil'\n"
    )
    c.client.give(head("GET /cart/17", b"Content-Length: 5\r\n") + b"hello")
    sent = c.application.read()
    assert sent.endswith(b"\r\n\r\nhello")
    assert b"Content-Length: 5\r\n" in sent
    assert b"transfer-encoding" not in sent.lower()
    assert b"elsewhere" not in sent
    assert b"evil" not in sent


async def test_it_may_refuse(addon):
    w, c = addon("def requestheaders(flow):\n    flow.kill()\n")
    c.client.give(head())
    answer = c.client.read()
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"x-hedgerow-reason: addon-refused\r\n" in answer
    assert [(one.status, one.detail) for one in w.flows.requests] == [(403, "addon-refused")]


async def test_when_it_fails_the_request_is_refused(addon, caplog):
    w, c = addon("def requestheaders(flow):\n    raise ValueError('mine')\n")
    c.client.give(head())
    assert c.client.read().startswith(b"HTTP/1.1 500 ")
    assert c.dials == 0
    assert "addon.py failed in requestheaders" in caplog.text
    assert w.hub.addons.failures == 1


async def test_or_passes_where_the_setting_says_so(addon):
    _, c = addon("def requestheaders(flow):\n    raise ValueError\n", on_addon_error=OnAddonError.PASS)
    c.client.give(head())
    assert c.application.read().startswith(b"GET /cart/17 ")


async def test_a_response_that_it_spoils_does_not_pass(addon):
    _, c = addon("def responseheaders(flow):\n    flow.response.headers['x'] = 'a\\nb'\n")
    c.client.give(head())
    c.application.give(OK)
    assert b"200 OK" not in c.client.read()


BODIES = (
    "def request(flow):\n    flow.request.text = flow.request.text.upper() + '!'\n"
    "def response(flow):\n    flow.response.text = flow.response.text * 2\n"
)


async def test_bodies_are_collected_up_to_a_bound(addon):
    w, c = addon(BODIES, rule("POST /cart"), addon_bodies=1000)
    c.client.give(head("POST /cart", b"Content-Length: 5\r\n") + b"hel")
    assert c.dials == 0
    c.client.give(b"lo")
    sent = c.application.read()
    assert sent.endswith(b"\r\n\r\nHELLO!")
    assert b"content-length: 6\r\n" in sent.lower()
    c.application.give(OK)
    answer = c.client.read()
    assert answer.endswith(b"\r\n\r\nokok")
    assert b"content-length: 4\r\n" in answer.lower()
    assert [one.status for one in w.flows.requests] == [200]


async def test_a_larger_body_is_streamed(addon):
    _, c = addon(BODIES, rule("POST /cart"), addon_bodies=1000)
    c.client.give(head("POST /cart", b"Content-Length: 5000\r\n") + b"x" * 4000)
    assert c.application.read().endswith(b"x" * 4000)
    c.client.give(b"x" * 1000)
    c.application.give(OK)


async def test_a_body_whose_length_is_not_known_is_collected_and_then_streamed(addon):
    _, c = addon("def request(flow): pass", rule("POST /cart"), addon_bodies=1000)
    c.client.give(head("POST /cart", b"Transfer-Encoding: chunked\r\n") + b"1f4\r\n" + b"x" * 500 + b"\r\n")
    assert c.dials == 0
    c.client.give(b"3e8\r\n" + b"y" * 1000 + b"\r\n0\r\n\r\n")
    assert b"y" * 1000 in c.application.read()
    c.application.give(OK)
    assert c.client.read() == OK


async def test_a_collected_request_is_judged_again_before_it_leaves(addon):
    w, c = addon("def request(flow):\n    flow.request.path = '/admin'\n", rule("POST /cart"), addon_bodies=1000)
    c.client.give(head("POST /cart", b"Content-Length: 5\r\n") + b"hello")
    assert c.client.read().startswith(b"HTTP/1.1 403 ")
    assert c.dials == 0
    assert [one.status for one in w.flows.requests] == [403]


# messages without a body: `request` and `response`, which most addons have, hold for them whatever `addon_bodies` is


@pytest.mark.parametrize("most", [0, 1000])
@pytest.mark.parametrize("kind", [Kind.HTTP1, Kind.HTTP2])
async def test_what_has_no_body_is_changed_by_the_usual_hooks(addon, most, kind):
    _, c = addon(
        "def request(flow):\n"
        "    assert flow.request.text == ''\n"
        "    flow.request.headers['x-seen'] = flow.request.path\n"
        "def response(flow):\n    flow.response.headers['x-late'] = 'yes'\n",
        kind=kind,
        addon_bodies=most,
    )
    if kind is Kind.HTTP1:
        c.client.give(head())
        assert b"x-seen: /cart/17\r\n" in c.application.read()
        c.application.give(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert c.client.read() == b"HTTP/1.1 204 No Content\r\nx-late: yes\r\n\r\n"
        return
    pair = Pair(c)
    stream = pair.request("/cart/17")
    [seen] = pair.application.all(h2.events.RequestReceived)
    assert dict(seen.headers)["x-seen"] == "/cart/17"
    pair.application.h2.send_headers(seen.stream_id, [(":status", "204")], end_stream=True)
    pair.application.flush()
    pair.turn()
    [answer] = pair.client.all(h2.events.ResponseReceived, stream)
    assert dict(answer.headers)["x-late"] == "yes"


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("    raise ValueError('mine')", b"500"),
        ("    flow.kill()", b"403"),
        ("    flow.request.path = '/admin'", b"403"),
        ("    from mitmproxy.http import Response\n    flow.response = Response.make(418)", b"418"),
    ],
)
async def test_what_it_refuses_in_the_usual_hook_never_leaves(addon, source, status):
    w, c = addon(f"def request(flow):\n{source}\n")
    c.client.give(head())
    assert c.client.read().startswith(b"HTTP/1.1 %s " % status)
    assert c.dials == 0
    assert [one.status for one in w.flows.requests] == [int(status)]


@pytest.mark.parametrize("source", ["    raise ValueError('mine')", "    flow.kill()"])
async def test_who_refuses_what_has_gone_keeps_its_answer_back(addon, source):
    _, c = addon(f"def request(flow):\n{source}\n", rule("POST /cart"))
    c.client.give(head("POST /cart", b"Content-Length: 5\r\n") + b"hello")
    c.application.give(OK)
    assert b"200 OK" not in c.client.read()
    assert c.client.write_ended


async def test_a_failure_at_what_has_gone_passes_where_that_is_asked_for(addon):
    _, c = addon(
        "def request(flow):\n    raise ValueError\ndef response(flow):\n    raise ValueError\n",
        rule("POST /cart"),
        on_addon_error=OnAddonError.PASS,
    )
    c.client.give(head("POST /cart", b"Content-Length: 5\r\n") + b"hello")
    c.application.give(OK)
    assert c.client.read() == OK


@pytest.mark.parametrize(
    ("source", "most", "said"),
    [
        ("def request(flow): pass\ndef response(flow): pass\n", 0, "what `request` and `response` of the addons"),
        ("def response(flow): pass\n", 0, "what `response` of the addons"),
        ("def response(flow): pass\n", 1000, ""),
        ("def requestheaders(flow): pass\n", 0, ""),
    ],
)
async def test_hooks_that_come_too_late_for_bodies_are_named_once(addon, caplog, source, most, said):
    w, c = addon(source, addon_bodies=most)
    c.client.give(head())
    w.connect(Kind.HTTP1).client.give(head())
    warned = [record.getMessage() for record in caplog.records if "inspect.addon_bodies" in record.getMessage()]
    assert len(warned) == bool(said)
    assert all(said in text for text in warned)


async def test_the_length_that_an_answer_to_head_says_stays(addon):
    _, c = addon("def response(flow):\n    flow.response.text = 'mine'\n", rule("HEAD /cart/{id}"))
    c.client.give(head("HEAD /cart/17"))
    c.application.give(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
    assert c.client.read() == b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"


async def test_a_response_in_which_it_fails_does_not_pass(addon):
    _, c = addon("def response(flow):\n    raise ValueError\n", addon_bodies=1000)
    c.client.give(head())
    c.application.give(OK)
    assert b"200 OK" not in c.client.read()


WEBSOCKET = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def test_an_upgrade_passes_the_usual_hooks(addon):
    _, c = addon("def request(flow): pass\ndef response(flow): pass\n" + SHOUT, rule("WEBSOCKET /chat"))
    c.client.give(head("GET /chat", WEBSOCKET))
    assert b"permessage" not in c.application.read()
    c.application.give(SWITCHED + b"\x81\x02hi")
    assert c.client.read().endswith(b"\x81\x03hi!")


SHOUT = "def websocket_message(flow):\n    flow.websocket.messages[-1].text += '!'\n"


async def test_it_sees_and_changes_messages(addon):
    w, c = addon(SHOUT, rule("WEBSOCKET /chat"))
    c.client.give(head("GET /chat", WEBSOCKET))
    assert b"permessage" not in c.application.read()
    c.application.give(SWITCHED + b"\x81\x02hi")
    assert c.client.read().endswith(b"\x81\x03hi!")
    c.client.give(b"\x81\x82\x00\x00\x00\x00ho")
    sent = c.application.read()
    mask, payload = sent[2:6], sent[6:]
    assert bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload)) == b"ho!"
    for _ in range(50):
        c.application.give(b"\x81\x02hi")
    stream = w.hub and c.lane.layers.judge._upgraded
    assert len(stream.flow.websocket.messages) <= 1


@pytest.mark.parametrize("largest", [1 << 20, 100_000])
async def test_a_message_without_end_is_cut_off(addon, largest):
    _, c = addon(SHOUT, rule("WEBSOCKET /chat"), limits={"message": largest})
    c.client.give(head("GET /chat", WEBSOCKET))
    c.application.give(SWITCHED)
    c.client.read()
    c.client.give(b"\x01\xff" + (1 << 40).to_bytes(8) + bytes(4))
    for _ in range(largest // 60_000):
        c.client.give(b"x" * 60_000)
    assert not c.client.write_ended
    c.client.give(b"x" * 60_000)
    assert c.client.write_ended
    assert (1009).to_bytes(2) in c.client.read()


# what can not be loaded


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def tls_clienthello(data): pass", "tls_clienthello"),
        ("async def request(flow): pass", "coroutine"),
        ("x = 1", "no hook"),
        ("import nonsense_that_is_not_there", "ModuleNotFoundError"),
        ("def request(flow:\n", "SyntaxError"),
    ],
)
def test_what_can_not_be_used_is_said(tmp_path, source, problem):
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(BadAddon, match=problem) as refusal:
        Addons.load([path])
    assert "inspect.addons" in str(refusal.value)


def test_a_file_that_is_not_there():
    with pytest.raises(BadAddon, match=r"there is no /nowhere/addon\.py"):
        Addons.load([Path("/nowhere/addon.py")])


def test_addons_as_mitmproxy_writes_them(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("class Mine:\n    def response(self, flow): pass\naddons = [Mine()]\n")
    assert Addons.load([path]).wants("response")
