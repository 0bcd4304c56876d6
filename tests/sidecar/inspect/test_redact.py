"""What a tap never shows."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.inspect.redact import HIDDEN, KEYS, Redactor

R = Redactor()
SECRET = "hunter2-hunter2"
JSON = b"application/json; charset=utf-8"


def body(data: bytes, kind: bytes = JSON, encoding: bytes = b"", limit: int = 8192, size: int | None = None):
    return R.body(kind, encoding, data, len(data) if size is None else size, limit)


@pytest.mark.parametrize(
    "name",
    ["Authorization", "cookie", "Set-Cookie", "X-Api-Key", "x-auth-token", "Proxy-Authorization", "X-My-Secret",
     "x-amz-security-token", "X-Session-Id"],
)  # fmt: skip
def test_headers_that_carry_credentials(name):
    assert R.fields(((name.encode(), SECRET.encode()),)) == ((name.encode(), HIDDEN),)


def test_other_headers_are_shown():
    fields = ((b"content-type", b"text/plain"), (b"x-request-id", b"abc"), (b"user-agent", b"curl/8"))
    assert R.fields(fields) == fields


def test_a_credential_in_a_header_of_another_name():
    assert SECRET.encode() not in R.fields(((b"x-forwarded", b"Bearer " + SECRET.encode()),))[0][1]


def test_settings_show_and_hide():
    redactor = Redactor(visible=["x-session-id"], hidden=["x-colour"])
    assert not redactor.hides("X-Session-Id")
    assert redactor.hides("X-Colour")
    assert redactor.hides("authorization")


def test_keys_of_json_at_any_depth():
    document = {"user": "ann", "password": SECRET, "deep": [{"api_key": SECRET, "n": 1}, {"accessToken": [SECRET]}]}
    shown, withheld = body(json.dumps(document).encode())
    assert SECRET.encode() not in shown
    assert not withheld
    assert json.loads(shown)["user"] == "ann"
    assert json.loads(shown)["deep"][0]["n"] == 1


def test_half_a_document_is_not_shown():
    data = json.dumps({"token": {"value": SECRET}, "more": "x" * 100}).encode()
    assert body(data[:60], size=len(data)) == (b"", "larger than what is looked at")


def test_a_document_that_is_none():
    assert body(b'{"password": {"a": "' + SECRET.encode())[0] == b""


def test_a_document_that_is_nested_too_deeply():
    data = b"[" * 5000 + json.dumps(SECRET).encode() + b"]" * 5000
    assert SECRET.encode() not in body(data, limit=65_536)[0]


def test_forms_and_queries():
    shown, _ = body(b"name=ann&password=" + SECRET.encode(), b"application/x-www-form-urlencoded")
    assert shown == b"name=ann&password=[redacted]"
    assert R.path(f"/a?x=1&access_token={SECRET}") == "/a?x=1&access_token=[redacted]"
    assert R.path("/a") == "/a"


@pytest.mark.parametrize(
    "text",
    [
        f"password: {SECRET}",
        f"password={SECRET}",
        f"<password>{SECRET}</password>",
        f'"client_secret": "{SECRET}"',
        f"Authorization: Bearer {SECRET}",
        f"db_password='{SECRET}'",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.hunter2-hunter2",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
    ],
)
def test_text_by_patterns(text):
    assert SECRET.encode() not in body(text.encode(), b"text/plain")[0]


def test_ordinary_text_stays():
    assert body(b"the quick brown fox", b"text/plain") == (b"the quick brown fox", "")


@pytest.mark.parametrize(
    "kind", [b"application/grpc", b"application/octet-stream", b"image/png", b"", b"multipart/form-data"]
)
def test_what_is_no_text_is_withheld(kind):
    assert body(SECRET.encode(), kind) == (b"", "not text")


def test_what_is_compressed_is_read_and_redacted():
    data = gzip.compress(json.dumps({"password": SECRET, "a": 1}).encode())
    shown, withheld = body(data, encoding=b"gzip")
    assert json.loads(shown) == {"password": "[redacted]", "a": 1}
    assert not withheld


def test_a_compressed_bomb_costs_what_is_shown():
    data = gzip.compress(b" " * 50_000_000)
    shown, withheld = body(data, b"text/plain", b"gzip", limit=1000)
    assert len(shown) <= 1000
    assert withheld == "shortened"


def test_unknown_compression_is_withheld():
    assert body(b"x", encoding=b"br") == (b"", "compressed")


def test_what_is_shown_is_bounded():
    shown, withheld = body(b"x" * 10_000, b"text/plain", limit=100)
    assert (len(shown), withheld) == (100, "shortened")
    fields = tuple((b"x-%d" % number, b"v" * 1000) for number in range(200))
    assert sum(len(name) + len(value) for name, value in R.fields(fields)) < 40_000


def test_bodies_are_not_there_unless_asked_for():
    message = R.message(((b"content-type", b"text/plain"),), (), 5, None, 100)
    assert (message.body, message.size) == (b"", 5)


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_no_document_shows_what_is_under_a_hidden_key(document):
    data = json.dumps([document, {"x_token_y": [document, SECRET]}, {"deep": {"PassWord": SECRET}}]).encode()
    assert SECRET.encode() not in body(data, limit=1 << 16)[0]


@given(st.binary(max_size=300), st.sampled_from([b"", b"gzip", b"deflate"]))
def test_no_bytes_are_a_fault(data, encoding):
    for kind in (JSON, b"text/xml", b"application/x-www-form-urlencoded"):
        shown, _ = body(data, kind, encoding, limit=50)
        assert len(shown) <= 50


def test_every_key_is_hidden():
    assert all(R.hides(f"my_{key}_x") for key in KEYS)
