"""The Dockerfile makes what the archives hold: read here as text, for most machines have no engine to build it with."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from e2e.images import debian
from e2e.images.build import CONTROLLER, SIDECAR, Image

ROOT = Path(__file__).parents[3]
LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
STEPS = [line.split(None, 1) for line in LINES if line.strip() and not line.startswith("#")]


def stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """The stages by name: what each is built on, and its steps."""
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    current: list[tuple[str, str]] = []
    for instruction, rest in STEPS:
        if instruction == "FROM":
            base, _, name = rest.split()
            current = []
            found[name] = (base, current)
        else:
            current.append((instruction, rest))
    return found


def step(stage: str, instruction: str) -> str:
    (rest,) = [rest for found, rest in stages()[stage][1] if found == instruction]
    return rest


def test_every_base_is_pinned_by_digest() -> None:
    pinned = dict(rest.split("=", 1) for instruction, rest in STEPS if instruction == "ARG")
    for base, _ in stages().values():
        if base not in stages():
            argument = base.removeprefix("${").removesuffix("}")
            assert re.fullmatch(r"[a-z]+:[0-9a-z.-]+@sha256:[0-9a-f]{64}", pinned[argument]), base


@pytest.mark.parametrize("image", [SIDECAR, CONTROLLER], ids=lambda image: image.name)
def test_an_image_starts_as_its_archive_does(image: Image) -> None:
    stage = image.name.removeprefix("hedgerow-")

    assert step(stage, "USER") == image.settings.user
    assert eval(step(stage, "ENTRYPOINT")) == list(image.settings.entrypoint)
    for name, value in image.settings.environment.items():
        assert f"{name}={value}" in step("runtime", "ENV").split()
    for name, value in image.settings.labels.items():
        assert f"{name}={value}" in step(stage, "LABEL").split()
    assert f"/requirements/{image.requirements.name}" in step(f"{stage}-packages", "RUN")


@pytest.mark.parametrize("stage", ["sidecar", "controller"])
def test_an_image_takes_nothing_from_a_stage_that_builds(stage: str) -> None:
    base, steps = stages()[stage]

    assert base == "runtime"
    assert {instruction for instruction, _ in steps} == {"LABEL", "ARG", "COPY", "USER", "ENTRYPOINT"}
    copied = [rest for instruction, rest in steps if instruction == "COPY"]
    assert [rest.split()[-1] for rest in copied] == ["/opt/hedgerow", "/usr/share/hedgerow"]


def test_packages_are_pinned_by_hash_and_never_compiled() -> None:
    for name in ("wheel", "sidecar-packages", "controller-packages"):
        for command in step_commands(name):
            if "install" in command and "--requirement" in command:
                assert "--require-hashes" in command
                assert "--only-binary=:all:" in command


def test_the_build_tools_that_are_installed_need_no_others() -> None:
    """With hashes asked for, pip takes nothing that the list does not name."""
    (chosen,) = re.findall(r"/\^\(([a-z|-]+)\)==/", " ".join(step_commands("wheel")))
    named = set(chosen.split("|"))
    wanted, needed = ["hatchling"], set[str]()
    while wanted:
        name = wanted.pop()
        needed.add(name)
        required = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
        here = [part for part in required if part.marker is None or part.marker.evaluate({"extra": ""})]
        wanted += [part.name for part in here if part.name not in needed]

    assert named == needed


def test_secrets_are_mounted_over_nothing_that_the_images_hold() -> None:
    (install,) = [rest for instruction, rest in stages()["runtime"][1] if instruction == "RUN"]

    assert re.findall(r"--mount=(\S+)", install) == ["type=secret,id=apt,target=/run/apt.conf"]
    for _, steps in stages().values():
        for instruction, rest in steps:
            if instruction == "RUN":
                assert all(mount.startswith("type=secret,") for mount in re.findall(r"--mount=(\S+)", rest))


def step_commands(stage: str) -> list[str]:
    commands = [part for instruction, rest in stages()[stage][1] if instruction == "RUN" for part in rest.split("&&")]
    assert any("pip" in command for command in commands)
    return commands


def test_the_runtime_holds_what_the_archives_base_does() -> None:
    installed = step("runtime", "RUN").split("install --yes --no-install-recommends ")[1].split("&&")[0].split()

    # The Python image brings its own Python, certificates, netbase and time zones.
    assert set(installed) == set(debian.PACKAGES) - {"python3", "ca-certificates", "netbase", "tzdata"}
    assert f"--uid {debian.UID}" in step("runtime", "RUN")
    assert "pip uninstall" in step("runtime", "RUN")
    python = [rest for instruction, rest in STEPS if instruction == "ARG" and rest.startswith("PYTHON_IMAGE=")]
    assert python[0].startswith(f"PYTHON_IMAGE=python:{debian.PYTHON.removeprefix('python')}-slim-{debian.SUITE}@")


def test_the_build_sees_what_it_copies_and_no_more() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    admitted = {line[1:] for line in ignored if line.startswith("!")}
    copied = set()
    for instruction, rest in STEPS:
        if instruction == "COPY" and not rest.startswith("--from"):
            copied |= {source.split("/")[0] if not source.startswith("e2e") else source for source in rest.split()[:-1]}

    assert "*" in ignored
    assert copied == admitted
    assert all((ROOT / name).exists() for name in copied)
