"""A run of the demo fails for every single thing that is not as it should be."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from graph.flow import EdgeKey
from hedgerow.local.attacks import CONTROLS, Attack, attempts
from hedgerow.local.summary import OverrideTrial, Result, show

EDGE = EdgeKey.parse("shop/front->shop/cart:8080/TCP")
OTHER = EdgeKey.parse("shop/shipping->data/database:5432/TCP")
ATTACK = Attack("shop/intruder", "data/database", 5432, blocked=True, witnessed=True, how="by pod address: reset")
TRIAL = OverrideTrial(OTHER, True, True, 20.04, True, True)
GOOD = Result(
    confinement="root",
    services=9,
    instances=13,
    edges_expected=frozenset({EDGE}),
    edges_observed=frozenset({EDGE}),
    mtls_ratio=1.0,
    mtls_connections=100,
    false_denies=0,
    attacks=(ATTACK,),
    override=TRIAL,
    network_policies=11,
    requests=300,
    failed_requests=0,
    errors=(),
    seconds=33.333,
)


def test_a_good_run_has_nothing_to_complain_of() -> None:
    assert GOOD.failures() == []
    assert GOOD.document()["ok"] is True


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (replace(GOOD, edges_observed=frozenset()), "expected and not observed: shop/front->shop/cart:8080/TCP"),
        (replace(GOOD, edges_observed=frozenset({EDGE, OTHER})), "observed and not expected: shop/shipping"),
        (replace(GOOD, mtls_ratio=0.99), "only 0.9900 of 100 connections"),
        (replace(GOOD, mtls_ratio=0.0, mtls_connections=0), "only 0.0000 of 0 connections"),
        (replace(GOOD, false_denies=1), "1 connections on expected edges were refused"),
        (replace(GOOD, attacks=(replace(ATTACK, blocked=False),)), "an attack got through: shop/intruder"),
        (replace(GOOD, attacks=(replace(ATTACK, witnessed=False),)), "no sidecar reported"),
        (replace(GOOD, override=replace(TRIAL, denied_before=False)), "the override did not do"),
        (replace(GOOD, override=replace(TRIAL, allowed_after=False)), "the override did not do"),
        (replace(GOOD, override=replace(TRIAL, denied_after_expiry=False)), "the override did not do"),
        (replace(GOOD, override=replace(TRIAL, cut_after_expiry=False)), "the override did not do"),
        (replace(GOOD, network_policies=0), "no NetworkPolicy"),
        (replace(GOOD, requests=0), "no traffic"),
        (replace(GOOD, failed_requests=2, errors=("GET /: 502",)), "2 of 300 requests failed: GET /: 502"),
    ],
)
def test_every_defect_fails_the_run_and_is_shown(bad: Result, complaint: str) -> None:
    assert len(bad.failures()) == 1
    assert complaint in bad.failures()[0]
    assert bad.document()["ok"] is False
    said = io.StringIO()
    show(bad, Console(file=said, width=200))
    assert complaint in said.getvalue()
    assert "nothing else does" not in said.getvalue()


def test_the_document_has_the_agreed_form() -> None:
    document = json.loads(json.dumps(GOOD.document()))
    edge = {"from": "shop/front", "to": "shop/cart", "port": 8080, "protocol": "TCP"}
    attack = {"from": "shop/intruder", "to": "data/database", "port": 5432, "blocked": True}
    override = {"denied_before": True, "allowed_after": True, "push_ms": 20.0, "denied_after_expiry": True}
    numbers = {"services": 9, "instances": 13, "mtls_ratio": 1.0, "false_denies": 0, "network_policies": 11}
    assert document["edges_expected"] == document["edges_observed"] == [edge]
    assert document["edges_missing"] == document["edges_unexpected"] == []
    assert document["attacks"][0].items() >= attack.items()
    assert document["override"].items() >= override.items()
    assert document.items() >= {**numbers, "requests": 300, "failed_requests": 0, "seconds": 33.3}.items()


def test_markup_in_what_an_application_said_is_only_text() -> None:
    said = io.StringIO()
    show(replace(GOOD, failed_requests=1, errors=("[/bold] [red]",)), Console(file=said, width=200))
    assert "[/bold] [red]" in said.getvalue()
    said = io.StringIO()
    show(replace(GOOD, attacks=(replace(ATTACK, how="said: [/x] b'[red]'"),)), Console(file=said, width=200))
    assert "[/x]" in said.getvalue()


def test_every_attacked_service_is_proved_to_answer_others() -> None:
    controlled = {target for _, target in CONTROLS}
    assert {attempt.target for attempt in attempts("hedgerow.local")} <= controlled


def test_both_kinds_of_attackers_try() -> None:
    tried = attempts("hedgerow.local")
    assert {attempt.pod for attempt in tried} == {"shop/intruder-0", "shop/recommendation-0", "shop/shipping-0"}
    assert any(attempt.forged for attempt in tried)
