"""docs/controller-settings.md tells of every setting of both programs, with the default and the bounds that hold."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.engine import EngineSettings
from controller.errors import ConfigError
from controller.injection.program_settings import InjectorSettings
from controller.injection.settings import CAPTURE_RESOURCES, SIDECAR_RESOURCES, InjectionSettings, Resources
from controller.kube.settings import KubernetesSettings
from controller.learner import Gate
from controller.settings import Settings, WebTls
from tests.settings_page import DOCS, section, table_rows

PAGE = (DOCS / "controller-settings.md").read_text()
CHARTS = DOCS.parent / "charts" / "hedgerow"
BASE = Path("/etc/hedgerow")

type Parse = Callable[[str, object], object]

CONTROLLER = table_rows(section(PAGE, "## controller.yaml").partition("### What can not be set")[0])
FIXED = table_rows(section(PAGE, "### What can not be set"))
INJECTOR = table_rows(section(PAGE, "## injector.yaml"))
CHART = table_rows(section(PAGE, "## Values of the chart"))

#: What else has to be said so that any value within the bounds of a setting is taken.
BESIDE: dict[str, dict[str, object]] = {
    "learning.stale_after": {"learning.retire_after": 315360000},
    "learning.retire_after": {"learning.stale_after": 1},
    "body_bytes": {"buffered_bytes": 1 << 30},
    "buffered_bytes": {"body_bytes": 65536},
    "web_tls.certificate": {"web_tls.key": "key.pem"},
    "web_tls.key": {"web_tls.certificate": "certificate.pem"},
}


def document(least: dict[str, Any], **changes: object) -> dict[str, Any]:
    """A document that can be read, with changes named as on the page; None leaves a setting out."""
    made = {name: dict(value) if isinstance(value, dict) else value for name, value in least.items()}
    for name, value in changes.items():
        *sections, last = name.split(".")
        inner = made
        for one in sections:
            inner = inner.setdefault(one, {})
        inner[last] = value
        if value is None:
            del inner[last]
    return made


def controller(name: str, value: object) -> Settings:
    least = {"state_dir": "state", **({"kubernetes": {}} if name.startswith("kubernetes") else {"inventory": "i.yaml"})}
    return Settings.parse(document(least, **{**BESIDE.get(name, {}), name: value}), BASE)


def injector(name: str, value: object) -> InjectorSettings:
    least = {"certificate": "tls.crt", "key": "tls.key", "injection": {"image": "sidecar:1"}}
    return InjectorSettings.parse(document(least, **{**BESIDE.get(name, {}), name: value}), BASE)


EVERY = [(controller, name, cells) for name, cells in CONTROLLER.items()]
EVERY += [(injector, name, cells) for name, cells in INJECTOR.items()]


def names_of(kind: Any, within: str = "", **inner: Any) -> dict[str, object]:
    """The settings of a class and their defaults, sections in place of those fields that are some."""
    found: dict[str, object] = {}
    for one in dataclasses.fields(kind):
        name = f"{within}{one.name}"
        if one.name in inner:
            found |= names_of(inner[one.name], f"{name}.")
        else:
            found[name] = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
    return found


#: Of each program, the settings and their defaults, as the code has them.
KNOWN: dict[Parse, dict[str, object]] = {
    controller: names_of(Settings, kubernetes=KubernetesSettings, learning=Gate, web_tls=WebTls),
    injector: names_of(InjectorSettings, injection=InjectionSettings),
}


def ids(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return value.__name__ if callable(value) else ""


def test_the_page_tells_of_every_setting_and_of_no_other() -> None:
    assert set(CONTROLLER) == set(KNOWN[controller])
    assert set(INJECTOR) == set(KNOWN[injector])
    assert set(FIXED) <= set(names_of(EngineSettings))


def test_what_is_needed_is_refused_when_it_is_missing() -> None:
    needed = {name for _, name, cells in EVERY if cells[0] == "**needed**"}
    assert needed == {"state_dir", "certificate", "key", "injection.image"}
    for parse, name, cells in EVERY:
        if cells[0] == "**needed**":
            with pytest.raises(ConfigError, match=rf"^{name}: missing; add the setting"):
                parse(name, None)


@pytest.mark.parametrize(("parse", "name", "cells"), EVERY, ids=ids)
def test_the_page_gives_the_default(parse: Parse, name: str, cells: list[str]) -> None:
    default, written = KNOWN[parse][name], cells[0]
    if name.startswith("web_tls."):
        assert Settings(BASE).web_tls is None
        assert written == "–"
    elif default is dataclasses.MISSING:
        assert written == "**needed**"
    elif name in ("injection.controller", "injection.issuer"):
        assert written == f"`{default}`".replace("hedgerow-system", "<namespace>")
        assert parse(name, str(default)) == parse(name, None)
    elif isinstance(default, Resources):
        assert written == f"requests {', '.join(default.requests.values())}; limit {default.limits['memory']}"
        assert (set(default.requests), set(default.limits)) == ({"cpu", "memory"}, {"memory"})
    elif default in (None, (), "", frozenset(), {}):
        assert written == "–"
    elif isinstance(default, bool):
        assert written == f"`{str(default).lower()}`"
        assert parse(name, default) == parse(name, None)
    elif isinstance(default, int | float):
        number, *unit = written.split()
        assert float(number) == default
        assert unit == (["s"] if re.search(r"\d s\b", cells[1]) else [])
        assert parse(name, default) == parse(name, None)
    else:
        assert written == f"`{default}`"
        assert parse(name, str(default)) == parse(name, None)


RANGES = [(parse, name, cells[1]) for parse, name, cells in EVERY if " – " in cells[1]]


@pytest.mark.parametrize(("parse", "name", "may_be"), RANGES, ids=ids)
def test_the_page_gives_the_bounds(parse: Parse, name: str, may_be: str) -> None:
    found = re.match(r"([\d.]+) – ([\d.]+)", may_be)
    assert found
    whole = isinstance(KNOWN[parse][name], int)
    low, high = (int(one) if whole else float(one) for one in found.groups())
    for within in (low, high):
        parse(name, int(within) if float(within).is_integer() else within)
    under, over = (low - 1, high + 1) if whole else (math.nextafter(low, -1), math.nextafter(high, math.inf))
    for beyond in (under, over):
        with pytest.raises(ConfigError, match=rf"^{name}: .*; write (seconds|a whole number) from ") as refused:
            parse(name, beyond)
        assert refused.value.remedy.endswith(f"from {found[1]} to {found[2]}")


def test_every_number_has_its_bounds_on_the_page() -> None:
    numbers = {
        name
        for known in KNOWN.values()
        for name, default in known.items()
        if isinstance(default, int | float) and not isinstance(default, bool)
    }
    assert numbers == {name for _, name, _ in RANGES}


WORDS = [
    (parse, name, cells[1])
    for parse, name, cells in EVERY
    if re.fullmatch(r"(list of )?(`[\w-]+`, )+`[\w-]+`", cells[1]) and "true" not in cells[1]
]


@pytest.mark.parametrize(("parse", "name", "may_be"), WORDS, ids=ids)
def test_the_page_gives_the_choices(parse: Parse, name: str, may_be: str) -> None:
    many = may_be.startswith("list of ")
    words = re.findall(r"`([\w-]+)`", may_be)
    for one in words:
        parse(name, [one] if many else one)
    with pytest.raises(ConfigError, match=rf"^{name}(\[0\])?: ") as refused:
        parse(name, ["none of them"] if many else "none of them")
    assert refused.value.remedy == f"use one of: {', '.join(words)}"


#: What no setting takes, whatever it is for: of every kind that YAML can hold, as people get it wrong.
NOBODY_S = [" ", "\x07", "two\nlines", -1, float("nan"), float("inf"), [[]], {"": 1}, b"x"]


@pytest.mark.parametrize(("parse", "name", "cells"), EVERY, ids=ids)
@pytest.mark.parametrize("value", NOBODY_S, ids=repr)
def test_what_is_wrong_is_refused_by_its_name_and_with_a_remedy(
    parse: Parse, name: str, cells: list[str], value: object
) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(name, value)
    assert re.fullmatch(rf"{re.escape(name)}(\[0\]|\..*)?", refused.value.field)
    assert refused.value.remedy
    assert len(str(refused.value)) < 500


def test_bounds_are_written_as_people_write_numbers() -> None:
    with pytest.raises(ConfigError, match=r"write seconds from 1 to 315360000$"):
        controller("learning.stale_after", -1)


def test_what_can_not_be_set_is_what_holds() -> None:
    for name, (bound, _) in FIXED.items():
        number, *unit = bound.split()
        value = getattr(EngineSettings(), name)
        assert float(number) == value
        assert unit == (["s"] if isinstance(value, float) else [])


def test_one_review_of_the_largest_size_can_always_be_read() -> None:
    least = {"certificate": "tls.crt", "key": "tls.key", "injection": {"image": "sidecar:1"}, "body_bytes": 4 << 20}
    assert InjectorSettings.parse({**least, "buffered_bytes": 4 << 20}, BASE).buffered_bytes == 4 << 20
    with pytest.raises(ConfigError, match=r"^buffered_bytes: 4194303 is less than body_bytes, which is 4194304; let "):
        InjectorSettings.parse({**least, "buffered_bytes": (4 << 20) - 1}, BASE)


class TestChart:
    """The table of the chart's values, against the chart's own files."""

    TEMPLATE = (CHARTS / "templates" / "_settings.tpl").read_text()
    VALUES = yaml.safe_load((CHARTS / "values.yaml").read_text())

    def of(self, name: str) -> Any:
        value = self.VALUES
        for part in name.split("."):
            value = value[part]
        return value

    def test_every_value_that_goes_into_settings_is_there(self) -> None:
        assert "$c := .Values.controller" in self.TEMPLATE
        assert "$s := .Values.sidecar" in self.TEMPLATE
        used = {f"controller.{name}" for name in re.findall(r"\$c\.([\w.]+)", self.TEMPLATE)}
        used |= {f"sidecar.{name}" for name in re.findall(r"\$s\.([\w.]+)", self.TEMPLATE)}
        used |= set(re.findall(r"\.Values\.([\w.]+)", self.TEMPLATE)) - {"controller", "sidecar"}
        assert {name.replace("image.pullPolicy", "image") for name in used} == set(CHART)

    @pytest.mark.parametrize("name", CHART)
    def test_its_default_and_its_setting(self, name: str) -> None:
        written, settings = CHART[name]
        default = self.of(name)
        if name == "sidecar.image":
            assert written.startswith(f"`{default['repository']}`")
            assert (default["tag"], default["digest"]) == ("", "")
            assert default["pullPolicy"] == InjectionSettings("x").image_pull_policy
        elif written == "as above":
            setting = {"sidecar.resources": SIDECAR_RESOURCES, "sidecar.captureResources": CAPTURE_RESOURCES}[name]
            assert default == {"requests": dict(setting.requests), "limits": dict(setting.limits)}
        elif isinstance(default, bool | str) and default != "":
            assert written == f"`{str(default).lower() if isinstance(default, bool) else default}`"
        else:
            assert written == (str(default) if isinstance(default, int) else "–")
        named = re.findall(r"`([\w.]+)`", settings)
        assert named
        assert set(named) <= {*CONTROLLER, *INJECTOR}

    @pytest.mark.parametrize("name", CHART)
    def test_helm_refuses_the_numbers_that_the_programs_would(self, name: str) -> None:
        """Before anything is installed; only a certificate that is too short for a cluster is the chart's own word."""
        said = json.loads((CHARTS / "values.schema.json").read_text())
        for part in name.split("."):
            said = said["properties"][part]
        for setting in re.findall(r"`([\w.]+)`", CHART[name][1]):
            bounds = re.match(r"([\d.]+) – ([\d.]+)", {**CONTROLLER, **INJECTOR}[setting][1])
            if bounds:
                low = 60 if setting == "svid_lifetime" else float(bounds[1])
                assert (said["minimum"], said["maximum"]) == (low, float(bounds[2]))
            most = re.match(r"list of at most (\d+) ", {**CONTROLLER, **INJECTOR}[setting][1])
            if most:
                assert said["maxItems"] == int(most[1])
