"""Pods as a real API server makes them with the injector: injected, again, in dry runs, refused, and left alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from controller.injection.annotations import WEAKENING
from controller.injection.injecting import Injected, Namespace, inject, uninject
from controller.injection.settings import read_injection
from e2e.apiserver.half_said import HalfSaid
from e2e.apiserver.injector import ENABLED, RunningInjector, create, is_injected, names_of, pod, stored
from e2e.apiserver.late_comer import LateComer
from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError
from e2e.harness.programs import run, until


@pytest.fixture(scope="module")
def shop(apiserver: ApiServer, injector: RunningInjector) -> Iterator[str]:
    name = apiserver.create_namespace(ENABLED)
    injector.until_asked(name)
    yield name
    apiserver.delete_namespace(name)


APP = {
    "name": "app",
    "image": "none.example/app:1",
    "ports": [{"name": "http", "containerPort": 8080}],
    "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "timeoutSeconds": 3},
    "readinessProbe": {"grpc": {"port": 9000, "service": "cart"}},
    "startupProbe": {"tcpSocket": {"port": 8080}},
    "resources": {"requests": {"cpu": "10m"}},
}


def test_a_pod_is_made_with_its_sidecar(apiserver: ApiServer, shop: str) -> None:
    create(apiserver, shop, pod("cart", APP, initContainers=[{"name": "migrate", "image": "none.example/m:1"}]))
    made = stored(apiserver, shop, "cart")
    assert names_of(made) == ["hedgerow-capture", "hedgerow-validation", "hedgerow-sidecar", "migrate"]
    sidecar = made["spec"]["initContainers"][2]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["securityContext"]["runAsUser"] == 1337
    app = made["spec"]["containers"][0]
    for kind, path in (("livenessProbe", "livez"), ("readinessProbe", "readyz"), ("startupProbe", "startupz")):
        assert app[kind]["httpGet"] == {"path": f"/app-health/app/{path}", "port": 15020, "scheme": "HTTP"}
    assert made["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "app"


@pytest.mark.parametrize(
    "annotations",
    [{}, {"hedgerow.dev/inspect-egress": "api.example.com", "hedgerow.dev/egress-roots": "ours/ca.crt"}],
    ids=["plain", "inspected egress"],
)
def test_what_was_stored_is_what_would_be_injected_again_and_can_be_taken_back(
    apiserver: ApiServer, injector: RunningInjector, shop: str, annotations: dict[str, str]
) -> None:
    """Nothing that the API server fills in is ours to say again, nor lost on the way back."""
    name = f"again-{len(annotations)}"
    create(apiserver, shop, pod(name, APP, annotations=annotations))
    made = stored(apiserver, shop, name)
    assert ("hedgerow-roots" in json.dumps(made["spec"]["containers"])) is bool(annotations)
    settings = read_injection(WEAKENING)(injector.settings)
    again = inject(made, Namespace(shop), settings)
    assert isinstance(again, Injected)
    assert again.pod == made
    plain = apiserver.create_namespace()
    try:
        create(apiserver, plain, pod(name, APP, annotations=annotations))
        back = uninject(made)
        assert isinstance(back, Injected)
        assert "hedgerow-" not in json.dumps(back.pod["spec"])
        other = stored(apiserver, plain, name)
        for part in ("containers", "initContainers"):
            assert comparable(back.pod["spec"].get(part, [])) == comparable(other["spec"].get(part, []))
    finally:
        apiserver.delete_namespace(plain)


def test_a_file_is_injected_offline_as_the_webhook_does_it(
    apiserver: ApiServer, injector: RunningInjector, shop: str
) -> None:
    """The same settings, the same pod: once by ``hedgerow inject`` where no webhook is, once by the webhook."""
    given = json.dumps(pod("offline", APP, initContainers=[{"name": "migrate", "image": "none.example/m:1"}]))
    command = [sys.executable, "-m", "hedgerow", "inject", "-f", "-", "--config", injector.directory / "injector.yaml"]
    made = run(command, stdin=given)
    assert run(command, stdin=given) == made, "stable to the byte"
    plain = apiserver.create_namespace()
    try:
        apiserver.kubectl("-n", plain, "create", "-f", "-", stdin=made)
        apiserver.kubectl("-n", shop, "create", "-f", "-", stdin=given)
        here, there = stored(apiserver, plain, "offline"), stored(apiserver, shop, "offline")
        record = "hedgerow.dev/injected"  # of what was there before: the webhook sees what the API server had filled in
        assert here["metadata"]["annotations"].pop(record)
        assert there["metadata"]["annotations"].pop(record)
        assert here["metadata"]["annotations"] == there["metadata"]["annotations"]
        assert here["metadata"]["labels"] == there["metadata"]["labels"]
        for part in ("containers", "initContainers"):
            assert comparable(here["spec"][part]) == comparable(there["spec"][part])
        volumes = [
            [one for one in each["spec"]["volumes"] if not one["name"].startswith("kube-api-access-")]
            for each in (here, there)
        ]
        assert volumes[0] == volumes[1]
        assert len(volumes[0]) >= 3
    finally:
        apiserver.delete_namespace(plain)


def comparable(containers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the volume of the ServiceAccount's token, whose name is random."""
    return [{key: value for key, value in one.items() if key != "volumeMounts"} for one in containers]


