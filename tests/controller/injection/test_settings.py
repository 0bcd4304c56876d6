"""The settings of the injector, and that docs/injection.md says which annotations there are."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from controller.errors import ConfigError
from controller.injection import names
from controller.injection.annotations import ANNOTATIONS
from controller.injection.program_settings import InjectorSettings, read_injection_section
from controller.injection.settings import MADE, PASSED, InjectionSettings, Resources
from controller.injection.webhook_configuration import PATHS, webhook_configuration
from sidecar.settings import Settings

PAGE = (Path(__file__).parents[3] / "docs" / "injection.md").read_text()
IMAGE = {"image": "x"}


def parse(**given: Any) -> InjectorSettings:
    return InjectorSettings.parse({"certificate": "a", "key": "b", "injection": IMAGE, **given}, Path("/etc"))


def test_the_least_that_has_to_be_said() -> None:
    settings = parse()
    assert settings.certificate == Path("/etc/a")
    assert settings.injection == InjectionSettings(image="x")
    assert (
        str(parse(injection={**IMAGE, "namespace": "mesh"}).injection.controller)
        == "hedgerow-controller.mesh.svc:15012"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"injection": None}, "injection: nothing is not a mapping"),
        ({"injection": {}}, "injection.image: missing"),
        ({"injection": {"image": "a b"}}, "injection.image"),
        ({"injection": {**IMAGE, "imge": 1}}, "did you mean 'image'?"),
        ({"injection": {**IMAGE, "kubernetes_version": 1.3}}, "in quotes"),
        ({"injection": {**IMAGE, "allow_annotations": ["workers"]}}, "injection.allow_annotations[0]"),
        ({"injection": {**IMAGE, "sidecar": {"uid": 0}}}, "injection.sidecar.uid: is made by the injector"),
        ({"injection": {**IMAGE, "sidecar": {"udpp": "drop"}}}, "injection.sidecar.udpp: unknown setting"),
        ({"injection": {**IMAGE, "sidecar": []}}, "injection.sidecar"),
        ({"injection": {**IMAGE, "resources": {"requests": {"cpu": "x"}}}}, "injection.resources.requests.cpu"),
        (
            {"injection": {**IMAGE, "resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "512Mi"}}}},
            "1Gi is more than the limit, 512Mi",
        ),
        ({"injection": {**IMAGE, "token_seconds": 60}}, "600"),
        ({"listen": "localhost:8443"}, "listen"),
        ({"deadline": 100}, "deadline"),
        ({"ready": True}, "ready: unknown setting"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(**given)
    assert said in str(refused.value)


def test_versions_and_resources() -> None:
    assert parse(injection={**IMAGE, "kubernetes_version": "v1.36.3"}).injection.kubernetes_version == (1, 36)
    given = {"requests": {"cpu": 1, "memory": 134217728.0}, "limits": {"cpu": 1.5, "memory": "1Gi"}}
    assert parse(injection={**IMAGE, "resources": given}).injection.resources == Resources(
        {"cpu": "1", "memory": "134217728"}, {"cpu": "1.5", "memory": "1Gi"}
    )


@pytest.mark.parametrize("amount", [1e-5, -0.5, 1e300, float("nan"), float("inf"), True])
def test_a_number_that_is_no_amount_is_refused(amount: float) -> None:
    with pytest.raises(ConfigError, match=r"^injection\.resources\.limits\.cpu: .* is no quantity; write one such as "):
        parse(injection={**IMAGE, "resources": {"limits": {"cpu": amount}}})


def test_a_file_s_section_alone_is_enough_for_files(tmp_path: Path) -> None:
    (tmp_path / "i.yaml").write_text("injection: {image: x}\nanything: else\n")
    assert read_injection_section(tmp_path / "i.yaml") == InjectionSettings(image="x")
    with pytest.raises(ConfigError, match="can not be read"):
        read_injection_section(tmp_path / "none")


def test_every_setting_of_a_sidecar_is_either_made_or_passed() -> None:
    """One that is new has to be put into either list."""
    known = {field.name for field in dataclasses.fields(Settings)}
    assert known == MADE | PASSED
    assert not MADE & PASSED


def test_the_page_names_every_annotation() -> None:
    """The settings have a page of their own: tests/controller/test_settings_page.py."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    words = set(re.findall(r"`([a-z_.-]+)`", " ".join(row.split("|")[1] for row in rows)))
    assert set(ANNOTATIONS) <= words
    for port in names.PORTS:
        assert str(port) in PAGE


def test_the_webhook_configuration_selects_each_namespace_at_most_once() -> None:
    """Of the hooks for new pods, for every Pod Security level and none, exactly one selects an enabled namespace."""
    hooks = [hook for hook in webhook_configuration("mesh", excluded=["ci"])["webhooks"] if "objectSelector" in hook]

    def selects(hook: dict[str, Any], labels: dict[str, str]) -> bool:
        for one in hook["namespaceSelector"]["matchExpressions"]:
            within = labels.get(one["key"]) in one["values"]
            if within is not (one["operator"] == "In"):
                return False
        return True

    for level in (None, "privileged", "baseline", "restricted"):
        labels = {names.INJECTION: "enabled", "kubernetes.io/metadata.name": "shop"}
        labels |= {"pod-security.kubernetes.io/enforce": level} if level else {}
        (hook,) = [hook for hook in hooks if selects(hook, labels)]
        assert PATHS[hook["clientConfig"]["service"]["path"]] == (level or "privileged")
        for never in ("kube-system", "mesh", "ci"):
            assert not any(selects(hook, {**labels, "kubernetes.io/metadata.name": never}) for hook in hooks)
        assert not any(selects(hook, {**labels, names.INJECTION: "disabled"}) for hook in hooks)
