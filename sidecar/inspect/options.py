"""Options that mitmproxy's layers ask for, with the values that fit a sidecar."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LayerOptions:
    """Stands in for ``mitmproxy.options.Options``, which can be made only together with its addons.

    :param stream_large_bodies: from which size on a body that is collected is streamed after all; None: never
    """

    stream_large_bodies: str | None = None
    body_size_limit: str | None = None
    connection_strategy: str = "lazy"
    http2_ping_keepalive: int = 0
    keep_host_header: bool = True
    normalize_outbound_headers: bool = True
    proxy_debug: bool = False
    rawtcp: bool = False
    store_streamed_bodies: bool = False
    validate_inbound_headers: bool = True
    websocket: bool = True