def test_our_containers_get_no_token_of_the_api_server_and_the_application_keeps_its_own(
    apiserver: ApiServer, shop: str
) -> None:
    path = "/var/run/secrets/kubernetes.io/serviceaccount"
    create(apiserver, shop, pod("token"))
    made = stored(apiserver, shop, "token")
    for container in made["spec"]["initContainers"]:
        (mount,) = [one for one in container["volumeMounts"] if one["mountPath"] == path]
        assert mount["name"] == "hedgerow-trust"
    (own,) = [one for one in made["spec"]["containers"][0]["volumeMounts"] if one["mountPath"] == path]
    assert own["name"].startswith("kube-api-access-")


def test_pods_of_controllers_are_injected_too(apiserver: ApiServer, shop: str) -> None:
    apiserver.kubectl("-n", shop, "create", "deployment", "web", "--image=none.example/web:1", "--replicas=3")
    apiserver.kubectl("-n", shop, "create", "job", "once", "--image=none.example/once:1")

    def pods() -> list[dict[str, Any]]:
        found = apiserver.request("GET", f"/api/v1/namespaces/{shop}/pods")["items"]
        return [one for one in found if one["metadata"]["name"].startswith(("web-", "once-"))]

    until(lambda: len(pods()) == 4, "four pods made")
    assert all(is_injected(one) for one in pods())


def test_a_dry_run_shows_the_sidecar_and_stores_nothing(
    apiserver: ApiServer, injector: RunningInjector, shop: str
) -> None:
    series = 'hedgerow_injector_reviews_total{outcome="injected",dry_run="true"}'
    before = injector.metric(series)
    assert is_injected(create(apiserver, shop, pod("dry"), dry_run=True))
    assert injector.metric(series) > before
    with pytest.raises(ApiError) as refused:
        stored(apiserver, shop, "dry")
    assert refused.value.status == 404


def test_the_node_s_network_and_windows_are_left_alone_with_a_warning(apiserver: ApiServer, shop: str) -> None:
    for name, spec in (("host", {"hostNetwork": True}), ("windows", {"os": {"name": "windows"}})):
        given = json.dumps(pod(name, **spec))
        said = apiserver.kubectl("-n", shop, "create", "-f", "-", stdin=given, check=False)
        assert "Warning: hedgerow: not injected" in said
        assert "created" in said
        assert "initContainers" not in stored(apiserver, shop, name)["spec"]


def test_pods_that_do_not_want_one_have_none(apiserver: ApiServer, injector: RunningInjector, shop: str) -> None:
    labelled = pod("by-label")
    labelled["metadata"]["labels"]["hedgerow.dev/injection"] = "disabled"
    before = injector.metric("hedgerow_injector_reviews_total")
    create(apiserver, shop, labelled)
    assert injector.metric("hedgerow_injector_reviews_total") == before, "not even asked"
    create(apiserver, shop, pod("by-annotation", annotations={"hedgerow.dev/injection": "disabled"}))
    for name in ("by-label", "by-annotation"):
        assert not names_of(stored(apiserver, shop, name))


def test_our_own_namespace_and_kubernetes_own_are_never_selected(
    apiserver: ApiServer, injector: RunningInjector, shop: str
) -> None:
    """Whatever their labels: pods of the control plane must start without the injector."""
    spaces = [injector.namespace, "kube-system", "kube-public", "kube-node-lease"]
    for name in spaces:
        apiserver.request("PATCH", f"/api/v1/namespaces/{name}", {"metadata": {"labels": ENABLED}}, content_type=MERGE)
    try:
        until(lambda: has_account(apiserver, spaces), "ServiceAccounts of all")
        injector.until_asked(shop)
        before = injector.metric("hedgerow_injector_reviews_total")
        for name in spaces:
            assert not names_of(create(apiserver, name, pod("never"), dry_run=True))
        assert injector.metric("hedgerow_injector_reviews_total") == before
    finally:
        for name in spaces:
            gone = {"metadata": {"labels": dict.fromkeys(ENABLED)}}
            apiserver.request("PATCH", f"/api/v1/namespaces/{name}", gone, content_type=MERGE)


