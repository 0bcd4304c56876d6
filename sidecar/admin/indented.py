"""JSON for people, as ``json.dumps`` indents it, without what that leaves behind.

Python's own encoder, asked to indent, makes a dozen functions for every document that refer to one another: garbage
that only a collection finds. A sidecar that is watched would have more of it than of anything else.
"""

from __future__ import annotations

import json


def indented(value: object, _margin: str = "\n") -> str:
    """What ``json.dumps(value, indent=2, sort_keys=True, default=str)`` gives.

    :param value: numbers, texts, and lists and mappings of them; everything else is shown as its ``str``
    """
    inner = f"{_margin}  "
    if isinstance(value, dict) and value:
        pairs = [f"{_name(key)}: {indented(value[key], inner)}" for key in sorted(value)]
        return f"{{{inner}{f',{inner}'.join(pairs)}{_margin}}}"
    if isinstance(value, (list, tuple)) and value:
        return f"[{inner}{f',{inner}'.join([indented(item, inner) for item in value])}{_margin}]"
    return json.dumps(value, default=str)


def _name(key: object) -> str:
    """A mapping's key: JSON has texts only."""
    return json.dumps(key if isinstance(key, str) else json.dumps(key))
