"""Operations: which ones a person may write, and that nobody makes an edge forget what it is used for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph.errors import InvalidValue
from graph.flow import Flow
from graph.model import Direction, Protocol, Verdict, WorkloadRef
from graph.operations import (
    MAX_LENGTH,
    MAX_OPERATIONS,
    MAX_REFUSED,
    MEMORY,
    OTHER_OPERATIONS,
    OperationBook,
    check_operation,
)
from graph.views import OperationView
from graph.windows import MAX_TOTAL
from sidecar.http.operation import operation_of

NOW = 1_000_000.0
ASKED = Flow(
    WorkloadRef("shop", "front"),
    WorkloadRef("shop", "cart"),
    8080,
    Protocol.TCP,
    Direction.INBOUND,
    "cart-0",
    True,
    Verdict.ALLOW,
    Verdict.ALLOW,
    "allow-rule",
    operation="GET /cart/{id}",
    requests=3,
    first_seen=NOW - 10,
    last_seen=NOW - 5,
)
REFUSED = replace(ASKED, verdict=Verdict.DENY, pending=Verdict.DENY, reason="no-rule")


def book(*flows: Flow, now: float = NOW, room: bool = True) -> OperationBook:
    made = OperationBook()
    for flow in flows:
        made.add(flow, now, room=room)
    return made


def names(of: OperationBook) -> list[str]:
    return [view.name for view in of.views()]


def numbered(like: Flow, count: int, prefix: str = "GET /") -> list[Flow]:
    return [replace(like, operation=f"{prefix}{number:03}") for number in range(count)]


@pytest.mark.parametrize(
    "text",
    [
        "GET /",
        "GET /cart/{id}",
        "POST /hipstershop.CartService/GetCart",
        "M-SEARCH /a/{id}/b/{id}",
        "DELETE /v2/oauth2/index.html/~x/a:b/",
        "OPTIONS *",
        "WEBSOCKET /chat",
        "GET /" + "a/" * ((MAX_LENGTH - 5) // 2),
    ],
)
def test_a_method_and_a_templated_path_are_an_operation(text: str) -> None:
    assert check_operation(text, "operations[0]") == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "method"),
        ("other", "method"),
        ("/cart", "method"),
        ("get /cart", "method"),
        ("GET", "method"),
        (" GET /cart", "method"),
        ("G\x00T /cart", "method"),
        ("A" * 33 + " /", "method"),
        ("GET  /cart", "path"),
        ("GET cart", "path"),
        ("GET **", "path"),
        ("GET //cart", "path"),
        ("GET /cart/../admin", "dots"),
        ("GET /cart/.", "dots"),
        ("GET /cart;v=1", "path"),
        ("GET /a%20b", "path"),
        ("GET /cart/42", "identifier"),
        ("GET /cart/order-1234", "identifier"),
        ("GET /cart/1234.jpg", "identifier"),
        ("GET /main.3f2a9c1b.js", "identifier"),
        ("GET /8c8ff4d2-8bd4-4ad1-8c51-4f2d2b3c9d10", "identifier"),
        ("GET /3f2a9c1b", "identifier"),
        ("GET /" + "a" * 65, "identifier"),
        ("GET http://cart/", "path"),
        ("GET /cart?id=1", "path"),
        ("GET /cart#top", "path"),
        ("GET /cart HTTP/1.1", "path"),
        ("GET /cart\n", "path"),
        ("GET /café", "path"),
        ("GET /cart/{number}", "placeholder"),
        ("GET /cart/{id}.json", "placeholder"),
        ("GET /cart/{id", "placeholder"),
        ("GET /" + "a" * MAX_LENGTH, "characters"),
    ],
)
def test_what_could_never_be_the_name_of_an_operation_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        check_operation(text, "operations[0]")
    assert caught.value.field == "operations[0]"
    assert problem in caught.value.problem
    assert caught.value.remedy


segments = st.one_of(
    st.just("{id}"),
    st.sampled_from(["cart", "v2", "oauth2", "index.html", "x-y", "1a", "a1b2", "beef", "deadbeef1", "2024-01-02"]),
    st.text("ab01f.~_-:", min_size=1, max_size=12),
)


@given(st.sampled_from(["GET", "POST", "WEBSOCKET"]), st.lists(segments, max_size=4), st.booleans())
def test_what_is_accepted_is_what_a_sidecar_calls_it(method: str, path: list[str], ends: bool) -> None:
    written = f"{method} /{'/'.join(path)}{'/' if ends and path else ''}"
    called = operation_of(method, written.partition(" ")[2].replace("{id}", "1").encode())
    try:
        check_operation(written, "operations[0]")
    except InvalidValue:
        assert called != written, "it could have been a rule"
    else:
        assert called == written


def test_requests_are_added_up_by_what_became_of_them() -> None:
    tried = replace(ASKED, pending=Verdict.DENY, requests=2, first_seen=NOW - 100, last_seen=NOW - 90)
    made = book(ASKED, ASKED, tried, REFUSED, replace(ASKED, operation="GET /b", last_seen=NOW + 99))
    assert made.views() == (
        OperationView("GET /b", 3, 0, 0, NOW - 10, NOW),
        OperationView("GET /cart/{id}", 8, 3, 2, NOW - 100, NOW - 5),
    )
    assert len(made) == 2


def test_sums_stop_at_what_a_store_can_keep() -> None:
    made = OperationBook([OperationView("GET /", MAX_TOTAL, MAX_TOTAL, MAX_TOTAL)])
    for flow in (ASKED, REFUSED, replace(ASKED, pending=Verdict.DENY)):
        made.add(replace(flow, operation="GET /"), NOW, room=True)
    (view,) = made.views()
    assert (view.requests, view.denied, view.would_deny) == (MAX_TOTAL, MAX_TOTAL, MAX_TOTAL)


def test_beyond_its_places_an_edge_counts_the_rest_together() -> None:
    made = book(*numbered(ASKED, MAX_OPERATIONS + 10))
    assert len(made) == MAX_OPERATIONS + 1
    assert made.views()[-1] == OperationView(OTHER_OPERATIONS, 30, 0, 0, NOW - 10, NOW - 5)
    assert names(made)[0] == "GET /000", "those that were there first stay"


def test_who_is_refused_gets_few_places_and_yields_them_to_what_is_used() -> None:
    flood = numbered(REFUSED, 200, "GET /flood")
    made = book(ASKED, *flood)
    assert len(made) == 1 + MAX_REFUSED + 1
    assert made.views()[-1].denied == 3 * (200 - MAX_REFUSED)
    used = numbered(ASKED, MAX_OPERATIONS - 1)
    for flow in used:
        made.add(flow, NOW, room=True)
    assert names(made) == [*sorted({"GET /cart/{id}", *(flow.operation for flow in used)}), OTHER_OPERATIONS]
    assert made.views()[-1].denied == 600, "nothing refused was forgotten, only its name"
    made.add(replace(REFUSED, operation="GET /one-more"), NOW, room=True)
    assert "GET /one-more" not in names(made)


def test_an_operation_that_was_once_allowed_is_not_crowded_out_by_being_refused_now() -> None:
    made = book(*numbered(ASKED, MAX_OPERATIONS), *numbered(REFUSED, MAX_OPERATIONS))
    made.add(replace(ASKED, operation="GET /new"), NOW, room=True)
    assert "GET /new" not in names(made)
    assert names(made)[:-1] == [flow.operation for flow in numbered(ASKED, MAX_OPERATIONS)]


def test_what_was_not_seen_for_a_day_gives_its_place_up() -> None:
    made = book(*numbered(ASKED, MAX_OPERATIONS))
    later = NOW + MEMORY
    made.add(replace(ASKED, operation="GET /000", last_seen=later), later, room=True)
    for number in range(2):
        made.add(replace(REFUSED, operation=f"GET /new{number}", last_seen=later), later, room=True)
    assert {"GET /000", "GET /new0", "GET /new1", OTHER_OPERATIONS} < set(names(made))
    assert not {"GET /001", "GET /002"} & set(names(made)), "the oldest go first, by name where they are equal"
    assert made.views()[-1].requests == 6


def test_without_room_elsewhere_new_ones_are_counted_together() -> None:
    made = book(ASKED, replace(ASKED, operation="GET /b"), room=False)
    assert names(made) == [OTHER_OPERATIONS]


def test_a_sidecar_may_report_the_rest_together_itself() -> None:
    made = book(replace(ASKED, operation=OTHER_OPERATIONS), *numbered(ASKED, MAX_OPERATIONS))
    assert len(made) == MAX_OPERATIONS + 1
    assert made.views()[-1].requests == 3


@given(
    st.lists(
        st.tuples(st.integers(0, 120), st.booleans(), st.booleans(), st.sampled_from([0.0, MEMORY * 2])), max_size=300
    )
)
def test_whatever_is_asked_it_stays_bounded_and_every_request_is_counted(
    asked: list[tuple[int, bool, bool, float]],
) -> None:
    made, now = OperationBook(), NOW
    for number, allowed, room, passes in asked:
        now += passes
        flow = replace(ASKED if allowed else REFUSED, operation=f"GET /{number}", requests=1, last_seen=now)
        made.add(flow, now, room=room)
    views = made.views()
    assert len(views) <= MAX_OPERATIONS + 1
    assert sum(view.requests for view in views) == sum(allowed for _, allowed, _, _ in asked)
    assert sum(view.denied for view in views) == sum(not allowed for _, allowed, _, _ in asked)
    assert all(view.first_seen <= view.last_seen for view in views)
    again = OperationBook(views)
    assert again.views() == views
