"""What the administration pages show, as plain mappings: no key, no token, and no value of a probe's header.

Everything here only reads.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import hashlib
import os
import resource
import sys
import threading
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path

from certs.certificate import read_certificate
from graph.model import Snapshot
from sidecar.credentials import CredentialStore
from sidecar.dataplane.contracts import Record
from sidecar.dataplane.tunnel import Tunnel
from sidecar.metrics.own import file_bytes, open_descriptors, resident_bytes
from sidecar.observation import HttpProbe
from sidecar.settings import Address, Settings

#: Connections on one page.
MAX_CONNECTIONS = 1000


def plain(value: object) -> object:
    """Dataclasses, addresses, paths and the like as what JSON knows."""
    if isinstance(value, Address):
        return str(value)
    if isinstance(value, HttpProbe):
        shown = dataclasses.replace(value, headers=tuple((name, "(hidden)") for name, _ in value.headers))
        return {field.name: plain(getattr(shown, field.name)) for field in dataclasses.fields(shown)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, frozenset | set):
        return sorted((plain(one) for one in value), key=str)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value) if isinstance(value, Path) else f"({type(value).__name__})"


def config(settings: Settings) -> object:
    """The settings in force. They name files that hold secrets, and hold none but headers of probes."""
    return plain(settings)


def certificates(credentials: CredentialStore) -> object:
    """The chain that we show and the roots that we trust."""
    svid = credentials.svid
    return {
        "identity": str(svid.identity),
        "instance": svid.instance,
        "renewals": credentials.renewals,
        "chain": [_certificate(der) for der in svid.chain_der],
        "trust_bundle": {
            "trust_domain": svid.bundle.trust_domain,
            "sequence": svid.bundle.sequence,
            "roots": [_certificate(der) for der in svid.bundle.roots_der],
        },
    }


def _certificate(der: bytes) -> object:
    certificate = read_certificate(der, "certificate")
    return {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": format(certificate.serial_number, "x"),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "sha256": hashlib.sha256(der).hexdigest(),
    }


def snapshot(held: Snapshot) -> object:
    """The policy in force, rule by rule."""
    return plain(held)


def tunnels(outbound: Iterable[Tunnel], inbound: Iterable[Tunnel]) -> object:
    """Every tunnel, with who is at its other end and until when it was proved."""
    return {"outbound": [_tunnel(one) for one in outbound], "inbound": [_tunnel(one) for one in inbound]}


def _tunnel(tunnel: Tunnel) -> object:
    proof = tunnel.lease.proof
    return {
        "peer": str(proof.peer.spiffe_id),
        "instance": proof.peer.instance,
        "place": proof.place,
        "streams": len(tunnel.streams),
        "leaving": tunnel.leaving,
        "lease_ends": tunnel.lease.end,
    }


def connections(records: list[Record], now: float) -> object:
    """The longest living connections, and how many there are.

    :param now: seconds since the epoch
    """
    oldest = sorted(records, key=lambda record: record.opened_at)[:MAX_CONNECTIONS]
    return {"total": len(records), "connections": [_connection(record, now) for record in oldest]}


def _connection(record: Record, now: float) -> object:
    return {
        "direction": record.direction.value,
        "source": str(record.source.workload or record.source.address),
        "source_identity": record.source_identity,
        "destination": str(record.destination.workload or record.destination.host or record.destination.address),
        "destination_identity": record.destination_identity,
        "address": record.destination.address,
        "port": record.port,
        "protocol": record.protocol,
        "service": record.service,
        "verdict": record.decision.verdict.value,
        "pending": record.decision.pending.value,
        "reason": record.decision.reason.value,
        "rule": record.decision.rule_id,
        "bytes_sent": record.bytes_sent,
        "bytes_received": record.bytes_received,
        "seconds": round(max(0.0, now - record.opened_at), 3),
    }


def memory() -> object:
    """What our process takes. ``inspect_loaded``: whether the inspection engine was needed, which takes the most."""
    return {
        "resident_bytes": resident_bytes(),
        "file_bytes": file_bytes(),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "modules": len(sys.modules),
        "inspect_loaded": "mitmproxy" in sys.modules,
        "allocated_blocks": sys.getallocatedblocks(),
        "garbage_collections": [generation["collections"] for generation in gc.get_stats()],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "tasks": len(asyncio.all_tasks()),
        "open_descriptors": open_descriptors(),
        "process": os.getpid(),
    }
