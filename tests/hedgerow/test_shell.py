"""The command at a terminal: how fast it is there, what fits on 80 columns, what the shell completes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hedgerow.cli.output import columns_of
from tests.hedgerow.served import COMMAND, Served, environment, hedgerow
from tests.hedgerow.zygote import Zygote

HEAVY = ("aiohttp", "asyncio", "rich", "yaml", "grpc", "google", "networkx", "sqlalchemy", "kubernetes", "cryptography")


def imported(*arguments: str, env: dict[str, str] | None = None) -> set[str]:
    """The modules that the command loads."""
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "hedgerow", *arguments],
        capture_output=True, text=True, timeout=60, check=True, env=environment(env), cwd="/",
    )  # fmt: skip
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


def test_help_and_version_load_nothing_heavy() -> None:
    for argument in ("--help", "--version"):
        loaded = imported(argument)
        assert "typer" in loaded
        assert not {name.partition(".")[0] for name in loaded} & set(HEAVY), argument


def test_a_question_loads_a_client_and_no_program_of_ours(controller: Served) -> None:
    loaded = imported("status", env=controller.access)
    assert {"aiohttp", "hedgerow.client"} <= loaded
    assert not {name.partition(".")[0] for name in loaded} & {"controller", "sidecar", "rich", "grpc", "yaml"}
    assert not any(name.startswith("hedgerow.local") for name in loaded)


def commands(text: str) -> list[str]:
    """The names below ``Commands:`` in a help text."""
    return re.findall(r"^  ([a-z-]+)  ", text.partition("Commands:\n")[2], re.MULTILINE)


def test_every_command_has_help_that_fits(command: Zygote) -> None:
    def look(*path: str) -> int:
        ended = command(*path, "--help", env={"COLUMNS": "80"})
        assert (ended.code, ended.err) == (0, "")
        assert all(columns_of(line) <= 80 for line in ended.out.splitlines()), ended.out
        found = commands(ended.out)
        return 1 + sum(look(*path, name) for name in found)

    top = command("--help", env={"COLUMNS": "80"}).out
    assert {"demo", "controller", "sidecar", "status", "graph", "flows", "why", "drift", "audit"} <= set(commands(top))
    assert {"policy", "allow", "deny", "overrides", "mode", "join-token"} <= set(commands(top))
    assert "HEDGEROW_SERVER" in top
    assert "HEDGEROW_TOKEN_FILE" in top
    assert look() > 20


def test_minus_n_is_the_namespace_wherever_it_is(command: Zygote) -> None:
    def look(*path: str) -> list[str]:
        text = command(*path, "--help", env={"COLUMNS": "80"}).out
        lines = [line for line in text.splitlines() if re.match(r"  -n\b", line)]
        return lines + [line for name in commands(text) for line in look(*path, name)]

    found = look()
    assert len(found) > 10
    assert all(line.startswith("  -n, --namespace NAME  ") for line in found), found


@pytest.mark.parametrize("alone", ["", "policy", "mode", "join-token"])
def test_without_a_command_there_is_help(command: Zygote, alone: str) -> None:
    ended = command(*alone.split())
    assert ended.code == 2
    assert "Commands:" in ended.out + ended.err


LINES = ["status", "graph", "flows", "policy show", "policy show shop/cart", "drift", "overrides", "audit --limit 3"]


def test_tables_fit_into_80_columns_and_keep_names_whole(controller: Served, command: Zygote) -> None:
    reason = "somebody has to look at this, and it takes a long sentence to say why that is so, as it often does"
    made = command("deny", "data/redis", "shop/cart:8080", "--for", "1h", "--reason", reason, env=controller.access)
    assert made.code == 0

    def seen(line: str, columns: int = 80) -> str:
        return command.at_terminal(*line.split(), env={**controller.access, "NO_COLOR": "1"}, columns=columns)

    for line in LINES:
        said = seen(line)
        assert "\x1b" not in said
        assert all(columns_of(part) <= 80 for part in said.splitlines() if "spiffe://" not in part), said
    assert "shop/front → shop/cart:8080 " in seen("graph")
    assert "no room for" in seen("flows", 60)
    wide = seen("flows", 200)
    assert "no room for" not in wide
    assert "BYTES" in wide
    assert reason in seen("overrides", 250)


def test_colours_are_for_terminals_whose_owner_wants_them(controller: Served, command: Zygote) -> None:
    assert "\x1b[31mdeny" in command.at_terminal("graph", env=controller.access)
    for switch in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in command.at_terminal("graph", env={**controller.access, **switch})


def test_a_terminal_without_arrows_is_no_traceback(controller: Served) -> None:
    env = {**controller.access, "PYTHONIOENCODING": "ascii"}
    ended = hedgerow("graph", env=env)
    assert ended.code == 0
    assert "shop/front ? shop/cart:8080" in ended.out


def completed(command: Zygote, line: str, **env: str) -> list[str]:
    """What bash is given to complete ``line`` with, up to its end."""
    words = line.split(" ")
    asked = {"_HEDGEROW_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    ended = command(env={**asked, **env})
    assert (ended.code, ended.err) == (0, "")
    return ended.out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hedgerow st", ["status"]),
        ("hedgerow policy ", ["show", "diff", "export", "approve"]),
        ("hedgerow status -o y", ["yaml"]),
        ("hedgerow mode set shop/front ", ["learn", "audit", "enforce", "quarantine"]),
        ("hedgerow allow shop/", ["shop/cart", "shop/front"]),
        ("hedgerow allow shop/front data/r", ["data/redis:6379"]),
        ("hedgerow why shop/front shop/", ["shop/cart:8080", "shop/front:8080"]),
        ("hedgerow policy show data/", ["data/legacy", "data/redis"]),
        ("hedgerow mode set sho", ["shop", "shop/cart", "shop/front"]),
        ("hedgerow flows --workload shop/f", ["shop/front"]),
        ("hedgerow graph --namespace d", ["data"]),
        ("hedgerow status -n sh", ["shop"]),
        ("hedgerow tap shop/cart -n sh", ["shop"]),
        ("hedgerow join-token create shop/c", ["shop/cart"]),
        ("hedgerow policy approve -/", []),
    ],
)
def test_names_are_completed(controller: Served, command: Zygote, line: str, expected: list[str]) -> None:
    assert completed(command, line, **controller.access) == expected


def test_completion_is_silent_without_a_controller(controller: Served, command: Zygote) -> None:
    for access in (
        {"HEDGEROW_SERVER": "http://127.0.0.1:1"},
        {"HEDGEROW_TOKEN_FILE": "/nowhere"},
        {"HEDGEROW_TOKEN_FILE": ""},
        {"HEDGEROW_SERVER": "nonsense"},
    ):
        assert completed(command, "hedgerow allow shop/", **{**controller.access, **access}) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_for_the_shells(command: Zygote, shell: str, tmp_path: Path) -> None:
    script = command(env={"_HEDGEROW_COMPLETE": f"source_{shell}"})
    assert script.code == 0
    assert "_HEDGEROW_COMPLETE=complete_" + shell in script.out
    if shutil.which(shell) is not None:  # bash is everywhere that we test
        (tmp_path / "script").write_text(script.out)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True, timeout=30)
    else:
        assert shell != "bash"


def test_bash_completes_with_the_script(controller: Served) -> None:
    """The whole way: the script in a real bash, the installed command, the real controller."""
    script = f"""
        export PATH={COMMAND.parent}:$PATH
        eval "$(_HEDGEROW_COMPLETE=source_bash hedgerow)"
        COMP_WORDS=(hedgerow why shop/fr) COMP_CWORD=2
        _hedgerow_completion hedgerow && printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, env=environment(controller.access), cwd="/"
    )
    assert (done.stdout, done.stderr) == ("shop/front\n", "")
