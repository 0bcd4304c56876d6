"""Flow files, as mitmproxy reads them."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import pytest

from hedgerow.flow_file import FlowFile

with warnings.catch_warnings():  # mitmproxy 12.2 with today's pyparsing
    warnings.simplefilter("ignore", DeprecationWarning)
    from mitmproxy.io import FlowReader

#: Seconds that mitmweb may take to start and to read a file.
PATIENCE = 90.0
NOTHING = {"headers": [], "trailers": [], "bytes": 0, "body": "", "withheld": ""}


def body(data: bytes, withheld: str = "", **more):
    return NOTHING | {"bytes": len(data), "body": base64.b64encode(data).decode(), "withheld": withheld} | more


def shown(**more):
    event = {
        "at": 1000.0, "seconds": 0.5, "protocol": "http", "verdict": "allow", "operation": "POST /cart/{id}",
        "from": "shop/front", "instance": "cart-1", "reason": "rule", "from_address": "192.0.2.1", "to": "shop/cart",
        "port": 8080, "method": "POST", "path": "/cart/17", "host": "cart", "status": 200,
        "request": body(b"ask", headers=[["a", "b"]]), "response": body(b"answer", trailers=[["c", "d"]]),
    }  # fmt: skip
    return event | more


def read(*events):
    """What mitmproxy makes of a file with these events."""
    data = io.BytesIO()
    file = FlowFile(data)
    for event in events:
        file.add(event)
    assert file.written == len(events)
    data.seek(0)
    return list(FlowReader(data).stream())


def test_a_request():
    flow, refused = read(shown(), shown(protocol="grpc", verdict="deny", status=0, response=None))
    assert (flow.request.method, flow.request.path, flow.request.http_version) == ("POST", "/cart/17", "HTTP/1.1")
    assert (flow.request.content, flow.request.headers["a"]) == (b"ask", "b")
    assert (flow.response.status_code, flow.response.content, flow.response.trailers["c"]) == (200, b"answer", "d")
    assert "POST /cart/{id} · shop/front · cart-1 · allow: rule" in flow.comment
    assert flow.websocket is None
    assert refused.request.http_version == "HTTP/2.0"
    assert refused.response is None
    assert refused.marked == ":no_entry:"


@pytest.mark.parametrize("from_client", [True, False])
@pytest.mark.parametrize("withheld", ["", "not text"])
def test_a_message_of_a_websocket(from_client, withheld):
    message = body(b"" if withheld else b"hello", withheld)
    ends = {"request": message, "response": None} if from_client else {"request": NOTHING, "response": message}
    (flow,) = read(shown(protocol="websocket", method="WEBSOCKET", path="/chat", status=101, **ends))
    (seen,) = flow.websocket.messages
    assert (seen.from_client, seen.is_text, seen.timestamp) == (from_client, not withheld, 1000.0)
    assert seen.content == (b"" if withheld else b"hello")
    assert (flow.request.path, flow.request.content, flow.response.status_code) == ("/chat", b"", 101)
    assert withheld in flow.comment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def shown_by_mitmweb(port: int, child: subprocess.Popen, count: int):
    """The flows that its page gets, as soon as there are so many."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/flows", headers={"Authorization": "Bearer secret"})
    end = time.monotonic() + PATIENCE
    flows = []
    while len(flows) < count:
        assert child.poll() is None, "mitmweb has ended"
        assert time.monotonic() < end, f"mitmweb shows {len(flows)} flows"
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(asked, timeout=10) as page,
        ):
            flows = json.load(page)
        time.sleep(0.1)  # what it shows is asked for again, within PATIENCE
    return flows


def test_mitmweb_opens_the_file(tmp_path):
    path = tmp_path / "cart.flows"
    message = shown(protocol="websocket", method="WEBSOCKET", path="/chat", status=101, request=body(b"hello"))
    with path.open("wb") as data:
        file = FlowFile(data)
        for event in (shown(), shown(protocol="grpc", verdict="deny", status=0, response=None), message):
            file.add(event)
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("mitmweb")), "--no-server", "--no-web-open-browser",
        "--set", f"confdir={tmp_path}", "--set", "web_password=secret",
        "--web-port", str(port), "--rfile", str(path),
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as child:
        try:
            flows = shown_by_mitmweb(port, child, 3)
        finally:
            child.kill()
    assert [flow["request"]["path"] for flow in flows] == ["/cart/17", "/cart/17", "/chat"]
    assert [flow["marked"] for flow in flows] == ["", "⛔", ""]
    assert flows[0]["response"]["status_code"] == 200
    assert flows[2]["websocket"]["messages_meta"]["count"] == 1
