"""SPIFFE IDs: what is one, what is not, and what Hedgerow reads from it."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.errors import InvalidSpiffeId
from certs.spiffe import MAX_ID_LENGTH, MAX_TRUST_DOMAIN_LENGTH, SpiffeId

TRUST_DOMAINS = st.text(string.ascii_lowercase + string.digits + "._-", min_size=1, max_size=60)
SEGMENTS = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=20).filter(
    lambda text: text not in (".", "..")
)
PATHS = st.lists(SEGMENTS, max_size=8).map(lambda segments: "".join(f"/{segment}" for segment in segments))
LABELS = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)


@given(TRUST_DOMAINS, PATHS)
def test_every_valid_id_reads_back_as_it_was_written(trust_domain: str, path: str) -> None:
    identity = SpiffeId(trust_domain, path)
    assert str(identity) == f"spiffe://{trust_domain}{path}"
    assert SpiffeId.parse(str(identity)) == identity
    assert hash(SpiffeId.parse(str(identity))) == hash(identity)


@given(LABELS, LABELS, LABELS)
def test_names_come_back_from_the_path(namespace: str, account: str, workload: str) -> None:
    identity = SpiffeId.parse(str(SpiffeId.for_workload("td", namespace, account, workload)))
    assert (identity.namespace, identity.service_account, identity.workload) == (namespace, account, workload)
    shared = SpiffeId.parse(str(SpiffeId.for_account("td", namespace, account)))
    assert (shared.namespace, shared.service_account, shared.workload) == (namespace, account, "")


@given(st.text(max_size=80))
def test_any_text_is_an_id_in_canonical_form_or_is_refused(text: str) -> None:
    for candidate in (text, "spiffe://" + text, "spiffe://td/" + text):
        try:
            identity = SpiffeId.parse(candidate)
        except InvalidSpiffeId:
            continue
        assert str(identity) == candidate
        assert candidate.isascii()
        assert not set("%?#@:[]\\ \n\0") & set(candidate.removeprefix("spiffe://"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe",
        "spiffe:",
        "spiffe:/",
        "spiffe://",
        "spiffe:///",
        "spiffe:///path",
        "//td/path",
        "td/path",
        "Spiffe://td/path",
        "SPIFFE://td/path",
        "http://td/path",
        " spiffe://td/path",
        "spiffe://td/path ",
        "spiffe://td/path\n",
        "spiffe://td\n",
        "spiffe://td\n/path",
        "spiffe://td/path\0",
        "spiffe://TD/path",
        "spiffe://tD/path",
        "spiffe://td:80/path",
        "spiffe://td:/path",
        "spiffe://u@td/path",
        "spiffe://u:p@td/path",
        "spiffe://@td/path",
        "spiffe://[::1]/path",
        "spiffe://t%64/path",
        "spiffe://tdé/path",
        "spiffe://t d/path",
        "spiffe://td*/path",
        "spiffe://td?q",
        "spiffe://td#f",
        "spiffe://td/",
        "spiffe://td//",
        "spiffe://td//path",
        "spiffe://td/path/",
        "spiffe://td/a//b",
        "spiffe://td/.",
        "spiffe://td/..",
        "spiffe://td/./a",
        "spiffe://td/../a",
        "spiffe://td/a/..",
        "spiffe://td/a%2fb",
        "spiffe://td/%2e%2e/b",
        "spiffe://td/a?q=1",
        "spiffe://td/a#f",
        "spiffe://td/a b",
        "spiffe://td/a+b",
        "spiffe://td/a:b",
        "spiffe://td/a@b",
        "spiffe://td/a\\b",
        "spiffe://td/é",
        "spiffe://td/a\n/b",
        "spiffe://td/ns/a/sa/b\n",
    ],
)
def test_what_is_no_spiffe_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.parse(text)


@pytest.mark.parametrize(
    "text",
    ["spiffe://td", "spiffe://10.0.0.1/a", "spiffe://a_b-c.d/A.b_c-D/...", "spiffe://td/.../a", "spiffe://-._/-._"],
)
def test_everything_that_the_standard_permits_is_taken(text: str) -> None:
    assert str(SpiffeId.parse(text)) == text


@pytest.mark.parametrize("path", ["a", "ns/a/sa/b", " /a", "\n/a", "/"])
def test_an_id_made_of_parts_is_checked_too(path: str) -> None:
    with pytest.raises(InvalidSpiffeId):
        SpiffeId("td", path)
    with pytest.raises(InvalidSpiffeId):
        SpiffeId("", "/a")


def test_lengths_are_bounded_exactly() -> None:
    longest = "spiffe://td/" + "a" * (MAX_ID_LENGTH - len("spiffe://td/"))
    assert len(str(SpiffeId.parse(longest))) == 2048
    with pytest.raises(InvalidSpiffeId, match="2049"):
        SpiffeId.parse(longest + "a")
    with pytest.raises(InvalidSpiffeId, match="2049"):
        SpiffeId("td", "/" + "a" * (MAX_ID_LENGTH - len("spiffe://td/") + 1))
    assert SpiffeId("a" * MAX_TRUST_DOMAIN_LENGTH).trust_domain == "a" * 255
    with pytest.raises(InvalidSpiffeId, match="256"):
        SpiffeId("a" * 256)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/ns/shop",
        "/ns/shop/sa",
        "/ns/-/sa/default/wl/10.0.0.1",
        "/ns/Shop/sa/default",
        "/ns/shop/sa/De_fault",
        "/ns/shop/sa/default/wl",
        "/ns/shop/sa/default/wl/-cart",
        "/ns/shop/sa/default/wl/cart/x",
        "/ns/shop/sa/default/WL/cart",
        "/x/ns/shop/sa/default",
        "/ns/" + "a" * 64 + "/sa/default",
        "/ns/shop/sa/" + "a" * 254,
        "/ns/a.b/sa/default",
    ],
)
def test_other_paths_name_no_workload(path: str) -> None:
    identity = SpiffeId("td", path)
    assert (identity.namespace, identity.service_account, identity.workload) == ("", "", "")


@pytest.mark.parametrize("name", ["", "-", "A", "a/b", "a_b", "..", "a\n", "é", "a" * 254])
def test_ids_are_not_made_of_what_are_no_kubernetes_names(name: str) -> None:
    for parts in ((name, "sa", "wl"), ("ns", name, "wl"), ("ns", "sa", name)):
        with pytest.raises(InvalidSpiffeId):
            SpiffeId.for_workload("td", *parts)
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.for_account("td", "ns", name)


def test_the_controllers_identities_are_apart_from_every_workloads() -> None:
    controller, signer = SpiffeId.controller("td"), SpiffeId.policy_signer("td")
    assert str(controller) == "spiffe://td/ns/hedgerow-system/sa/hedgerow-controller"
    assert str(signer) == "spiffe://td/ns/hedgerow-system/sa/hedgerow-controller/policy-signer"
    assert signer.namespace == ""
    workload = SpiffeId.for_workload("td", "hedgerow-system", "hedgerow-controller", "policy-signer")
    assert len({controller, signer, workload}) == 3


def test_a_hostile_id_does_not_break_the_message() -> None:
    with pytest.raises(InvalidSpiffeId) as refused:
        SpiffeId.parse("spiffe://td/\x1b[31m\n" + "a" * 1000)
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()
