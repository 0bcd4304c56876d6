"""Names of operations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.operations import check_operation
from sidecar.http.operation import LONGEST, is_clean, operation_of

NAMES = {
    b"/": "/",
    b"/cart": "/cart",
    b"/cart/": "/cart/",
    b"/cart/17": "/cart/{id}",
    b"/cart/17/": "/cart/{id}/",
    b"/cart/17/items/4": "/cart/{id}/items/{id}",
    b"/cart/-17.5": "/cart/{id}",
    b"/v2/oauth2/index.html": "/v2/oauth2/index.html",
    b"/s3/area51": "/s3/area51",
    b"/2024-01-31/12:30": "/{id}/{id}",
    b"/1.2.3": "/{id}",
    b"/6f9619ff-8b86-d011-b42d-00c04fc964ff": "/{id}",
    b"/6F9619FF-8B86-D011-B42D-00C04FC964FF/x": "/{id}/x",
    b"/commit/3f2a9c1": "/commit/{id}",
    b"/commit/9a0364b9e99bb480dd25e1f0284c8555": "/commit/{id}",
    b"/deadbeef": "/deadbeef",
    b"/facade": "/facade",
    b"/order-1234/user_4711/INV00123": "/{id}/{id}/{id}",
    b"/01ARZ3NDEKTSV4RRFFQ69G5FAV": "/{id}",
    b"/dGhpcyBpcyBhIHRva2Vu12345": "/{id}",
    b"/a-word-of-many-letters-and-no-number": "/a-word-of-many-letters-and-no-number",
    b"/caf%C3%A9/a@b.example/a,b": "/{id}/{id}/{id}",
    b"/1234.jpg/main.3f2a9c1b.js/app.js": "/{id}/{id}/app.js",
    b"/items/123:cancel": "/items/123:cancel",
    b"/" + b"x" * 64: "/" + "x" * 64,
    b"/" + b"x" * 65: "/{id}",
    b"/a?b=17": "/a",
    b"/a/../b": "/{unclear}",
    b"*": "*",
    b"/" + b"/".join([b"word"] * 200): "/{long}",
    b"/1" * 1024: "/{long}",
    b"/12345678" * 228: "/{long}",
}


@pytest.mark.parametrize(("target", "name"), NAMES.items())
def test_what_varies_has_one_name(target, name):
    assert operation_of("GET", target) == f"GET {name}"


@given(st.integers(0, 10**30))
def test_every_number_is_an_identifier(number):
    assert operation_of("GET", b"/a/%d/b" % number) == "GET /a/{id}/b"


@given(st.uuids())
def test_every_uuid_is_an_identifier(uuid):
    assert operation_of("GET", f"/a/{uuid}".encode()) == "GET /a/{id}"


@given(st.from_regex(rb"\A(/[A-Za-z0-9._~!$&'()*+,=:@%-]{0,40}){1,20}\Z"))
def test_a_clean_path_has_a_name_that_a_rule_can_have(path):
    name = operation_of("GET", path)
    assert len(name) <= LONGEST
    if is_clean(path) and not name.endswith("/{long}"):
        assert check_operation(name, "operation") == name
        assert operation_of("GET", name[4:].replace("{id}", "17").encode()) == name, "names are stable"


@given(st.binary(max_size=60))
def test_any_bytes_have_a_name(path):
    operation_of("GET", b"/" + path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"/a.b.C/Method1234", "/a.b.C/Method1234"),
        (b"/shop.Cart1000/Add", "/shop.Cart1000/Add"),
        (b"/shop.v1beta1.Cart/Add2000000", "/shop.v1beta1.Cart/Add2000000"),
        (b"/index.php/item1234", "/index.php/{id}"),
        (b"/a.b.C/Method1234/x", "/a.b.C/{id}/x"),
        (b"/1.2.C/Method1234", "/{id}/{id}"),
        (b"/Cart/Add1234", "/Cart/{id}"),
        (b"/a.b.C/" + b"X" * 600, "/{long}"),
    ],
)
def test_what_looks_like_a_call_is_no_template(path, name):
    assert operation_of("POST", path) == f"POST {name}"
    assert "Method1234" not in operation_of("GET", path)
