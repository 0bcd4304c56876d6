"""The kubelet's probes and Prometheus' annotations: what the sidecar does in their place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.observation import GrpcProbe, HttpProbe, MergedMetrics, Probe, TcpProbe
from tests.controller.injection.pods import accepted, container, injected, pod, refused

HOST = [{"name": "Host", "value": "a"}]
PORTS = [{"name": "http", "containerPort": 8080}, {"name": "admin", "containerPort": 9000}]


def app(**probes: Any) -> dict[str, Any]:
    return {"name": "app", "image": "i", "ports": PORTS, **probes}


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ({"httpGet": {"path": "/ok?x=1", "port": 8080}}, HttpProbe(8080, "/ok?x=1")),
        ({"httpGet": {"port": "admin", "scheme": "HTTPS"}}, HttpProbe(9000, "/", "https")),
        ({"httpGet": {"port": "8443", "path": "ok"}}, HttpProbe(8443, "/ok")),
        ({"httpGet": {"port": 80, "path": "/ü b#part"}}, HttpProbe(80, "/%C3%BC%20b")),
        ({"httpGet": {"port": 80, "httpHeaders": HOST}}, HttpProbe(80, headers=(("Host", "a"),))),
        ({"tcpSocket": {"port": "http"}}, TcpProbe(8080)),
        ({"grpc": {"port": 9000}}, GrpcProbe(9000)),
        ({"grpc": {"port": 9000, "service": "cart"}}, GrpcProbe(9000, "cart")),
        ({"grpc": {"port": 9000, "service": None}}, GrpcProbe(9000)),
    ],
)  # fmt: skip
def test_what_leads_over_the_network_is_done_by_the_sidecar(probe: dict[str, Any], expected: object) -> None:
    made = injected(
        pod(app(livenessProbe={**probe, "timeoutSeconds": 7, "periodSeconds": 11, "failureThreshold": 2}))
    ).pod
    assert accepted(made).probes == (Probe("app", "livez", expected, 7.0),)
    assert container(made, "app")["livenessProbe"] == {
        "httpGet": {"path": "/app-health/app/livez", "port": 15020, "scheme": "HTTP"},
        "timeoutSeconds": 7,
        "periodSeconds": 11,
        "failureThreshold": 2,
    }


def test_all_three_kinds_of_all_containers_also_of_native_sidecars_of_others() -> None:
    probe = {"tcpSocket": {"port": 1}}
    three = {"livenessProbe": probe, "readinessProbe": probe, "startupProbe": probe}
    other = {"name": "helper", "image": "h", "restartPolicy": "Always", "readinessProbe": probe}
    made = injected(pod(app(**three), initContainers=[other])).pod
    paths = {probe.path for probe in accepted(made).probes}
    assert paths == {f"/app-health/app/{kind}" for kind in ("livez", "readyz", "startupz")} | {
        "/app-health/helper/readyz"
    }


def test_exec_stays_as_it_is() -> None:
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 5}
    made = injected(pod(app(livenessProbe=probe))).pod
    assert container(made, "app")["livenessProbe"] == probe
    assert not accepted(made).probes


@pytest.mark.parametrize(
    "action",
    [
        {"httpGet": {"port": "nowhere"}},
        {"httpGet": {"port": 0}},
        {"httpGet": {"port": 8080, "host": "192.0.2.1"}},
        {"httpGet": {"port": 15021}},
        {"httpGet": {"port": 8080, "path": "/" + "x" * 2000}},
        {"httpGet": {"port": 8080, "httpHeaders": [{"name": "Connection", "value": "close"}]}},
        {"httpGet": {"port": 8080, "httpHeaders": [{"name": "X-A", "value": "a\r\nX-B: b"}]}},
        {"httpGet": {"port": 8080, "scheme": "gopher"}},
        {"grpc": {"port": 9000, "service": "a b"}},
        {"tcpSocket": {}},
    ],
)
def test_what_the_sidecar_can_not_do_as_the_kubelet_would_stays_and_is_told(action: dict[str, Any]) -> None:
    made = injected(pod(app(livenessProbe=action)))
    assert container(made.pod, "app")["livenessProbe"] == action
    (warning,) = made.warnings
    assert "livenessProbe of container app stays as it is" in warning
    assert not accepted(made.pod).probes


def test_an_author_may_keep_all_probes() -> None:
    probe = {"tcpSocket": {"port": 1}}
    made = injected(pod(app(livenessProbe=probe), annotations={"rewrite-probes": "false"})).pod
    assert container(made, "app")["livenessProbe"] == probe


def test_explicit_mode_asks_the_application_where_it_listens() -> None:
    asking = {"capture": "explicit", "explicit-inbound": "8080=18080"}
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"}
    made = injected(pod(app(readinessProbe={"httpGet": {"port": "http"}}), annotations={**asking, **scraped})).pod
    assert accepted(made).probes == (Probe("app", "readyz", HttpProbe(18080), 1.0, "127.0.0.1"),)
    assert accepted(made).merge_metrics == MergedMetrics(18080, "/metrics", "127.0.0.1")


def test_more_than_the_sidecar_takes_is_refused() -> None:
    probe = {"tcpSocket": {"port": 1}}
    many = [{"name": f"c{n}", "image": "i", "livenessProbe": probe, "readinessProbe": probe} for n in range(33)]
    assert "66 probes" in refused(pod(*many))
    long = {"httpGet": {"port": 1, "httpHeaders": [{"name": f"X-{n}", "value": "x" * 1000} for n in range(30)]}}
    heavy = [{"name": f"c{n}", "image": "i", "livenessProbe": long} for n in range(6)]
    assert "sidecar settings of" in refused(pod(*heavy))


def test_long_time_outs_are_as_long_as_the_sidecar_waits() -> None:
    made = injected(pod(app(startupProbe={"tcpSocket": {"port": 1}, "timeoutSeconds": 600}))).pod
    (probe,) = accepted(made).probes
    assert probe.timeout == 60.0


@given(
    st.dictionaries(
        st.sampled_from(["path", "port", "scheme", "httpHeaders", "host"]),
        st.text(max_size=30)
        | st.integers(-1, 70_000)
        | st.lists(st.fixed_dictionaries({"name": st.text(max_size=8), "value": st.text(max_size=8)}), max_size=3),
    )
)
def test_whatever_a_probe_says_the_sidecar_can_read_it_or_it_stays(action: dict[str, Any]) -> None:
    from controller.injection.injecting import Injected, inject
    from tests.controller.injection.pods import SHOP, settings

    outcome = inject(pod(app(livenessProbe={"httpGet": action})), SHOP, settings())
    if isinstance(outcome, Injected):
        rewritten = container(outcome.pod, "app")["livenessProbe"]["httpGet"].get("port") == 15020
        assert len(accepted(outcome.pod).probes) == int(rewritten and action.get("port") != 15020)


# --- Prometheus

SCRAPED = {"prometheus.io/scrape": "true", "prometheus.io/port": "9090", "prometheus.io/path": "/m?x=$(y)"}


def test_metrics_of_the_application_are_shown_behind_ours() -> None:
    made = injected(pod(annotations=SCRAPED)).pod
    assert accepted(made).merge_metrics == MergedMetrics(9090, "/m?x=$(y)")
    annotations = made["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "15020"
    assert annotations["prometheus.io/path"] == "/stats/prometheus"
    assert accepted(made).metrics.app == "cart"


@pytest.mark.parametrize(
    ("change", "warned"),
    [
        ({"prometheus.io/scrape": "false"}, False),
        ({"hedgerow.dev/merge-metrics": "false"}, False),
        ({"prometheus.io/port": "metrics"}, True),
        ({"prometheus.io/port": "99999"}, True),
        ({"prometheus.io/port": "15020"}, True),
        ({"prometheus.io/scheme": "https"}, True),
        ({"prometheus.io/path": "/" + "x" * 2000}, True),
    ],
)
def test_what_can_not_be_merged_stays(change: dict[str, str], warned: bool) -> None:
    asking = pod(annotations={**SCRAPED, **change})
    made = injected(asking)
    assert accepted(made.pod).merge_metrics is None
    for name, value in asking["metadata"]["annotations"].items():
        assert made.pod["metadata"]["annotations"][name] == value
    assert bool(made.warnings) is warned
