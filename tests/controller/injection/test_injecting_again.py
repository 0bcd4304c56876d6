"""What was injected is injected again to the same and taken back to the letter, whatever came later or is sent."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.injection import names
from controller.injection.injecting import Injected, Namespace, PodSecurity, Refused, Skipped, inject, uninject
from tests.controller.injection.pods import (
    EXPLICIT,
    SHOP,
    accepted,
    container,
    document,
    injected,
    named,
    pod,
    refused,
    settings,
    variable,
)
from tests.controller.injection.strategies import JSON

# --- again, later, and back


HTTP = {"httpGet": {"path": "/healthz", "port": "http", "httpHeaders": [{"name": "X-A", "value": "$(HOME)"}]}}
RICH = pod(
    {
        "name": "app",
        "image": "shop/cart:1",
        "ports": [{"name": "http", "containerPort": 8080}],
        "livenessProbe": {**HTTP, "periodSeconds": 3, "timeoutSeconds": 2},
        "readinessProbe": {"grpc": {"port": 9000, "service": "cart"}},
        "startupProbe": {"tcpSocket": {"port": "http"}},
    },
    {"name": "cache", "image": "redis", "livenessProbe": {"exec": {"command": ["redis-cli", "ping"]}}},
    annotations={"prometheus.io/scrape": "true", "prometheus.io/port": "9090", "example.com/kept": "$(x)"},
    initContainers=[{"name": "migrate", "image": "m"}],
    volumes=[{"name": "data", "emptyDir": {}}],
)


def variants() -> list[Any]:
    bare = pod()
    empty = pod(initContainers=[], volumes=None)
    empty["metadata"]["annotations"] = {}
    headless = {"spec": pod()["spec"]}
    nothing = {"metadata": {}, "spec": pod()["spec"]}
    return [
        RICH,
        bare,
        empty,
        headless,
        nothing,
        pod(annotations=EXPLICIT),
        pod(annotations={"native-sidecar": "false"}),
    ]


@pytest.mark.parametrize("given", variants())
def test_twice_is_once_and_back_is_where_it_began(given: dict[str, Any]) -> None:
    before = copy.deepcopy(given)
    once = injected(given).pod
    assert given == before, "the argument was changed"
    assert injected(once).pod == once
    assert json.dumps(injected(once).pod) == json.dumps(injected(injected(once).pod).pod)
    back = uninject(once)
    assert isinstance(back, Injected)
    assert back.pod == given
    assert uninject(given) == Skipped("not-injected")


def test_what_came_later_is_treated_like_what_was_there() -> None:
    once = injected(RICH).pod
    late = {"name": "late", "image": "l", "livenessProbe": {"httpGet": {"path": "/", "port": 7000}}}
    once["spec"]["containers"].append(late)
    once["spec"]["initContainers"].insert(0, {"name": "first", "image": "f"})
    again = injected(once).pod
    assert named(again, "initContainers")[:4] == [
        "hedgerow-capture",
        "hedgerow-validation",
        "hedgerow-sidecar",
        "first",
    ]
    assert container(again, "late")["livenessProbe"]["httpGet"]["path"] == "/app-health/late/livez"
    assert {probe.container for probe in accepted(again).probes} == {"app", "late"}


def test_another_version_of_the_injector_takes_over() -> None:
    once = injected(pod()).pod
    again = injected(once, image="registry.example/hedgerow-sidecar:2.0", validation=False).pod
    assert container(again, names.SIDECAR)["image"].endswith(":2.0")
    assert named(again, "initContainers") == ["hedgerow-capture", "hedgerow-sidecar"]
    assert again == injected(pod(), image="registry.example/hedgerow-sidecar:2.0", validation=False).pod


def test_a_probe_that_somebody_changed_meanwhile_stays_changed() -> None:
    once = injected(RICH).pod
    container(once, "app")["livenessProbe"] = {"exec": {"command": ["true"]}}
    back = uninject(once)
    assert isinstance(back, Injected)
    assert container(back.pod, "app")["livenessProbe"] == {"exec": {"command": ["true"]}}
    assert container(back.pod, "app")["readinessProbe"] == {"grpc": {"port": 9000, "service": "cart"}}


def test_what_a_limit_range_put_in_stays_and_nothing_of_ours_changes_by_it() -> None:
    once = injected(pod()).pod
    sidecar = container(once, names.SIDECAR)
    sidecar["resources"]["limits"] |= {"cpu": "2", "memory": "1Ki"}
    again = container(injected(once).pod, names.SIDECAR)
    assert again["resources"]["limits"] == {"cpu": "2", "memory": "512Mi"}


def test_a_made_up_injection_is_replaced_by_a_real_one() -> None:
    evil = injected(pod()).pod
    sidecar = container(evil, names.SIDECAR)
    sidecar |= {"image": "evil", "command": ["sh"], "securityContext": {"privileged": True}}
    sidecar["env"].append({"name": "PYTHONPATH", "value": "/evil"})
    assert injected(evil).pod == injected(pod()).pod
    bare = pod(annotations={"injected": '{"version":1}'})
    assert named(injected(bare).pod, "initContainers")[0] == "hedgerow-capture"


@pytest.mark.parametrize(
    "record",
    [
        "",
        "yes",
        "[]",
        '{"version":2}',
        '{"version":1,"more":1}',
        '{"version":1,"annotations":{"hedgerow.dev/image":["a","b"]}}',
        '{"version":1,"annotations":{"prometheus.io/port":["a"]}}',
        '{"version":1,"probes":[]}',
        '{"version":1,"probes":{"app":{"livenessProbe":"x"}}}',
        '{"version":1,"empties":{"spec.containers":[]}}',
        "[" * 5000,
    ],
)
def test_a_record_that_is_none_is_refused(record: str) -> None:
    assert "not what Hedgerow wrote there" in refused(pod(annotations={"injected": record}))


# --- whatever is sent


@given(st.fixed_dictionaries({"metadata": JSON, "spec": st.fixed_dictionaries({"containers": JSON}) | JSON}))
def test_nothing_that_json_can_say_is_more_than_refused(given: Any) -> None:
    assert isinstance(inject(given, SHOP, settings()), Injected | Skipped | Refused)
    assert isinstance(uninject(given), Injected | Skipped | Refused)


@given(
    st.lists(
        st.fixed_dictionaries(
            {"name": st.sampled_from(["a", "b"])},
            optional={"livenessProbe": st.fixed_dictionaries({"httpGet": JSON}), "ports": JSON, "resources": JSON},
        ),
        min_size=1,
        max_size=2,
        unique_by=lambda one: one["name"],
    ),
    st.sampled_from([Namespace("shop"), Namespace("b", PodSecurity.BASELINE)]),
)
def test_whatever_is_injected_can_be_taken_back(containers: list[Any], where: Namespace) -> None:
    given = pod(*containers, annotations={"capture": "redirect"})
    outcome = inject(given, where, settings())
    if isinstance(outcome, Injected):
        assert inject(outcome.pod, where, settings()).pod == outcome.pod
        assert uninject(outcome.pod).pod == given
        assert accepted(outcome.pod)


def test_references_in_what_others_wrote_are_not_expanded() -> None:
    made = injected(RICH).pod
    assert '"$$(HOME)"' in variable(made)
    (probe,) = (one for one in document(made)["probes"] if one["kind"] == "livez")
    assert probe["http"]["headers"] == [{"name": "X-A", "value": "$(HOME)"}]
