"""What the API server's audit log says of those whose rights are tested."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def refused(events: Iterable[dict[str, Any]]) -> list[str]:
    """What they asked for and may not.

    A namespace or a custom resource definition that ends takes nothing, from nobody: "is being terminated", and "while
    custom resource definition is terminating".
    """
    return [
        event["requestURI"]
        for event in events
        if event["responseStatus"]["code"] in (401, 403)
        and not any(word in event["responseStatus"].get("message", "") for word in ("terminated", "terminating"))
    ]
