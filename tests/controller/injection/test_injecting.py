"""What becomes of a pod: its containers, their order, and what they may do."""

from __future__ import annotations

import pytest

from controller.injection import names
from sidecar.capture_settings import Capture
from tests.controller.injection.pods import (
    EXPLICIT,
    RESTRICTED,
    accepted,
    container,
    document,
    injected,
    named,
    pod,
    refused,
)


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


def test_the_token_is_for_whom_and_for_how_long_the_settings_say() -> None:
    made = injected(pod(), token_audience="mesh.example", token_seconds=900).pod
    (volume,) = [one for one in made["spec"]["volumes"] if one["name"] == names.TOKEN_VOLUME]
    (token,) = volume["projected"]["sources"]
    assert token["serviceAccountToken"] == {"audience": "mesh.example", "expirationSeconds": 900, "path": "token"}


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


def test_what_every_sidecar_is_told_of_capture_is_not_told_to_one_without() -> None:
    general = {"exclude_cidrs": ["10.0.0.0/8"], "exclude_outbound_ports": [25], "exit_with_application": True}
    made = injected(pod(annotations=EXPLICIT), sidecar={**general, "udp": "drop"})
    read = accepted(made.pod)
    assert (read.exclude_cidrs, read.exclude_outbound_ports, read.exit_with_application) == ((), (), False)
    assert accepted(injected(pod(), sidecar=general).pod).exclude_cidrs == ("10.0.0.0/8",)


@pytest.mark.parametrize("name", ["exclude-cidrs", "exclude-inbound-ports", "exclude-outbound-ports"])
def test_a_pod_without_capture_is_refused_what_would_be_without_effect(name: str) -> None:
    value = "10.0.0.0/8" if name == "exclude-cidrs" else "25"
    said = refused(pod(annotations={**EXPLICIT, name: value}), allow_annotations=[name])
    assert said.startswith(f"metadata.annotations[hedgerow.dev/{name}]: nothing of this pod is captured")
    assert "remove it, or set hedgerow.dev/capture: redirect" in said
    assert injected(pod(annotations={name: value}), allow_annotations=[name])


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


def test_a_pod_without_a_token_of_its_own_still_has_the_sidecars() -> None:
    made = injected(pod(automountServiceAccountToken=False)).pod
    assert made["spec"]["automountServiceAccountToken"] is False
    assert names.TOKEN_VOLUME in named(made, "volumes")
