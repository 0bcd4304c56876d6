"""When the injector is down, slow, or not to be believed: what becomes of pods under both failure policies."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from controller.injection.webhook_configuration import NAME
from controller.kube.webhook_certificate import SECRET
from controller.kube.webhook_keys import Times, make
from e2e.apiserver.injector import ENABLED, HOOKS, PATIENT, RunningInjector, create, is_injected, names_of, pod, stored
from e2e.apiserver.late_comer import LateComer
from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError
from e2e.harness.programs import until

DAY = 86400.0


@pytest.fixture(scope="module")
def injector(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningInjector]:
    """Not started: each test begins it with the failure policy that it is about."""
    with RunningInjector(apiserver, tmp_path_factory.mktemp("failing")) as running:
        running.install_hooks()
        running.mount()
        yield running


@pytest.fixture
def patience() -> int:
    """How long the API server waits for an answer, seconds; a test for which it is to be short says so itself."""
    return PATIENT


@pytest.fixture(params=["Fail", "Ignore"])
def policy(request: pytest.FixtureRequest, injector: RunningInjector, patience: int) -> Iterator[str]:
    """The injector well, the webhook with one failure policy."""
    injector.install_hooks(request.param, patience)
    injector.mount()
    injector.restart()
    yield str(request.param)
    injector.stop()


@pytest.fixture
def shop(apiserver: ApiServer, injector: RunningInjector, policy: str) -> Iterator[str]:
    name = apiserver.create_namespace(ENABLED)
    injector.until_asked(name)
    yield name
    apiserver.delete_namespace(name)


def judged(apiserver: ApiServer, shop: str, policy: str, *reasons: str) -> None:
    """``Fail`` keeps the pod out and says why; ``Ignore`` lets it in without a sidecar."""
    if policy == "Ignore":
        assert not names_of(create(apiserver, shop, pod("without")))
        return
    with pytest.raises(ApiError) as refused:
        create(apiserver, shop, pod("without"))
    assert refused.value.status == 500
    assert "failed calling webhook" in str(refused.value)
    assert "injector.hedgerow.dev" in str(refused.value)
    assert any(reason in str(refused.value) for reason in reasons), refused.value


def test_down(apiserver: ApiServer, injector: RunningInjector, shop: str, policy: str) -> None:
    injector.stop()
    judged(apiserver, shop, policy, "connection refused")
    injector.start()
    until(lambda: recovered(apiserver, shop), "injected again")


def recovered(apiserver: ApiServer, shop: str) -> bool:
    with contextlib.suppress(ApiError):
        return is_injected(create(apiserver, shop, pod("again"), dry_run=True))
    return False


@pytest.mark.parametrize("patience", [2])
def test_slow(apiserver: ApiServer, injector: RunningInjector, shop: str, policy: str) -> None:
    """Stopped by a signal: it accepts, because the kernel does, and never answers."""
    os.kill(injector.program.pid, signal.SIGSTOP)
    try:
        judged(apiserver, shop, policy, "deadline exceeded", "Timeout", "timeout")
    finally:
        os.kill(injector.program.pid, signal.SIGCONT)
    until(lambda: recovered(apiserver, shop), "injected again")


@pytest.mark.parametrize(
    ("of_host", "age", "reasons"),
    [
        ("hedgerow-injector.{}.svc", 200 * DAY, ("certificate has expired", "unknown authority")),
        ("hedgerow-injector.{}.svc", 0.0, ("unknown authority",)),
        ("hedgerow-controller.{}.svc", 0.0, ("not hedgerow-injector", "unknown authority")),
    ],
    ids=["expired", "another-authority", "another-name"],
)
def test_not_to_be_believed(
    apiserver: ApiServer,
    injector: RunningInjector,
    shop: str,
    policy: str,
    of_host: str,
    age: float,
    reasons: tuple[str, ...],
) -> None:
    injector.stop()
    pair = make(of_host.format(injector.namespace), time.time() - age, 90 * DAY)
    injector.write(pair.certificate, pair.key)
    injector.start()
    judged(apiserver, shop, policy, *reasons)
    injector.mount()
    until(lambda: recovered(apiserver, shop), "injected again")


def test_expired_under_the_right_authority(
    apiserver: ApiServer, injector: RunningInjector, shop: str, policy: str
) -> None:
    """What the API server trusts, run out: told apart from what it never trusted."""
    pair = make(f"hedgerow-injector.{injector.namespace}.svc", time.time() - 100, 99.0)
    injector.stop()
    injector.write(pair.certificate, pair.key)
    injector.start()
    found = apiserver.request("GET", f"{HOOKS}/{NAME}")
    for hook in found["webhooks"]:
        hook["clientConfig"]["caBundle"] = base64.b64encode(pair.authority).decode()
    apiserver.request("PUT", f"{HOOKS}/{NAME}", found)

    def expired() -> bool:
        try:
            made = create(apiserver, shop, pod("old"), dry_run=True)
        except ApiError as error:
            return "certificate has expired" in str(error)
        return policy == "Ignore" and not names_of(made)

    until(expired, "the expired certificate seen")
    judged(apiserver, shop, policy, "certificate has expired")
    injector.keep_certificate()  # repairs caBundle
    injector.mount()
    until(lambda: recovered(apiserver, shop), "injected again")


def test_a_lost_secret_and_a_rotation_under_way_fail_nothing(
    apiserver: ApiServer, injector: RunningInjector, shop: str, policy: str
) -> None:
    """Every pod in between is injected. API servers connect anew whenever ``caBundle`` changes."""
    times = Times(lifetime=90 * DAY, settle=60.0, overlap=3600.0)
    secret = f"/api/v1/namespaces/{injector.namespace}/secrets/{SECRET}"
    with creating(apiserver, shop) as counted:

        def some_more() -> None:
            before = counted()
            until(lambda: counted() > before + 2, "pods made under it")

        try:
            injector.offset = -61 * DAY  # a certificate that is due by now
            apiserver.request("DELETE", secret)
            injector.keep_certificate(times)
            some_more()
            injector.mount()
            some_more()
            first = injector.secret()["data"]["tls.crt"]
            injector.offset = 0.0
            injector.keep_certificate(times)
            assert "next-tls.crt" in injector.secret()["data"], "made and told"
            some_more()
            injector.offset = 61.0
            injector.keep_certificate(times)
            assert injector.secret()["data"]["tls.crt"] != first, "to be served"
            some_more()
            injector.mount()
            some_more()
            injector.offset = 61.0 + 3600.0
            injector.keep_certificate(times)
            assert set(injector.secret()["data"]) == {"tls.crt", "tls.key", "ca.crt"}, "the one before forgotten"
            some_more()
        finally:
            injector.offset = 0.0


@contextlib.contextmanager
def creating(apiserver: ApiServer, shop: str) -> Iterator[Callable[[], int]]:
    """Dry runs one after another until the end; fails when one of them fails or is without a sidecar."""
    ended, made, wrong = threading.Event(), [0], []

    def go() -> None:
        while not ended.is_set() and not wrong:
            try:
                if not is_injected(create(apiserver, shop, pod("steady"), dry_run=True)):
                    wrong.append("a pod without a sidecar")
            except ApiError as error:
                wrong.append(str(error))
            made[0] += 1

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield lambda: made[0] if not wrong else pytest.fail(wrong[0])
    finally:
        ended.set()
        thread.join()
    assert not wrong, wrong


def test_refusals_do_not_depend_on_the_policy(apiserver: ApiServer, shop: str, policy: str) -> None:
    """A hostile annotation is an answer, not a failure."""
    for name, value, said in (
        ("uid", "0", "unknown annotation"),
        ("image", "evil.example/sidecar", "allow_annotations"),
        ("log-level", 'info"}', "use one of"),
        ("workers", "9" * 4000, "whole number"),
        ("injected", '{"version":9}', "not what Hedgerow wrote"),
    ):
        with pytest.raises(ApiError, match=said) as refused:
            create(apiserver, shop, pod("hostile", annotations={f"hedgerow.dev/{name}": value}))
        assert refused.value.status == 403


def test_asked_again_after_another_webhook_under_either(
    apiserver: ApiServer, injector: RunningInjector, shop: str, policy: str
) -> None:
    """Reinvocation: what came between is treated like the rest, and nothing is injected twice."""
    app = {"name": "app", "image": "none.example/app:1"}
    with LateComer(apiserver, shop):
        made = create(apiserver, shop, pod("late", app))
    assert names_of(made) == ["hedgerow-capture", "hedgerow-validation", "hedgerow-sidecar", "first"]
    late = next(one for one in made["spec"]["containers"] if one["name"] == "late")
    assert late["livenessProbe"]["httpGet"]["path"] == "/app-health/late/livez"


def test_a_huge_pod_and_a_dry_run_are_injected_under_either(apiserver: ApiServer, shop: str, policy: str) -> None:
    env = [{"name": f"V{number}", "value": "x" * 20_000} for number in range(75)]
    huge = pod("huge", {"name": "app", "image": "none.example/app:1", "env": env})
    assert is_injected(create(apiserver, shop, huge, dry_run=True))
    with pytest.raises(ApiError) as nothing_stored:
        stored(apiserver, shop, "huge")
    assert nothing_stored.value.status == 404


def test_namespaces_of_the_control_plane_do_not_need_it(
    apiserver: ApiServer, injector: RunningInjector, shop: str, policy: str
) -> None:
    injector.stop()
    for name in ("kube-system", injector.namespace):
        assert not names_of(create(apiserver, name, pod("needed"), dry_run=True))
