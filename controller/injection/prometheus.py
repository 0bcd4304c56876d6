"""``prometheus.io`` annotations: the application's metrics are shown behind the sidecar's, on the sidecar's port.

A scraper can not speak mutual TLS with the application's port. The sidecar fetches from it and shows both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from controller.injection.names import PORTS, STATS_PORT
from controller.injection.probes import Application

PORT: Final = "prometheus.io/port"
PATH: Final = "prometheus.io/path"
STATS_PATH: Final = "/stats/prometheus"

_NUMBER = re.compile(r"[0-9]{1,5}")
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


def merged(
    annotations: Mapping[str, str], application: Application, warnings: list[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the sidecar is to fetch, and the annotations that lead to it; both empty where there is nothing to merge."""
    if annotations.get("prometheus.io/scrape") != "true":
        return {}, {}
    written = annotations.get(PORT, "")
    port = int(written) if _NUMBER.fullmatch(written) else 0
    if not 1 <= port <= 65535 or port in PORTS:
        warnings.append(f"{PORT}: {written[:40]!r} is no port of the application; its metrics are not merged")
        return {}, {}
    if annotations.get("prometheus.io/scheme", "http") != "http":
        warnings.append("prometheus.io/scheme: metrics over HTTPS are not merged with the sidecar's")
        return {}, {}
    path = quote(annotations.get(PATH, "/metrics").partition("#")[0], safe=_VISIBLE)
    target = path if path.startswith("/") else f"/{path}"
    if len(target) > 1000:
        warnings.append(f"{PATH}: too long; the application's metrics are not merged")
        return {}, {}
    place, address = application.place(port)
    return {"port": place, "path": target, **address}, {PORT: str(STATS_PORT), PATH: STATS_PATH}
