"""The audit log: a chain of entries in which none can be changed, dropped or put in between without a trace.

The hash of an entry is SHA-256 over its canonical JSON (keys sorted, no spaces, UTF-8) with the hash of the entry
before in it; the first one's predecessor is 64 zeros. Whoever keeps the newest hash elsewhere can prove the whole past
by it.

This module computes and checks; what is kept, and where, is the store's business.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from controller.view import AuditEntry

GENESIS = "0" * 64
MAX_DETAIL = 16_384


def canonical(value: Mapping[str, object]) -> str:
    """JSON in one spelling only.

    :raises ValueError: for a number that JSON has no form for
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def entry_hash(entry: AuditEntry) -> str:
    """What ``entry.hash`` has to be."""
    content = {
        "sequence": entry.sequence,
        "at": entry.at,
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "detail": entry.detail,
        "previous": entry.previous,
    }
    return hashlib.sha256(canonical(content).encode("utf-8", "surrogatepass")).hexdigest()


def append(
    last: AuditEntry | None, at: float, actor: str, action: str, subject: str, detail: Mapping[str, object]
) -> AuditEntry:
    """The entry that follows ``last`` (None: the first one). A detail beyond 16 KiB is replaced by its hash."""
    text = canonical(detail)
    if len(text) > MAX_DETAIL:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        text = canonical({"shortened": True, "characters": len(text), "sha256": digest})
    entry = AuditEntry(
        sequence=last.sequence + 1 if last is not None else 1,
        at=float(at),
        actor=actor,
        action=action,
        subject=subject,
        detail=text,
        previous=last.hash if last is not None else GENESIS,
        hash="",
    )
    return replace(entry, hash=entry_hash(entry))


@dataclass(frozen=True, slots=True)
class Verified:
    """How far the chain holds.

    :param sequence: of the last entry that was checked; 0 when there was none
    :param problem: what is wrong with the entry after it; empty when nothing is
    """

    sequence: int
    hash: str
    problem: str = ""

    @property
    def intact(self) -> bool:
        return not self.problem


def verify(entries: Iterable[AuditEntry], head: AuditEntry | None = None) -> Verified:
    """Check a whole chain, oldest first.

    :param head: the entry that is known, from elsewhere, to be in it; it finds a chain that was cut short
    """
    sequence, last_hash = 0, GENESIS
    held = head is None
    for entry in entries:
        if entry.sequence != sequence + 1:
            return Verified(
                sequence, last_hash, f"entry {sequence + 1} is missing: {entry.sequence} follows {sequence}"
            )
        if not hmac.compare_digest(entry.previous, last_hash):
            return Verified(sequence, last_hash, f"entry {entry.sequence} does not follow the one before it")
        if not hmac.compare_digest(entry.hash, entry_hash(entry)):
            return Verified(sequence, last_hash, f"entry {entry.sequence} was changed after it was written")
        sequence, last_hash = entry.sequence, entry.hash
        if head is not None and entry.sequence == head.sequence:
            if entry.hash != head.hash:
                return Verified(sequence - 1, entry.previous, f"entry {entry.sequence} is not the one that was written")
            held = True
    if not held and head is not None:
        return Verified(sequence, last_hash, f"the entries after {sequence} are missing, up to {head.sequence}")
    return Verified(sequence, last_hash)
