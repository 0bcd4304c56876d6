"""Makes any text fit for a document or a terminal."""

from __future__ import annotations

import re

# Control characters, line and paragraph separators, bidirectional overrides, halves of surrogate pairs and
# non-characters: not allowed in XML 1.0 (section 2.2), or able to make a document read as something else.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """``text`` with a replacement character in place of everything that is not to be shown as it is."""
    return _UNPRINTABLE.sub("\ufffd", text)
