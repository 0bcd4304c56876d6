"""Injected pods under Pod Security, as the API server's own admission judges it."""

from __future__ import annotations

import copy

import pytest

from e2e.apiserver.injector import ENABLED, RunningInjector, create, names_of, pod
from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError
from e2e.harness.programs import until

PLAIN = {
    "name": "app",
    "image": "none.example/app:1",
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}


@pytest.mark.parametrize("level", ["restricted", "baseline"])
def test_explicit_mode_passes_pod_security_entirely(
    apiserver: ApiServer, injector: RunningInjector, level: str
) -> None:
    space = apiserver.create_namespace({**ENABLED, "pod-security.kubernetes.io/enforce": level})
    try:
        explicit = {"hedgerow.dev/explicit-inbound": "8080=18080"}

        def asked() -> bool:
            made = create(apiserver, space, pod("first", PLAIN, annotations=explicit), dry_run=True)
            return names_of(made, "containers")[0] == "hedgerow-sidecar"

        until(asked, "the namespace's label seen")
        made = create(apiserver, space, pod("explicit", PLAIN, annotations=explicit))
        assert names_of(made, "containers") == ["hedgerow-sidecar", "app"]
        assert not names_of(made)
        native = {**explicit, "hedgerow.dev/native-sidecar": "true"}
        assert names_of(create(apiserver, space, pod("native", PLAIN, annotations=native))) == ["hedgerow-sidecar"]
        with pytest.raises(ApiError, match="explicit-inbound"):
            create(apiserver, space, pod("undeclared", PLAIN))
    finally:
        apiserver.delete_namespace(space)


def test_capture_passes_restricted_except_for_the_documented_container(
    apiserver: ApiServer, injector: RunningInjector
) -> None:
    space = apiserver.create_namespace({**ENABLED, "pod-security.kubernetes.io/enforce": "restricted"})
    try:
        redirect = pod("redirect", PLAIN, annotations={"hedgerow.dev/capture": "redirect"})
        refusals: list[str] = []

        def judged() -> bool:
            try:
                create(apiserver, space, copy.deepcopy(redirect), dry_run=True)
            except ApiError as error:
                refusals.append(str(error))
                return "violates PodSecurity" in str(error)
            return False

        until(judged, "judged by Pod Security")
        violations = refusals[-1].partition('violates PodSecurity "restricted:latest": ')[2]
        assert 'container "hedgerow-capture"' in violations
        for other in ("hedgerow-sidecar", "hedgerow-validation", "app"):
            assert f'"{other}"' not in violations, violations
        assert "NET_ADMIN" in violations
        assert "runAsUser=0" in violations or "runAsNonRoot" in violations
        for clean in ("seccompProfile", "allowPrivilegeEscalation", "volume", "privileged", "hostPath"):
            assert clean not in violations, violations
    finally:
        apiserver.delete_namespace(space)
