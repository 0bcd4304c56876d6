"""Whom the ServiceAccount tokens of sidecars are for: the controller, and nobody else.

The injector projects such tokens and the controller has them reviewed, each told by a file of its own. Both read the
setting here, so that they have one default and one form; that they have one value is the chart's to see to, or that of
whoever writes the two files.
"""

from __future__ import annotations

import re
from typing import Final

from graph.fields import Check, Unfit, matching

AUDIENCE: Final = "hedgerow-controller"

_FORM = re.compile(r"[!-~]{1,253}")
#: What API servers are called by tokens that are for them, unless ``--api-audiences`` says something else.
_API_SERVER = re.compile(r"(https?://)?kubernetes(\.default(\.svc(\..*)?)?)?(:[0-9]*)?/?", re.IGNORECASE)

_plain: Check[str] = matching(_FORM, "1 to 253 visible ASCII characters without blanks")


def token_audience(value: object) -> str:
    """A name for the controller; none that the API server has, for whom every pod has a token already."""
    written = _plain(value)
    if _API_SERVER.fullmatch(written):
        raise Unfit(
            f"{written[:80]!r} is the API server, and every pod has a token for it",
            f"write a name that is the controller's alone, such as {AUDIENCE}",
        )
    return written
