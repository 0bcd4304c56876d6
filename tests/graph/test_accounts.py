"""What one edge's verdict is after connections that outlive a change of policy; see also test_service_graph."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graph.accounts import EdgeAccounts
from graph.flow import EdgeKey, Flow
from graph.model import Direction, Protocol, Verdict, WorkloadRef
from graph.views import EdgeVerdict

FRONT, CART = WorkloadRef("shop", "front"), WorkloadRef("shop", "cart")
NOW = 100.0
LEARNING = Flow(
    FRONT, CART, 8080, Protocol.TCP, Direction.OUTBOUND, "front-0", True, Verdict.ALLOW, Verdict.DENY, "learning",
    connections=1, bytes_sent=10, first_seen=10.0, last_seen=20.0,
)  # fmt: skip
#: The same connection's bytes after the rule for it was pushed.
GOES_ON = replace(LEARNING, pending=Verdict.ALLOW, reason="allow-rule", connections=0, last_seen=30.0)
REFUSED = replace(LEARNING, verdict=Verdict.DENY, reason="no-rule", last_seen=25.0)


def verdict(*reports: Flow) -> EdgeVerdict:
    accounts = EdgeAccounts(EdgeKey(FRONT, CART, 8080))
    for report in reports:
        accounts.add(report, NOW)
    return accounts.view("").verdict


def test_a_connection_that_goes_on_under_a_new_rule_is_allowed_by_it() -> None:
    assert verdict(LEARNING) is EdgeVerdict.WOULD_DENY
    assert verdict(LEARNING, GOES_ON) is EdgeVerdict.ALLOW


def test_and_when_the_rule_is_gone_it_is_not() -> None:
    without = replace(GOES_ON, pending=Verdict.DENY, reason="learning", last_seen=40.0)
    assert verdict(LEARNING, GOES_ON, without) is EdgeVerdict.WOULD_DENY


@pytest.mark.parametrize("reports", [(LEARNING, REFUSED, GOES_ON), (LEARNING, GOES_ON, REFUSED)])
def test_its_bytes_hide_no_refusal_of_others(reports: tuple[Flow, ...]) -> None:
    assert verdict(*reports) is EdgeVerdict.DENY


def test_an_older_report_that_comes_late_changes_nothing() -> None:
    assert verdict(LEARNING, GOES_ON, replace(LEARNING, connections=0, last_seen=21.0)) is EdgeVerdict.ALLOW
