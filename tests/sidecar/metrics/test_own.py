"""Our own metrics are what the sidecar says of itself, and what it does not say is left out."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read

from sidecar.metrics import own
from sidecar.metrics.registry import Histogram, Registry
from tests.settings_page import DOCS

STATS = {
    "ready": True,
    "certificate": {"remaining": 12.5, "renewals": 3, "not_after": 1.0},
    "policy": {"version": 7, "connected": False, "rejected": "signature: wrong"},
    "tunnels": {"outbound": 2, "inbound": 1},
    "limits": {"shedding": False, "idle_ended": 4, "tunnels_refused": 0},
    "dns": {"addresses": 5, "answered": 9},
    "unbound_claims": 2,
    "egress_inspection": {"client": 3},
    "connections": 11,
}


def shown(stats):
    registry = Registry()
    own.register(registry, lambda: stats, "hedgerow/1")
    text = b"".join(registry.pieces(openmetrics=True)).decode()
    return {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples} for family in read(text)
    }


def test_the_page_of_settings_tells_of_every_metric_and_of_no_other():
    written = re.findall(r"^\| `(hedgerow_\w+)` \|", (DOCS / "sidecar-settings.md").read_text(), re.MULTILINE)
    sources = [path.read_text() for path in Path(own.__file__).parents[1].rglob("*.py")]
    named = {name for source in sources for name in re.findall(r'"(hedgerow_\w+)"', source)}
    assert len(named) > len(own.NAMES)
    assert sorted(written) == sorted(named)


def test_numbers_flags_and_reasons():
    families = shown(STATS)
    expected = {
        "hedgerow_ready": {(): 1},
        "hedgerow_certificate_expiry_seconds": {(): 12.5},
        "hedgerow_certificate_renewals": {(): 3},
        "hedgerow_policy_version": {(): 7},
        "hedgerow_policy_connected": {(): 0},
        "hedgerow_policy_rejected": {(): 1},
        "hedgerow_tunnels": {("outbound",): 2, ("inbound",): 1},
        "hedgerow_limited": {("idle_ended",): 4, ("tunnels_refused",): 0},
        "hedgerow_shedding": {(): 0},
        "hedgerow_dns": {("answered",): 9},
        "hedgerow_dns_addresses": {(): 5},
        "hedgerow_egress_unbound": {(): 2},
        "hedgerow_egress_uninspected": {("client",): 3},
        "hedgerow_connections": {(): 11},
        "istio_build": {("proxy", "hedgerow/1"): 1},
    }
    assert {name: families[name] for name in expected} == expected


@pytest.mark.parametrize("stats", [{}, {"dns": None, "policy": None, "tunnels": 3}])
def test_what_is_not_there_is_left_out(stats):
    families = shown(stats)
    assert not {name.removesuffix("_total") for name in own.NAMES} & set(families)
    assert families["hedgerow_process_resident_bytes"][()] > 1 << 20


def test_a_rejection_is_over_when_its_reason_is_gone():
    assert shown({"policy": {"rejected": ""}})["hedgerow_policy_rejected"] == {(): 0}


async def test_the_loops_lag_is_looked_at(monkeypatch):
    monkeypatch.setattr("sidecar.metrics.own._LAG_INTERVAL", 0.01)
    histogram = Histogram(own.LAG_BUCKETS)
    lag = own.LoopLag(histogram)
    lag.start()
    async with asyncio.timeout(20):
        while sum(histogram.counts) < 3:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0.01)
    lag.stop()
    lag.stop()
    assert histogram.total >= 0
