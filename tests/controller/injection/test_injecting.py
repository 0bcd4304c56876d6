"""What becomes of a pod: its containers, its way back, and what is left alone or refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.injection import names
from controller.injection.injecting import Injected, Namespace, PodSecurity, Refused, Skipped, inject, uninject
from sidecar.settings import Capture
from tests.controller.injection.pods import (
    RESTRICTED,
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

EXPLICIT = {"capture": "explicit", "explicit-inbound": "8080=18080"}


def test_a_native_sidecar_comes_after_capture_and_validation_and_before_everything_else() -> None:
    made = injected(pod(initContainers=[{"name": "migrate", "image": "m"}])).pod
    assert named(made, "initContainers") == ["hedgerow-capture", "hedgerow-validation", "hedgerow-sidecar", "migrate"]
    assert named(made, "containers") == ["app"]
    sidecar = container(made, names.SIDECAR)
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["startupProbe"]["httpGet"] == {"path": "/healthz/ready", "port": 15021, "scheme": "HTTP"}
    assert sidecar["startupProbe"]["periodSeconds"] * sidecar["startupProbe"]["failureThreshold"] >= 60


def test_only_the_capture_container_is_root_and_has_a_capability_and_just_one() -> None:
    made = injected(pod()).pod
    capture = container(made, names.CAPTURE)["securityContext"]
    assert capture["runAsUser"] == 0
    assert capture["capabilities"] == {"add": ["NET_ADMIN"], "drop": ["ALL"]}
    for name, uid in ((names.SIDECAR, 1337), (names.VALIDATION, 65534)):
        assert container(made, name)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsGroup": uid,
            "runAsNonRoot": True,
            "runAsUser": uid,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    for key, value in container(made, names.SIDECAR)["securityContext"].items():
        if key not in ("runAsUser", "runAsGroup", "runAsNonRoot", "capabilities"):
            assert capture[key] == value


def test_the_sidecar_accepts_the_settings_that_it_is_given() -> None:
    made = injected(pod()).pod
    for name in (names.SIDECAR, names.CAPTURE, names.VALIDATION):
        read = accepted(made, name)
        assert read.instance == "cart-7d-x"
        assert read.addresses == ("10.1.2.3", "fd00::3")
        assert str(read.controller) == "hedgerow-controller.hedgerow-system.svc:15012"
        assert str(read.service_account_token_file) == "/var/run/secrets/hedgerow/token/token"
        assert str(read.trust_bundle) == "/var/run/secrets/hedgerow/trust/trust-bundle.pem"
        assert read.capture is Capture.REDIRECT
        assert read.uid == container(made, names.SIDECAR)["securityContext"]["runAsUser"]


def test_every_file_that_the_settings_name_lies_in_a_mount() -> None:
    made = injected(pod()).pod
    mounts = {one["mountPath"]: one["name"] for one in container(made, names.SIDECAR)["volumeMounts"]}
    volumes = {one["name"]: one for one in made["spec"]["volumes"]}
    said = document(made)
    assert mounts[said["service_account_token_file"].rpartition("/")[0]] == names.TOKEN_VOLUME
    assert mounts[said["trust_bundle"].rpartition("/")[0]] == names.TRUST_VOLUME
    assert mounts[said["state_dir"].rpartition("/")[0]] == names.STATE_VOLUME  # a directory of its own within
    (token,) = volumes[names.TOKEN_VOLUME]["projected"]["sources"]
    assert token["serviceAccountToken"] == {
        "audience": "hedgerow-controller",
        "expirationSeconds": 600,
        "path": "token",
    }
    assert volumes[names.TRUST_VOLUME]["configMap"]["name"] == "hedgerow-trust"


def test_our_containers_leave_no_room_for_a_token_of_the_api_server() -> None:
    made = injected(pod()).pod
    for name in names.CONTAINERS:
        paths = [one["mountPath"] for one in container(made, name)["volumeMounts"]]
        assert "/var/run/secrets/kubernetes.io/serviceaccount" in paths


@pytest.mark.parametrize("version", ["1.28", "v1.27.4+k3s1"])
def test_an_old_cluster_gets_a_plain_container_that_the_application_waits_for(version: str) -> None:
    made = injected(pod(), kubernetes_version=version).pod
    assert named(made, "initContainers") == ["hedgerow-capture", "hedgerow-validation"]
    assert named(made, "containers") == ["hedgerow-sidecar", "app"]
    sidecar = container(made, names.SIDECAR)
    assert "restartPolicy" not in sidecar
    assert "startupProbe" not in sidecar
    command = sidecar["lifecycle"]["postStart"]["exec"]["command"]
    compile(command[2], "wait", "exec")
    assert "15021" in command[2]
    said = document(made)
    assert (said["hold_seconds"], said["drain_seconds"], said["exit_with_application"]) == (5, 20, True)


def test_an_annotation_makes_the_sidecar_plain_too() -> None:
    made = injected(pod(annotations={"native-sidecar": "false"}, terminationGracePeriodSeconds=60)).pod
    assert named(made, "containers") == ["hedgerow-sidecar", "app"]
    assert document(made)["drain_seconds"] == 50
    assert made["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "app"


def test_jobs_are_warned_where_a_plain_sidecar_would_keep_them_from_completing() -> None:
    job = pod(restartPolicy="Never")
    assert not injected(job).warnings
    (warning,) = injected(job, native_sidecar=False).warnings
    assert "completing" in warning


def test_explicit_mode_has_no_init_container_and_no_root() -> None:
    made = injected(pod(annotations={**EXPLICIT, "explicit-outbound": "15101=10.96.0.7:80"})).pod
    assert "initContainers" not in made["spec"]
    assert named(made, "containers") == ["hedgerow-sidecar", "app"]
    read = accepted(made)
    assert read.capture is Capture.EXPLICIT
    (inbound,), (outbound,) = read.explicit.inbound, read.explicit.outbound
    assert (str(inbound.listen), str(inbound.application)) == ("0.0.0.0:8080", "127.0.0.1:18080")
    assert (str(outbound.listen), str(outbound.destination)) == ("127.0.0.1:15101", "10.96.0.7:80")


def test_a_native_sidecar_in_explicit_mode_is_to_be_had_for_jobs() -> None:
    made = injected(pod(annotations={**EXPLICIT, "native-sidecar": "true"}, restartPolicy="OnFailure"))
    assert named(made.pod, "initContainers") == ["hedgerow-sidecar"]
    assert not made.warnings


def test_a_confined_namespace_means_explicit_mode() -> None:
    declared = {"explicit-inbound": "8080=18080"}
    assert "initContainers" not in injected(pod(annotations=declared), RESTRICTED).pod["spec"]
    assert "hedgerow.dev/capture: redirect" in refused(pod(), RESTRICTED)
    exempt = injected(pod(annotations={"capture": "redirect"}), RESTRICTED)
    assert "hedgerow-capture" in named(exempt.pod, "initContainers")
    assert "restricted" in exempt.warnings[0]
    assert "explicit-inbound" in refused(pod(annotations={"capture": "explicit"}))
    assert "capture: explicit" in refused(pod(annotations=declared))


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


# --- left alone


@pytest.mark.parametrize("namespace", ["kube-system", "kube-public", "kube-node-lease", "hedgerow-system", "ci"])
def test_some_namespaces_are_never_injected(namespace: str) -> None:
    outcome = inject(pod(), Namespace(namespace), settings(excluded_namespaces=["ci"]))
    assert outcome == Skipped("namespace")


def test_pods_that_stay_as_they_are() -> None:
    def reason(given: dict[str, Any]) -> tuple[str, int]:
        outcome = inject(given, SHOP, settings())
        assert isinstance(outcome, Skipped), outcome
        return outcome.reason, len(outcome.warnings)

    assert reason(pod(hostNetwork=True)) == ("host-network", 1)
    assert reason(pod(os={"name": "windows"})) == ("windows", 1)
    assert reason(pod(nodeSelector={"kubernetes.io/os": "windows"})) == ("windows", 1)
    assert reason(pod(annotations={"injection": "disabled"})) == ("disabled", 0)
    assert reason(pod(annotations={"kubernetes.io/config.mirror": "x"})) == ("static-pod", 0)
    labelled = pod()
    labelled["metadata"]["labels"] = {names.INJECTION: "disabled"}
    assert reason(labelled) == ("disabled", 0)
    labelled["metadata"]["annotations"] = {names.INJECTION: "enabled"}
    assert "the label says something else" in refused(labelled)
    assert "enabled, disabled" in refused(pod(annotations={"injection": "off"}))


# --- refused


OUR_TOKEN = {"audience": "hedgerow-controller"}


def user(uid: object) -> dict[str, Any]:
    return {"runAsUser": uid}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (pod({"name": "hedgerow-sidecar", "image": "i"}), "spec.containers[0].name"),
        (pod(initContainers=[{"name": "hedgerow-capture", "image": "i"}]), "spec.initContainers[0].name"),
        (pod({"name": "a", "securityContext": user(1337)}), "spec.containers[0].securityContext.runAsUser"),
        (pod(initContainers=[{"name": "a", "securityContext": user(1337)}]), "spec.initContainers[0].securityContext"),
        (pod(ephemeralContainers=[{"name": "a", "securityContext": user(1337)}]), "spec.ephemeralContainers[0]"),
        (pod(securityContext=user(1337)), "spec.securityContext.runAsUser"),
        (pod({"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 15001}]}), "ports[1].containerPort"),
        (pod({"name": "a", "ports": [{"containerPort": 15053, "protocol": "UDP"}]}), "ports[0].containerPort"),
        (pod(volumes=[{"name": "hedgerow-token", "emptyDir": {}}]), "spec.volumes[0].name"),
        (pod({"name": "a", "volumeMounts": [{"name": "hedgerow-token", "mountPath": "/x"}]}), "volumeMounts[0]"),
        (
            pod(volumes=[{"name": "v", "projected": {"sources": [{"serviceAccountToken": OUR_TOKEN}]}}]),
            "sources[0].serviceAccountToken.audience",
        ),
        (pod({"image": "nameless"}), "spec.containers[0].name"),
        ({"metadata": {}, "spec": {}}, "spec.containers"),
        ({"metadata": {}, "spec": {"containers": "x"}}, "spec.containers"),
        ({"metadata": {}, "spec": {"containers": ["x"]}}, "spec.containers[0]"),
        ({"metadata": [], "spec": {}}, "pod.metadata"),
        ({"metadata": {"annotations": {"a": 1}}, "spec": {}}, "metadata.annotations[a]"),
    ],
)  # fmt: skip
def test_what_can_not_have_a_sidecar_is_refused_by_its_field(given: dict[str, Any], field: str) -> None:
    message = refused(given)
    assert field in message.partition(": ")[0], message
    assert "; " in message, "no remedy"


def test_a_container_with_a_user_of_its_own_does_not_mind_the_pods() -> None:
    given = pod({"name": "a", "securityContext": user(1000)}, securityContext=user(1337))
    assert injected(given)


def test_what_only_may_get_past_is_told() -> None:
    powers = {"capabilities": {"add": ["CAP_NET_ADMIN", "CHOWN"]}}
    for given_pod, word in (
        (pod({"name": "a", "securityContext": powers}), "NET_ADMIN"),
        (pod({"name": "a", "securityContext": {"privileged": True}}), "privileged"),
        (pod(hostPID=True), "hostPID"),
        (pod(shareProcessNamespace=True), "shareProcessNamespace"),
        (pod(dnsPolicy="None"), "hedgerow-controller.hedgerow-system.svc"),
        (pod({"name": "a", "lifecycle": {"preStop": {"httpGet": {"path": "/", "port": 1}}}}), "strict"),
    ):
        warnings = injected(given_pod).warnings
        assert len(warnings) == 1, warnings
        assert word in warnings[0]


def test_a_pod_without_a_token_of_its_own_still_has_the_sidecars() -> None:
    made = injected(pod(automountServiceAccountToken=False)).pod
    assert made["spec"]["automountServiceAccountToken"] is False
    assert names.TOKEN_VOLUME in named(made, "volumes")


# --- whatever is sent


WORDS = [
    "name",
    "containers",
    "initContainers",
    "volumes",
    "metadata",
    "spec",
    "annotations",
    "labels",
    "ports",
    "livenessProbe",
    "httpGet",
    "port",
    "path",
    "containerPort",
    "securityContext",
    "runAsUser",
    "projected",
    "sources",
    "hedgerow.dev/injected",
    "hedgerow.dev/capture",
    "volumeMounts",
    "capabilities",
    "add",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["http", "1337", "enabled"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(WORDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=30,
)


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