MERGE = "application/merge-patch+json"


def has_account(apiserver: ApiServer, namespaces: list[str]) -> bool:
    for name in namespaces:
        found = apiserver.request("GET", f"/api/v1/namespaces/{name}/serviceaccounts")["items"]
        if not any(one["metadata"]["name"] == "default" for one in found):
            return False
    return True


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        ("exclude-inbound-ports", "8080", "allow_annotations"),
        ("image", "evil.example/sidecar", "allow_annotations"),
        ("unsynced", "learn", "allow_annotations"),
        ("run-as-user", "0", "unknown annotation"),
        ("opaque-ports", "$(HEDGEROW_SIDECAR)", "whole number"),
        ("log-level", 'info"}', "use one of"),
        ("capture", "none", "use one of"),
        ("injected", '{"version":9}', "not what Hedgerow wrote"),
        ("opaque-port", "80", "did you mean hedgerow.dev/opaque-ports?"),
        ("workers", "9" * 4000, "whole number"),
    ],
)
def test_hostile_and_wrong_annotations_are_refused_with_a_word(
    apiserver: ApiServer, shop: str, annotation: str, value: str, said: str
) -> None:
    with pytest.raises(ApiError) as refused:
        create(apiserver, shop, pod("hostile", annotations={f"hedgerow.dev/{annotation}": value}))
    assert refused.value.status == 403
    assert f"metadata.annotations[hedgerow.dev/{annotation}]" in str(refused.value)
    assert said in str(refused.value)


