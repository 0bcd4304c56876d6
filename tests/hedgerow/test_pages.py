"""What pages show is what there is: every `hedgerow` command with its options, every file of docs/standalone.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main
import yaml
from typer.core import TyperGroup

import controller.settings as controller_settings
import sidecar.settings as sidecar_settings
from controller.inventory import load_inventory
from hedgerow.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "charts" / "hedgerow" / "templates" / "NOTES.txt",
)
#: Of people who type it, who have the files that the examples name.
FILES = ("app.yaml", "controller.yaml", "sidecar.yaml", "injector.yaml")

#: What click raises, or the copy of it that typer has.
USAGE_ERROR = typer.BadParameter.__bases__[0]


@dataclass(frozen=True)
class Shown:
    """:param whole: to be typed as it is; else it is only spoken of, and needs no arguments"""

    page: Path
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page.name}: {shlex.join(self.words)}"


def commands(page: Path) -> Iterator[Shown]:
    """Lines of code that begin with ``hedgerow``, and what stands in a sentence between backticks."""
    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"^\s+(?:\.venv/bin/)?hedgerow (?!──)(.*)$", text, re.MULTILINE):
        parts = re.split(r" · ", re.split(r"\s+#|\s+[|>]\s|\s+2>", line)[0])
        for part in parts:
            found = list(alternatives(part))
            yield from (Shown(page, words, len(parts) == len({each[:2] for each in found}) == 1) for words in found)
    for span in re.findall(r"`hedgerow ([^`]*)`", text):
        yield from (Shown(page, words, False) for words in alternatives(span))


def alternatives(written: str) -> Iterator[tuple[str, ...]]:
    """``policy show|diff`` is two commands; what is in square brackets may be left out and is not."""
    words = shlex.split(re.sub(r"(?<!\S)\[([^\]:]*)\](?!\S)", r"\1", written))
    many = [word.split("|") if re.fullmatch(r"[a-z|]+", word) else [word] for word in words]
    longest = max((len(each) for each in many), default=1)
    for number in range(longest):
        yield tuple(each[number % len(each)] for each in many)


SHOWN = [shown for page in PAGES for shown in commands(page)]


def test_there_is_something_to_check() -> None:
    assert len(SHOWN) > 60
    assert {shown.words[0] for shown in SHOWN} > {"allow", "deny", "status", "why", "check", "inject", "controller"}
    assert sum(shown.whole for shown in SHOWN) > 30


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).touch()


def check(shown: Shown) -> None:
    command = typer.main.get_command(app)
    rest = list(shown.words)
    context = command.context_class(command, info_name="hedgerow")
    while isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        if found is None:
            raise USAGE_ERROR(f"there is no {rest[0]} among {command.list_commands(context)}")
        command, name = found, rest.pop(0)
        context = command.context_class(command, info_name=name, parent=context)
    if shown.whole:
        command.make_context("hedgerow", rest, parent=context.parent)
    else:
        command.make_parser(context).parse_args([] if rest == ["…"] else rest)


@pytest.mark.parametrize("shown", SHOWN, ids=str)
def test_it_is_a_command_of_ours(shown: Shown) -> None:
    check(shown)


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        ("polcy show", False),
        ("policy shwo", False),
        ("status --colour", False),
        ("graph -o png", True),
        ("allow shop/front shop/cart:8080 --for 8h", True),  # no reason
    ],
)
def test_another_is_found(words: str, whole: bool) -> None:
    with pytest.raises(USAGE_ERROR):
        check(Shown(PAGES[0], tuple(words.split()), whole))


STANDALONE = (ROOT / "docs" / "standalone.md").read_text(encoding="utf-8")


def test_the_files_of_the_page_without_kubernetes_are_taken_and_fit_together(tmp_path: Path) -> None:
    inventory, controller, sidecar = re.findall(r"^```yaml\n(.*?)^```$", STANDALONE, re.MULTILINE | re.DOTALL)
    for name, text in (("inventory.yaml", inventory), ("controller.yaml", controller), ("sidecar.yaml", sidecar)):
        (tmp_path / name).write_text(text)
    serving = controller_settings.Settings.load(tmp_path / "controller.yaml")
    running = sidecar_settings.Settings.load(tmp_path / "sidecar.yaml")
    known = load_inventory(tmp_path / "inventory.yaml", serving.trust_domain)
    assert running.trust_domain == serving.trust_domain
    (place,) = (each for each in known.instances.values() if each.name == running.instance)
    assert place.address in running.addresses
    assert running.controller.port == serving.grpc_listen.port
    assert running.issuer is not None
    assert running.issuer.port == serving.issuer_listen.port


def test_what_may_be_said_of_a_workload_there_is_taken(tmp_path: Path) -> None:
    said = STANDALONE.partition("Optional on a workload: ")[2].partition(" The controller reads")[0]
    workload = {"namespace": "shop", "name": "front", "ports": [{"port": 8080}]}
    examples = {name: {} for name in re.findall(r"`(\w+)(?:`|: )", said)}
    assert set(examples) > {"kind", "serviceAccount", "labels", "schedule", "opaquePorts"}
    values = {"kind": "CronJob", "serviceAccount": "front", "labels": {"app": "front"}, "schedule": "* * * * *"}
    for written in re.findall(r"`(\w+: [^`]+)`", said):
        values |= yaml.safe_load(written)
    assert examples.keys() - {"appProtocol"} <= values.keys()
    for name in examples.keys() - {"appProtocol"}:
        document = {"apiVersion": "hedgerow.dev/v1alpha1", "kind": "Inventory", "namespaces": [{"name": "shop"}]}
        document["workloads"] = [{**workload, "kind": "CronJob", name: values[name]}]
        (tmp_path / "inventory.yaml").write_text(yaml.safe_dump(document))
        load_inventory(tmp_path / "inventory.yaml", "hedgerow.local")


#: What stands for a test, a source or a folder of ours on a page: a path from the root, perhaps with the name of a
#: test, perhaps with only its beginning.
PATHS = re.compile(
    r"`((?:bench|certs|charts|controller|e2e|graph|hedgerow|sidecar|tests|ui)/[\w./*-]+)(?:::(\w+)(…?))?`"
)
IMAGES = ("hedgerow/sidecar", "hedgerow/controller")
#: Among the tests of the two groups that docs/threats.md calls by a letter.
LETTERED = re.compile(r"\b([BH]) ((?:`\w+`(?:, )?)+)")


def named_tests(pattern: str) -> set[str]:
    found = re.findall(
        r"^\s*(?:async )?def (test_\w+)", "".join(path.read_text() for path in ROOT.glob(pattern)), re.MULTILINE
    )
    assert found, f"no tests in {pattern}"
    return set(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_pages_name_of_ours_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path, test, begins in PATHS.findall(text):
        if path.startswith(("bench/results/", "controller/web/static/")) or path in IMAGES:
            continue  # what is made, not what is kept
        assert list(ROOT.glob(path)), f"{path} is not there"
        if test:
            names = named_tests(path)
            assert any(name.startswith(test) for name in names) if begins else test in names, f"{path}::{test}"


def test_the_tests_that_threats_are_held_by_are_there() -> None:
    text = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
    files = {"B": "tests/mesh/test_bypass*.py", "H": "tests/mesh/test_hostile*.py"}
    named = [(letter, name) for letter, names in LETTERED.findall(text) for name in re.findall(r"\w+", names)]
    assert {letter for letter, _ in named} == set(files)
    for letter, name in named:
        assert any(name in test for test in named_tests(files[letter])), f"{letter} {name}"


def test_every_countermeasure_of_the_guide_has_its_line() -> None:
    text = (ROOT / "docs" / "nist-800-190.md").read_text(encoding="utf-8")
    sections = {1: 5, 2: 3, 3: 5, 4: 5, 5: 5}
    wanted = [f"4.{part}.{number}" for part, most in sections.items() for number in range(1, most + 1)]
    rows = re.findall(r"^\| (4\.\d\.\d) [^|]+\| ([\w ]+) \|(.*)\|([^|]*)\|$", text, re.MULTILINE)
    assert [number for number, *_ in rows] == wanted
    for number, answer, done, left in rows:
        assert answer in ("met", "in part", "yours"), number
        assert "`" in done or answer != "met", f"{number}: nothing shows it"
        assert left.strip() or answer != "in part", f"{number}: nothing is left"
    threats = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
    assert set(re.findall(r"4\.\d\.\d", threats)) <= set(wanted)
