"""Rules of capture: the usual ones, and all that can be asked for."""

from __future__ import annotations

from sidecar.capture_rules import CaptureRules

RULES = CaptureRules(exclude_cidrs=("10.1.0.0/16", "10.1.2.0/24", "fd00:1::/32"), mark=0x539)
#: Everything that can be asked for.
WHOLE = CaptureRules(
    exclude_cidrs=("10.1.0.0/16",),
    exclude_outbound_ports=(3306, 25),
    exclude_inbound_ports=(9100,),
    dns_port=15053,
    drop_others=True,
)
