"""How often a pod's token is good for a certificate, and what of refusals is written down."""

from __future__ import annotations

import pytest

from controller import signings
from controller.errors import AttestationRefused
from controller.signings import BURST, INTERVAL, KEYS, RENEWALS, Complaints, Renewals, Signings

NOW = 1_700_000_000.0


def admit(counts: Signings, token: bytes = b"token", key: bytes = b"key", uid: str = "uid-1", now: float = NOW) -> int:
    return counts.admit("shop/cart-1", uid, token, key, now)


def test_a_token_signs_a_few_keys_and_the_same_one_again() -> None:
    counts = Signings()
    assert [admit(counts, key=bytes([n])) for n in range(KEYS)] == list(range(1, KEYS + 1))
    with pytest.raises(AttestationRefused) as refused:
        admit(counts, key=b"another")
    assert refused.value.code == "attestation-replayed"
    assert refused.value.pod == "shop/cart-1"
    assert "renews the token" in refused.value.remedy
    # an answer that was lost, and the kubelet's next token
    assert admit(counts, key=bytes([0])) == KEYS
    assert admit(counts, token=b"next", key=b"another") == 1


def test_a_pod_has_a_few_in_a_row_and_then_one_after_the_other() -> None:
    counts = Signings()
    for n in range(BURST):
        admit(counts, token=bytes([n]))
    with pytest.raises(AttestationRefused) as refused:
        admit(counts, token=b"x", now=NOW + INTERVAL / 2)
    assert refused.value.code == "attestation-too-often"
    assert f"in {INTERVAL / 2:.0f} s" in refused.value.remedy
    assert admit(counts, token=b"x", now=NOW + INTERVAL) == 1, "what was refused was not counted"
    assert admit(counts, token=b"y", uid="uid-2") == 1, "another pod of that name"
    with pytest.raises(AttestationRefused):
        admit(counts, token=b"z", now=NOW - 1e6)  # a clock that goes back forgives nothing


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signings, "MOST", 3)
    counts, complaints = Signings(), Complaints()
    for n in range(10):
        admit(counts, token=bytes([n]), uid=f"uid-{n}")
        assert complaints.is_new(f"shop/cart-{n}", "attestation-account", NOW)
    assert len(counts._pods) == len(counts._tokens) == len(complaints._written) == 3


def test_a_refusal_is_written_down_once_in_a_while_for_each_pod_and_reason() -> None:
    complaints = Complaints(interval=600)
    assert complaints.is_new("shop/a", "x", NOW)
    assert not complaints.is_new("shop/a", "x", NOW + 599)
    assert complaints.is_new("shop/a", "y", NOW + 1)
    assert complaints.is_new("shop/b", "x", NOW + 1)
    assert complaints.is_new("shop/a", "x", NOW + 600)
    assert complaints.is_new("shop/a", "x", NOW), "a clock that went back hides nothing"


def test_renewals_come_back_with_time_and_a_clock_that_goes_back_gives_none() -> None:
    renewals = Renewals(10.0)
    assert [renewals.admit("shop/cart-0", 100.0) for _ in range(RENEWALS)] == [0.0] * RENEWALS
    assert renewals.admit("shop/cart-0", 100.0) == 10.0
    assert renewals.admit("shop/cart-1", 100.0) == 0.0
    assert renewals.admit("shop/cart-0", 50.0) == 10.0
    assert renewals.admit("shop/cart-0", 110.0) == 0.0
    assert renewals.admit("shop/cart-0", 110.0) == 10.0
