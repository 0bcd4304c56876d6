"""Header rules, and the settings that they are read from."""

from __future__ import annotations

import pytest

from graph.fields import Unfit
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings, Limits, OnAddonError, read_inspect
from tests.sidecar.inspect.connection import rule

OK = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 2\r\n\r\nok"
RULES = [
    {
        "operations": ["GET /cart/*"],
        "request": {"set": {"X-Env": "prod"}, "remove": ["X-Debug"]},
        "response": {"set": {"Cache-Control": "no-store"}, "remove": ["server"]},
    }
]


def head(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: cart\r\nX-Debug: 1\r\nx-env: dev\r\n\r\n".encode()


async def test_headers_are_set_and_removed_by_operation(world):
    hub = Inspection(read_inspect({"headers": RULES, "limits": {"slice": 1.0}}))
    w = world(rule(), hub=hub)
    c = w.connect()
    c.client.give(head("/cart/17"))
    sent = c.application.read()
    assert b"X-Debug" not in sent
    assert sent.lower().count(b"x-env: ") == 1
    assert b"x-env: prod\r\n" in sent
    c.application.give(OK)
    answer = c.client.read()
    assert b"Server" not in answer
    assert b"cache-control: no-store\r\n" in answer
    c.client.give(head("/other"))
    assert b"X-Debug: 1" in c.application.read()
    c.application.give(OK)
    assert c.client.read() == OK


def test_a_port_with_rules_is_inspected():
    settings = read_inspect({"headers": [{"ports": [8080], "request": {"remove": ["x"]}}]})
    assert settings.wants(8080)
    assert not settings.wants(9090)


def test_everything_can_be_written():
    settings = read_inspect(
        {
            "limits": {"resets": 5, "stall": 1.5},
            "addons": ["/etc/addon.py"],
            "addon_bodies": 1000,
            "on_addon_error": "pass",
            "visible": ["X-Session-Id"],
            "hidden": ["x-colour"],
        }
    )
    assert settings.limits == Limits(resets=5, stall=1.5)
    assert settings.on_addon_error is OnAddonError.PASS
    assert settings.visible == {"x-session-id"}
    assert settings.wants(1)
    assert read_inspect({}) == InspectSettings()


def test_ports_that_are_always_inspected():
    settings = read_inspect({"ports": [8080]})
    assert settings.wants(8080)
    assert not settings.wants(9090)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"limit": {}}, "limit"),
        ({"limits": {"resets": 0}}, "resets"),
        ({"limits": {"stream_window": 1 << 24}}, "stream_window"),
        ({"addons": ["addon.py"]}, "addons"),
        ({"ports": [0]}, "ports"),
        ({"on_addon_error": "ignore"}, "on_addon_error"),
        ({"headers": [{"request": {"set": {"Host": "x"}}}]}, "set"),
        ({"headers": [{"request": {"set": {"content-length": "1"}}}]}, "set"),
        ({"headers": [{"request": {"set": {"x": "a\r\nb: c"}}}]}, "set"),
        ({"headers": [{"request": {"remove": ["x-forwarded-client-cert"]}}]}, "remove"),
        ({"headers": [{"request": {"remove": ["a b"]}}]}, "remove"),
        ({"headers": [{"operations": ["GET /"]}]}, "request"),
        ({"headers": [{"request": {}, "reponse": {}}]}, "reponse"),
    ],
)
def test_what_is_not_understood_is_refused(value, name):
    with pytest.raises(Unfit) as refusal:
        read_inspect(value)
    assert name in str(refusal.value.inner) + str(refusal.value.problem)
