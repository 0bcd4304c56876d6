"""Verdicts and modes in the short words that tables of tests are written in."""

from __future__ import annotations

from graph.model import Mode, Verdict

ALLOW, DENY = Verdict.ALLOW, Verdict.DENY
LEARN, AUDIT, ENFORCE, QUARANTINE = Mode.LEARN, Mode.AUDIT, Mode.ENFORCE, Mode.QUARANTINE
