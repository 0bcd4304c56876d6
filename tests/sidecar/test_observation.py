"""The settings of probes, metrics and the access log are read strictly."""

from __future__ import annotations

import pytest

from sidecar.errors import ConfigError
from sidecar.observation import GrpcProbe, HttpProbe, MergedMetrics, MetricSettings, Probe, TcpProbe
from sidecar.settings import Address, Settings
from tests.sidecar.test_settings import LEAST

EXPLICIT = LEAST | {
    "capture": "explicit",
    "explicit": {"inbound": [{"listen": "10.0.0.7:80", "application": "127.0.0.1:8080"}]},
}


def parse(**settings):
    return Settings.parse(LEAST | settings)


def test_istios_ports_where_connections_are_captured():
    settings = parse()
    assert (str(settings.admin_listen), str(settings.stats_listen)) == ("127.0.0.1:15000", "0.0.0.0:15020")
    assert (settings.access_log, settings.probes, settings.merge_metrics) == ("off", (), None)
    assert settings.metrics == MetricSettings("", "", "", 256)
    assert {"admin_listen", "stats_listen"} <= {name for name, _ in settings.listeners()}


def test_no_ports_where_sidecars_may_share_an_address_unless_they_are_named():
    settings = Settings.parse(EXPLICIT)
    assert (settings.admin_listen, settings.stats_listen) == (None, None)
    settings = Settings.parse(EXPLICIT | {"admin_listen": "[::1]:1500", "stats_listen": "10.0.0.7:15020"})
    assert (settings.admin_listen, settings.stats_listen) == (Address("::1", 1500), Address("10.0.0.7", 15020))


def test_they_can_be_left_out():
    settings = parse(admin_listen=None, stats_listen=None)
    assert (settings.admin_listen, settings.stats_listen) == (None, None)


def test_everything_can_be_set():
    probes = [
        {
            "container": "web",
            "kind": "livez",
            "timeout": 2,
            "http": {
                "port": 8080,
                "path": "healthz?x=1",
                "scheme": "HTTPS",
                "headers": [{"name": "X-A", "value": "b c"}],
            },
        },
        {"container": "web", "kind": "readyz", "tcp": {"port": 8080}, "address": "127.0.0.1"},
        {"container": "web", "kind": "startupz", "grpc": {"port": 9090, "service": "shop.Cart"}},
        {"container": "side", "kind": "livez", "http": {"port": 80}},
    ]
    settings = parse(
        probes=probes,
        access_log="errors",
        merge_metrics={"port": 9102, "path": "/prometheus", "address": "127.0.0.1"},
        metrics={"app": "cart", "version": "v2", "cluster": "west", "series": 1000},
    )
    assert settings.probes == (
        Probe("web", "livez", HttpProbe(8080, "/healthz?x=1", "https", (("X-A", "b c"),)), 2.0),
        Probe("web", "readyz", TcpProbe(8080), 1.0, "127.0.0.1"),
        Probe("web", "startupz", GrpcProbe(9090, "shop.Cart")),
        Probe("side", "livez", HttpProbe(80)),
    )
    assert settings.probes[0].path == "/app-health/web/livez"
    assert settings.access_log == "errors"
    assert settings.merge_metrics == MergedMetrics(9102, "/prometheus", "127.0.0.1")
    assert settings.metrics == MetricSettings("cart", "v2", "west", 1000)


@pytest.mark.parametrize(("written", "read"), [(False, "off"), ("off", "off"), ("all", "all")])
def test_off_is_a_word_that_yaml_reads_as_false(written, read):
    assert parse(access_log=written).access_log == read


@pytest.mark.parametrize(("written", "read"), [("on", True), (True, True), ("off", False), (False, False)])
def test_so_is_telemetrys(written, read):
    assert parse(telemetry=written).telemetry is read
    assert parse().telemetry is True


HTTP = {"container": "web", "kind": "livez", "http": {"port": 80}}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"admin_listen": "0.0.0.0:15000"}, "admin_listen: .* not of this pod alone"),
        ({"admin_listen": "10.0.0.7:15000"}, "admin_listen: "),
        ({"stats_listen": "localhost:1"}, "stats_listen: "),
        ({"stats_listen": "0.0.0.0:15021"}, "taken by ready_listen"),
        ({"access_log": True}, "access_log: "),
        ({"access_log": "some"}, "access_log: "),
        ({"telemetry": "of"}, "telemetry: .* use one of: on, off"),
        ({"telemetry": 0}, "telemetry: "),
        ({"metrics": {"apps": "x"}}, "metrics.apps: unknown setting; did you mean 'app'"),
        ({"metrics": {"app": "a b"}}, "metrics.app: "),
        ({"metrics": {"series": 0}}, "metrics.series: "),
        ({"merge_metrics": {"path": "/m"}}, "merge_metrics.port: missing"),
        ({"merge_metrics": {"port": 80, "path": "/a b"}}, "merge_metrics.path: "),
        ({"merge_metrics": {"port": 80}, "stats_listen": None}, "merge_metrics: nothing serves it"),
        ({"probes": [HTTP], "stats_listen": None}, "probes: nothing serves it"),
        ({"probes": HTTP}, "probes: .* not a list"),
        ({"probes": [HTTP, HTTP]}, r"probes\[1\]: web has two probes livez"),
        ({"probes": [HTTP | {"container": "../x"}]}, r"probes\[0\].container: "),
        ({"probes": [HTTP | {"kind": "liveness"}]}, r"probes\[0\].kind: "),
        ({"probes": [HTTP | {"tcp": {"port": 1}}]}, r"probes\[0\]: says both"),
        ({"probes": [{"container": "web", "kind": "livez"}]}, r"probes\[0\]: says nothing to do"),
        ({"probes": [HTTP | {"timeout": 0}]}, r"probes\[0\].timeout: "),
        ({"probes": [HTTP | {"address": "web"}]}, r"probes\[0\].address: "),
        ({"probes": [HTTP | {"http": {"port": "http"}}]}, r"probes\[0\].http.port: "),
        ({"probes": [HTTP | {"http": {"port": 80, "path": "/a\r\nX: y"}}]}, r"probes\[0\].http.path: "),
        ({"probes": [HTTP | {"http": {"port": 80, "path": "/a#b"}}]}, r"probes\[0\].http.path: "),
        ({"probes": [HTTP | {"http": {"port": 80, "scheme": "ftp"}}]}, r"probes\[0\].http.scheme: "),
        (
            {"probes": [HTTP | {"http": {"port": 80, "headers": [{"name": "A:", "value": ""}]}}]},
            r"headers\[0\].name: ",
        ),
        (
            {"probes": [HTTP | {"http": {"port": 80, "headers": [{"name": "A", "value": "b\r\nC: d"}]}}]},
            r"headers\[0\].value: ",
        ),
        (
            {"probes": [HTTP | {"http": {"port": 80, "headers": [{"name": "Content-Length", "value": "5"}]}}]},
            r"headers\[0\].name: Content-Length is the sidecar's",
        ),
        ({"probes": [{"container": "w", "kind": "livez", "grpc": {"port": 1, "service": "a b"}}]}, "grpc.service: "),
    ],
)
def test_a_mistake_is_named(settings, field):
    with pytest.raises(ConfigError, match=field):
        parse(**settings)
