"""The audit chain holds when nobody touched it, and names the first entry that somebody did."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.audit import GENESIS, append, entry_hash, verify
from controller.view import AuditEntry


def chain(length: int) -> list[AuditEntry]:
    made: list[AuditEntry] = []
    for number in range(length):
        last = made[-1] if made else None
        made.append(append(last, 100.0 + number, "ann", "mode.set", "shop/cart", {"reason": f"r{number}", "ä": [1]}))
    return made


def test_an_untouched_chain_holds() -> None:
    entries = chain(5)
    found = verify(entries, entries[-1])
    assert found.intact
    assert (found.sequence, found.hash) == (5, entries[-1].hash)
    assert entries[0].previous == GENESIS


def test_an_empty_chain_holds_unless_something_is_known_to_be_in_it() -> None:
    assert verify([]).intact
    assert "missing" in verify([], chain(1)[0]).problem


@pytest.mark.parametrize(
    ("field", "value"),
    [("at", 1.0), ("actor", "bob"), ("action", "x"), ("subject", "x"), ("detail", "{}"), ("previous", "f" * 64)],
)
def test_a_changed_entry_is_found(field: str, value: object) -> None:
    entries = chain(4)
    entries[2] = replace(entries[2], **{field: value})
    found = verify(entries)
    assert not found.intact
    assert "entry 3" in found.problem
    assert found.sequence == 2


def test_a_changed_entry_is_found_even_when_its_own_hash_was_made_anew() -> None:
    entries = chain(4)
    forged = replace(entries[1], actor="bob")
    entries[1] = replace(forged, hash=entry_hash(forged))
    assert "entry 3 does not follow" in verify(entries).problem


def test_a_dropped_entry_is_found() -> None:
    entries = chain(4)
    assert "entry 2 is missing" in verify(entries[:1] + entries[2:]).problem


def test_a_chain_cut_short_is_found_by_its_head() -> None:
    entries = chain(4)
    assert verify(entries[:3]).intact  # which the chain alone cannot know
    assert "up to 4" in verify(entries[:3], entries[-1]).problem


def test_a_chain_written_anew_is_found_by_its_head() -> None:
    entries, other = chain(3), []
    for number in range(3):
        other.append(append(other[-1] if other else None, float(number), "bob", "x", "y", {}))
    assert "entry 3 is not the one" in verify(other, entries[-1]).problem


def test_a_huge_detail_is_kept_as_its_hash() -> None:
    entry = append(None, 1.0, "ann", "x", "y", {"text": "z" * 100_000})
    assert len(entry.detail) < 200
    assert '"sha256"' in entry.detail
    assert verify([entry]).intact
