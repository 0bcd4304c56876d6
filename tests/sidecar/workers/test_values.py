"""Settings go to a worker and come back as they were; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from certs.spiffe import SpiffeId
from graph.model import InspectedHost
from sidecar.dataplane.lease import Proof, Shown
from sidecar.dataplane.settings import DataPlaneSettings
from sidecar.inspect.settings import EgressSettings, HeaderRule, InspectSettings, OnAddonError
from sidecar.settings import Settings
from sidecar.workers import values
from sidecar.workers.settings import WorkerSettings, worker_settings

DOCUMENT = {
    "instance": "cart-1",
    "controller": "10.0.0.1:15012",
    "issuer": "10.0.0.1:15013",
    "trust_domain": "hedgerow.test",
    "trust_bundle": "bundle.pem",
    "state_dir": "state",
    "addresses": ["10.0.0.7", "fd00::7"],
    "workers": 3,
}


def there_and_back(value):
    return values.decode(type(value), json.loads(json.dumps(values.encode(value))))


def test_a_workers_settings():
    made = worker_settings(Settings.parse(DOCUMENT), 2)
    assert there_and_back(made) == made
    assert made.data_plane.inbound_listen[0].port == 15006
    assert made.data_plane.inbound_listen[1].host == "::"


def test_a_workers_settings_with_everything_in_them():
    explicit = {
        "outbound": [{"listen": "127.0.0.1:1", "destination": "10.0.0.9:80"}],
        "inbound": [{"listen": "10.0.0.7:80", "application": "127.0.0.1:8080"}],
    }
    document = {**DOCUMENT, "capture": "explicit", "explicit": explicit, "limits": {"connections": 100}}
    made = worker_settings(Settings.parse(document), 0)
    rule = HeaderRule(("GET /*",), (80,), ((b"x-a", b"\x01b"),), frozenset({b"x-c", b"x-d"}))
    inspect = InspectSettings(
        headers=(rule,),
        addons=(Path("/etc/addon.py"),),
        on_addon_error=OnAddonError.PASS,
        hidden=frozenset({"x-secret"}),
        egress=EgressSettings(Path("/roots"), None, frozenset({InspectedHost("api.example.com", 8443)})),
    )
    made = dataclasses.replace(made, inspect=inspect)
    assert there_and_back(made) == made


def test_each_worker_has_its_part_of_what_holds_for_all():
    made = worker_settings(Settings.parse(DOCUMENT), 0)
    whole = DataPlaneSettings()
    for name in ("connections", "handshakes", "buffered_bytes"):
        assert 0 <= 3 * getattr(made.data_plane, name) - getattr(whole, name) < 3
    assert made.data_plane.streams_per_tunnel == whole.streams_per_tunnel


def test_a_proof():
    ours = Shown(SpiffeId.parse("spiffe://hedgerow.test/ns/shop/sa/default/wl/cart"), "cart-1", 1.5)
    peer = Shown(SpiffeId.parse("spiffe://hedgerow.test/ns/shop/sa/default"), "", 2.5)
    proof = Proof(ours, peer, "10.0.0.9")
    assert there_and_back(proof) == proof


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("index",), "1", "WorkerSettings.index"),
        (("index",), True, "WorkerSettings.index"),
        (("telemetry",), 1, "WorkerSettings.telemetry"),
        (("addresses",), "10.0.0.7", "WorkerSettings.addresses"),
        (("addresses",), [1], r"WorkerSettings.addresses\[0\]"),
        (("unsynced",), "dney", "WorkerSettings.unsynced"),
        (("data_plane", "mark"), None, "WorkerSettings.data_plane.mark"),
        (("data_plane", "inbound_listen"), [["h"]], r"WorkerSettings.data_plane.inbound_listen\[0\]"),
        (("data_plane", "inbound_listen"), [["h", "1"]], r"inbound_listen\[0\].port"),
        (("data_plane", "more"), 1, "WorkerSettings.data_plane"),
        (("inspect", "headers"), [{}], r"WorkerSettings.inspect.headers\[0\]"),
        (("report_interval",), "1", "WorkerSettings.report_interval"),
    ],
)
def test_what_does_not_fit_is_named(path, value, where):
    written = values.encode(worker_settings(Settings.parse(DOCUMENT), 0))
    inner = written
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(values.Misfit, match=f"{where}$"):
        values.decode(WorkerSettings, written)


def test_what_is_missing_is_refused():
    written = values.encode(worker_settings(Settings.parse(DOCUMENT), 0))
    del written["count"]
    with pytest.raises(values.Misfit):
        values.decode(WorkerSettings, written)


def test_a_bad_identity_is_refused():
    with pytest.raises(values.Misfit):
        values.decode(Shown, {"spiffe_id": "https://x", "instance": "", "not_after": 1.0, "certificate": ""})
