"""Whom tokens are for is one setting of two programs, with one default and one form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controller.errors import ConfigError
from controller.injection.audience import AUDIENCE
from controller.injection.program_settings import InjectorSettings
from controller.injection.settings import InjectionSettings
from controller.kube.settings import KubernetesSettings
from controller.settings import Settings

BASE = Path("/etc/hedgerow")


def of_the_injector(**given: Any) -> str:
    document = {"certificate": "a", "key": "b", "injection": {"image": "x", **given}}
    return InjectorSettings.parse(document, BASE).injection.token_audience


def of_the_controller(**given: Any) -> str:
    kubernetes = Settings.parse({"state_dir": "state", "kubernetes": given}, BASE).kubernetes
    assert kubernetes is not None
    return kubernetes.token_audience


def test_both_have_the_same_default() -> None:
    assert of_the_injector() == of_the_controller() == AUDIENCE == "hedgerow-controller"
    assert InjectionSettings("x").token_audience == KubernetesSettings().token_audience == AUDIENCE


@pytest.mark.parametrize(
    "audience",
    [
        "mesh.example",
        "https://mesh.example/controller",
        "x",
        "y" * 253,
        "kubernetes-mesh",
        "api",
        '"\\',
        "Kubernetes.io",
    ],
)
def test_both_take_what_is_a_name_of_the_controller_s_own(audience: str) -> None:
    assert of_the_injector(token_audience=audience) == of_the_controller(token_audience=audience) == audience


@pytest.mark.parametrize(
    ("audience", "remedy"),
    [
        ("", "write something"),
        ("two words", "visible ASCII"),
        ("é", "visible ASCII"),
        ("y" * 254, "253"),
        (7, "write a string"),
        (None, "write a string"),
        (["a", "b"], "write a string"),
        ("https://kubernetes.default.svc", "the controller's alone, such as hedgerow-controller"),
        ("https://kubernetes.default.svc.cluster.local", "alone"),
        ("HTTPS://Kubernetes.default.svc:443/", "alone"),
        ("kubernetes.default", "alone"),
        ("kubernetes", "alone"),
    ],
)
def test_both_refuse_the_same_by_its_field(audience: object, remedy: str) -> None:
    for section, parse in (("injection", of_the_injector), ("kubernetes", of_the_controller)):
        with pytest.raises(ConfigError) as refused:
            parse(token_audience=audience)
        assert refused.value.field == f"{section}.token_audience"
        assert remedy in refused.value.remedy
