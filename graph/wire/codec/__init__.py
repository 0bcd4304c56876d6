"""Wire form to vocabulary and back; the only place of ours that protobuf values pass through.

The governing rules:

1. What is not understood is refused, never skipped: an unknown enumeration, an unknown field, a missing selector. A
   rule that is understood by half can only be wider than it was meant.
2. One bad part rejects the whole message. The caller keeps the last good one.
3. Every length and number is bounded here, so that nothing behind this package has to ask again.
4. Every refusal is a :class:`~graph.errors.DecodeError` that names the field, whatever the bytes were.
5. What would be refused when it is read is not written as a snapshot either, so that a controller learns of it before
   its sidecars do.
"""

from graph.wire.codec.destinations import (
    destination_from_message,
    destination_to_message,
    endpoint_from_message,
    endpoint_to_message,
)
from graph.wire.codec.flows import flow_from_message, flow_to_message
from graph.wire.codec.snapshots import (
    decode_snapshot,
    encode_snapshot,
    rule_from_message,
    rule_to_message,
    selector_from_message,
    selector_to_message,
    snapshot_from_message,
    snapshot_to_message,
)

__all__ = [
    "decode_snapshot",
    "destination_from_message",
    "destination_to_message",
    "encode_snapshot",
    "endpoint_from_message",
    "endpoint_to_message",
    "flow_from_message",
    "flow_to_message",
    "rule_from_message",
    "rule_to_message",
    "selector_from_message",
    "selector_to_message",
    "snapshot_from_message",
    "snapshot_to_message",
]
