"""What authors of pods may say, what needs an administrator's word, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.injection import names
from controller.injection.annotations import ANNOTATIONS, WEAKENING
from controller.injection.injecting import Injected, Refused, inject
from controller.injection.settings import PASSED
from tests.controller.injection.pods import (
    SHOP,
    accepted,
    container,
    document,
    injected,
    pod,
    refused,
    settings,
    variable,
)


@pytest.mark.parametrize(
    ("name", "written", "setting", "value"),
    [
        ("opaque-ports", "3306, 5432", "opaque_ports", frozenset({3306, 5432})),
        ("opaque-ports", "", "opaque_ports", frozenset()),
        ("mtls-ports", "15443", "mtls_ports", frozenset({15443})),
        ("workers", "4", "workers", 4),
        ("drain-seconds", "2.5", "drain_seconds", 2.5),
        ("report-interval", "5", "report_interval", 5.0),
        ("log-level", "debug", "log_level", "debug"),
        ("access-log", "all", "access_log", "all"),
        ("udp", "drop", "udp", "drop"),
    ],
)
def test_a_setting_reaches_the_sidecar(name: str, written: str, setting: str, value: object) -> None:
    assert getattr(accepted(injected(pod(annotations={name: written})).pod), setting) == value


def test_inspected_ports_stand_beside_what_holds_for_all() -> None:
    everywhere = {"inspect": {"visible": ["x-kind"]}, "log_level": "warning"}
    made = injected(pod(annotations={"inspect-ports": "8080"}), sidecar=everywhere).pod
    said = document(made)
    assert said["inspect"] == {"visible": ["x-kind"], "ports": [8080]}
    assert said["log_level"] == "warning"
    assert accepted(made)


def test_resources_are_the_sidecars_own() -> None:
    asked = {"cpu-request": "200m", "memory-limit": "1Gi", "memory-request": "200Mi", "cpu-limit": "2"}
    made = injected(pod(annotations=asked)).pod
    assert container(made, names.SIDECAR)["resources"] == {
        "limits": {"cpu": "2", "memory": "1Gi"},
        "requests": {"cpu": "200m", "memory": "200Mi"},
    }
    assert container(made, names.CAPTURE)["resources"]["limits"] == {"memory": "128Mi"}
    assert "memory-limit" in refused(pod(annotations={"memory-request": "2Gi"}))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("capture", "none"),
        ("capture", ""),
        ("opaque-ports", "0"),
        ("opaque-ports", "80,"),
        ("opaque-ports", "80;81"),
        ("opaque-ports", ",".join(["80"] * 300)),
        ("workers", "0"),
        ("workers", "-1"),
        ("workers", "１"),
        ("workers", "1" * 5000),
        ("drain-seconds", "nan"),
        ("drain-seconds", "inf"),
        ("drain-seconds", "1_0" * 2000),
        ("native-sidecar", "True"),
        ("cpu-request", "lots"),
        ("memory-limit", "-1"),
        ("memory-limit", "1e9"),
        ("explicit-inbound", "8080"),
        ("explicit-inbound", "8080=8080"),
        ("explicit-outbound", "15101=cart:80"),
        ("explicit-outbound", "15101=10.0.0.1:0"),
        ("log-level", "$(HOME)"),
        ("log-level", "info\n"),
        ("no-such-thing", "1"),
        ("Capture", "redirect"),
        ("uid", "0"),
        ("run-as-user", "0"),
        ("capabilities", "ALL"),
        ("privileged", "true"),
        ("sidecar", "{}"),
        ("state-dir", "/"),
        ("", ""),
        ("opaque-ports\x1b[2J", "80"),
    ],
)
def test_what_is_not_understood_is_refused_with_a_remedy(name: str, written: str) -> None:
    message = refused(pod(annotations={names.PREFIX + name: written}))
    assert message.startswith("metadata.annotations[hedgerow.dev/")
    assert "; " in message
    assert message.isprintable()
    assert len(message) < 700


def test_a_misspelt_name_is_pointed_out() -> None:
    assert "did you mean hedgerow.dev/opaque-ports?" in refused(pod(annotations={"opaque-port": "80"}))


WEAK = {
    "exclude-cidrs": "10.0.0.0/8",
    "exclude-outbound-ports": "443",
    "exclude-inbound-ports": "9100",
    "udp": "allow",
    "unsynced": "learn",
    "telemetry": "off",
    "dns-proxy": "false",
    "image": "registry.example/other:1",
}


def test_every_annotation_that_weakens_is_in_the_table_here() -> None:
    assert set(WEAK) == WEAKENING


@pytest.mark.parametrize("name", sorted(WEAK))
def test_what_weakens_needs_the_word_of_an_administrator(name: str) -> None:
    asking = pod(annotations={name: WEAK[name]})
    assert f"add '{name}' to allow_annotations" in refused(asking)
    made = injected(asking, allow_annotations=[name]).pod
    assert accepted(made)
    assert made != injected(pod(annotations={}), allow_annotations=[name]).pod


def test_users_and_rights_can_not_be_changed_by_any_annotation() -> None:
    plain = injected(pod()).pod
    everything = {**WEAK, "workers": "2", "memory-limit": "2Gi", "log-level": "debug"}
    made = injected(pod(annotations=everything), allow_annotations=sorted(WEAKENING)).pod
    for name in names.CONTAINERS:
        for part in ("securityContext", "volumeMounts", "command"):
            assert container(made, name)[part] == container(plain, name)[part]


def test_settings_that_annotations_make_are_settings_of_the_sidecar() -> None:
    for annotation in ANNOTATIONS.values():
        assert not annotation.setting or annotation.setting.partition(".")[0] in PASSED


@given(st.sampled_from(sorted(ANNOTATIONS)), st.text(max_size=60))
def test_whatever_an_annotation_says_the_sidecar_can_read_or_the_pod_is_refused(name: str, written: str) -> None:
    asking = pod(annotations={names.PREFIX + name: written})
    outcome = inject(asking, SHOP, settings(allow_annotations=sorted(WEAKENING)))
    if isinstance(outcome, Injected):
        assert accepted(outcome.pod)
        text = variable(outcome.pod)
        references = {"$(POD_NAME)", "$(POD_IPS)"}
        left = text.replace("$$", "")
        for reference in references:
            left = left.replace(reference, "")
        assert "$" not in left
    elif isinstance(outcome, Refused):
        assert str(outcome.error).isprintable()


def test_values_that_are_no_text_are_refused() -> None:
    value: Any = 8080
    assert "text" in refused(pod(annotations={"opaque-ports": value}))
