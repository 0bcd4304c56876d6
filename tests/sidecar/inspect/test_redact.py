"""What a tap never shows."""

from __future__ import annotations

import gzip
import json
import time

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
    ["Authorization", "x-auth-key", "X-Auth", "authentication",
     "cookie", "Set-Cookie", "X-Api-Key", "x-auth-token", "Proxy-Authorization", "X-My-Secret",
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
        "eyJhbGciOiJkaXIiLCJlbmMiOiJBMTI4R0NNIn0..aXYtaXYtaXY.hunter2-hunter2.dGFn",
        f"user[password]={SECRET}",
        f"user%5Bpassword%5D={SECRET}",
        f"password          =\n          {SECRET}",
        f"'password' => '{SECRET}'",
        f'password="x\\\n{SECRET}"',
        f"pass_word: {SECRET}",
        f"authorization: Digest {SECRET}, {SECRET}",
        f"Cookie: a=b; c={SECRET}",
        f'{{"log": "password=\\"x {SECRET}\\" and more"}}',
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
    ],
)
def test_text_by_patterns(text):
    assert SECRET.encode() not in body(text.encode(), b"text/plain")[0]


@pytest.mark.parametrize(
    "text",
    [
        f'<password type="x">{SECRET}</password>',
        f"<password><![CDATA[{SECRET}]]></password>",
        f"<n:password><n:value>{SECRET}</n:value></n:password>",
        f"<password><!-- > -->{SECRET}",
        f'<user password="{SECRET}"/>',
    ],
)
def test_elements(text):
    for kind in (b"text/xml", b"application/soap+xml", b"text/html"):
        shown, _ = body(f"<a>{text}</a><b>shown</b>".encode(), kind)
        assert SECRET.encode() not in shown
        assert shown.startswith(b"<a>")
    assert b"<b>shown</b>" in body(b"<password>x</password><password/><b>shown</b>", b"text/xml")[0]


@pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "utf-7", "utf-32", "cp037"])
def test_text_in_which_names_do_not_look_as_they_do_in_ascii_is_withheld(charset):
    data = f"password={SECRET}".encode(charset)
    for kind in (f"text/plain; charset={charset}", f'text/plain;charset="{charset}"'):
        assert body(data, kind.encode())[0] == b""
    if b"\0" in data:
        assert body(data, b"text/plain")[0] == b""
    assert body(b"<?xml version='1.0' encoding='" + charset.encode() + b"'?>" + data, b"text/xml")[0] == b""
    assert body("grün".encode(), b"text/plain; charset=UTF-8") == ("grün".encode(), "")


def test_a_body_with_two_encodings_is_withheld():
    fields = ((b"content-type", b"text/plain"), (b"content-encoding", b"identity"), (b"Content-Encoding", b"gzip"))
    data = gzip.compress(SECRET.encode())
    assert R.message(fields, (), len(data), data, 8192).body == b""


def test_a_document_within_a_document():
    inner = json.dumps({"b": json.dumps([{"password": f'a"{SECRET}'}]), "kept": 1})
    shown = json.loads(body(json.dumps({"body": inner}).encode())[0])
    assert SECRET not in str(shown)
    assert json.loads(shown["body"])["kept"] == 1


@pytest.mark.parametrize(
    "path",
    ["/a;jsessionid=*", "/a?b=1;token=*", "/a?%74oken=*", "/a?%2574oken=*", "/a?user%5Bpassword%5D=*",
     "/a?next=%2Fb%3Ftoken%3D*", "/a?q=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.*", "/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.*/b"],
)  # fmt: skip
def test_paths_that_carry_credentials(path):
    assert SECRET not in R.path(path.replace("*", SECRET))
    assert SECRET.encode() not in R.fields(((b"referer", f"http://x{path.replace('*', SECRET)}".encode()),))[0][1]
    form = path.partition("?")[2].replace("*", SECRET).encode()
    assert SECRET.encode() not in body(form, b"application/x-www-form-urlencoded")[0]


@pytest.mark.parametrize(
    "data",
    [
        b"a" * 400_000,
        b"token" * 80_000,
        b"eyJ" * 130_000,
        b"eyJaaaaaaa" * 40_000,
        b"token" + b" " * 400_000,
        b"token" + b"\\" * 400_000,
        b'a:"a:\\"' * 50_000,
        b'token=\\"a"' * 40_000,
        b"<a " * 130_000,
        b"<a><![CDATA[" * 30_000,
        b"-----BEGIN " * 40_000,
        b"bearer " * 60_000,
        b"%2525" * 80_000,
    ],
)
def test_looking_takes_time_that_grows_with_the_text_and_no_faster(data):
    """Of a text made to be slow to look at: the patterns of before took from 3 to 200 s of these."""
    before = time.thread_time()
    R.fields(((b"x", data[:30_000]),))
    body(data, b"text/html", limit=len(data))
    R.path("/?" + data.decode())
    assert time.thread_time() - before < 3.0  # of our own work, however busy the machine is; a tenth is usual


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