def test_what_would_get_past_the_sidecar_is_refused(apiserver: ApiServer, shop: str) -> None:
    steal = {"name": "t", "mountPath": "/t"}
    source = {"serviceAccountToken": {"audience": "hedgerow-controller", "path": "t"}}
    for spec, said in (
        ({"securityContext": {"runAsUser": 1337}}, "user 1337"),
        ({"containers": [{"name": "hedgerow-sidecar", "image": "x"}]}, "is injected"),
        ({"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 15006}]}]}, "15006"),
        ({"containers": [{"name": "a", "image": "x", "volumeMounts": [{**steal, "name": "hedgerow-token"}]}]}, "alone"),
        ({"volumes": [{"name": "t", "projected": {"sources": [source]}}]}, "hedgerow-controller"),
    ):
        with pytest.raises(ApiError) as refused:
            create(apiserver, shop, pod("past", **spec))
        assert refused.value.status == 403
        assert said in str(refused.value)


def test_debugging_containers_are_not_the_sidecar_s_user(apiserver: ApiServer, shop: str) -> None:
    create(apiserver, shop, pod("debugged"))
    path = f"/api/v1/namespaces/{shop}/pods/debugged/ephemeralcontainers"

    def debug(name: str, **given: Any) -> None:
        body = {"spec": {"ephemeralContainers": [{"name": name, "image": "none.example/sh:1", **given}]}}
        apiserver.request("PATCH", path, body, content_type="application/strategic-merge-patch+json")

    with pytest.raises(ApiError, match="user 1337"):
        debug("evil", securityContext={"runAsUser": 1337})
    apiserver.kubectl("annotate", "pod", "debugged", "-n", shop, "hedgerow.dev/injected-")
    with pytest.raises(ApiError, match="user 1337"):
        debug("later", securityContext={"runAsUser": 1337})
    with pytest.raises(ApiError, match="hedgerow-state is the sidecar's alone"):
        debug("reader", volumeMounts=[{"name": "hedgerow-state", "mountPath": "/look"}])
    debug("good")
    assert names_of(stored(apiserver, shop, "debugged"), "ephemeralContainers") == ["good"]


def test_a_huge_pod_is_injected(apiserver: ApiServer, injector: RunningInjector, shop: str) -> None:
    """1.3 MB is what etcd takes of one object; twice as much still comes to the injector in a dry run."""

    def huge(name: str, size: int) -> dict[str, Any]:
        env = [{"name": f"V{number}", "value": "x" * 20_000} for number in range(size // 20_000)]
        return pod(name, {**APP, "env": env}, annotations={"example.com/long": "y" * 200_000})

    before = injector.metric("hedgerow_injector_rejected_total")
    create(apiserver, shop, huge("huge", 1_100_000))
    assert is_injected(stored(apiserver, shop, "huge"))
    assert is_injected(create(apiserver, shop, huge("larger", 2_400_000), dry_run=True))
    assert injector.metric("hedgerow_injector_rejected_total") == before


def test_limit_ranges_and_quotas_are_satisfied(apiserver: ApiServer, shop: str) -> None:
    """A LimitRange puts limits into our containers too and refuses those without; they survive being asked again."""
    space = apiserver.create_namespace(ENABLED)
    try:
        limits = [{"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "max": {"cpu": "2", "memory": "2Gi"}}]
        body = {"metadata": {"name": "all"}, "spec": {"limits": limits}}
        apiserver.request("POST", f"/api/v1/namespaces/{space}/limitranges", body)
        with LateComer(apiserver, space):
            made = create(apiserver, space, pod("limited"))
        assert is_injected(made)
        for container in (*made["spec"]["initContainers"], *made["spec"]["containers"]):
            assert container["resources"]["limits"]["cpu"] == "1", container["name"]
        assert made["spec"]["initContainers"][2]["resources"]["limits"]["memory"] == "512Mi"
    finally:
        apiserver.delete_namespace(space)


# --- others who change pods


def test_what_another_webhook_adds_afterwards_is_treated_like_the_rest(apiserver: ApiServer, shop: str) -> None:
    with LateComer(apiserver, shop):
        made = create(apiserver, shop, pod("late", APP))
    assert names_of(made) == ["hedgerow-capture", "hedgerow-validation", "hedgerow-sidecar", "first"]
    assert names_of(made, "containers") == ["app", "late"]
    late = made["spec"]["containers"][1]
    assert late["livenessProbe"]["httpGet"]["path"] == "/app-health/late/livez"
    sidecar = made["spec"]["initContainers"][2]
    (document,) = [one["value"] for one in sidecar["env"] if one["name"] == "HEDGEROW_SIDECAR"]
    assert {probe["container"] for probe in json.loads(document)["probes"]} == {"app", "late"}


# --- many at once


def test_five_hundred_pods_in_a_burst(
    apiserver: ApiServer,
    injector: RunningInjector,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """None is lost, and none waits for another: before, as many at once have to be through while others have said half.

    How long a call takes is said at its end, and judged where ``HEDGEROW_BURST_RESULT`` names a file for it: nobody
    asks for that on a machine that does ten other things.
    """
    space = apiserver.create_namespace(ENABLED)
    try:
        with HalfSaid(injector, space, pod("half", APP), 50) as half, ThreadPoolExecutor(50) as pool:
            made = list(pool.map(lambda number: create(apiserver, space, pod(f"beside{number}", APP)), range(50)))
            assert all(is_injected(one) for one in made)
            assert all(each["allowed"] and each["patch"] for each in half.say_the_rest())
        before, asked = injector.buckets(), injector.metric("hedgerow_injector_review_seconds_count")
        cpu = injector.metric("hedgerow_injector_cpu_seconds")
        with ThreadPoolExecutor(50) as pool:
            made = list(pool.map(lambda number: create(apiserver, space, pod(f"p{number}", APP)), range(500)))
        assert all(is_injected(one) for one in made)
        assert injector.metric("hedgerow_injector_review_seconds_count") - asked == 500
        assert injector.metric("hedgerow_injector_rejected_total") == 0
        spent = (injector.metric("hedgerow_injector_cpu_seconds") - cpu) / 500
        median, p99 = (injector.quantile(part, before) for part in (0.5, 0.99))
        said = [
            f"a call took at most {median * 1000:g} ms (median) and",
            f"{p99 * 1000:g} ms (p99) in the injector, {spent * 1000:.2f} ms of its CPU",
        ]
        record_property("burst", " ".join(said))
        with capsys.disabled():
            print(f"\n  500 pods, 50 at once: {' '.join(said)}; load average {os.getloadavg()[0]:.1f}")
        if result := os.environ.get("HEDGEROW_BURST_RESULT"):
            figures = {"pods": 500, "median_seconds": median, "p99_seconds": p99, "cpu_seconds_a_call": spent}
            Path(result).write_text(json.dumps(figures, indent=1) + "\n")
            assert p99 <= 0.1, "the goal is 100 ms"
    finally:
        apiserver.delete_namespace(space)
