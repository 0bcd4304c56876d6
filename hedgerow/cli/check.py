"""``hedgerow check``."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hedgerow.cli.context import Format, fail
from hedgerow.cli.output import Output, say, show, styled
from hedgerow.words import many

if TYPE_CHECKING:
    from hedgerow.checking.finding import Finding

_POD_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_MARKS = {"ok": ("ok  ", "green"), "warning": ("warn", "yellow"), "failed": ("FAIL", "red"), "skipped": ("-   ", "dim")}


def check(
    pre: Annotated[bool, typer.Option("--pre", help="Before an installation: can this cluster take it?")] = False,
    kubeconfig: Annotated[
        Path | None, typer.Option("--kubeconfig", metavar="FILE", help="In place of KUBECONFIG and ~/.kube/config.")
    ] = None,
    cluster: Annotated[str, typer.Option("--context", metavar="NAME", help="Of the kubeconfig.")] = "",
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, max=3600, help="In which failures may pass.")
    ] = 0.0,
    output: Format = Output.TABLE,
) -> None:
    """Look whether a cluster is ready for Hedgerow, or the Hedgerow on it is well.

    Exit codes: 0 nothing failed, 1 something did, 2 written wrong, 3 no API server answered, 4 access was refused.
    """
    try:
        from hedgerow.cli.interruptible import run

        running = importlib.import_module("hedgerow.checking.running")
        errors = importlib.import_module("controller.kube.errors")
        from controller.errors import ConfigError
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("certs", "graph", "controller", "hedgerow"):
            raise
        fail(f"{error.name} is not installed", "pip install 'hedgerow[controller]'", 2)
    tell = _tell if output is Output.TABLE else lambda finding: None
    try:
        found = run(running.run(_kubeconfig(kubeconfig), cluster, pre=pre, wait=wait, tell=tell))
    except ConfigError as error:
        fail(f"{error.field}: {error.problem}" if error.field else error.problem, error.remedy, 2)
    except errors.Unauthorized as error:
        fail(str(error), error.remedy, 4)
    except errors.KubernetesError as error:
        fail(str(error), error.remedy, 3)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if output is not Output.TABLE:
        show({"findings": [finding.to_dict() for finding in found]}, output, lambda answer: None)
    else:
        _sum_up(found)
    if any(finding.outcome == "failed" for finding in found):
        raise typer.Exit(1)


def _kubeconfig(named: Path | None) -> Path | None:
    """The file that says where the cluster is; None in a pod that was given no file."""
    if named is not None:
        return _there(named, "--kubeconfig")
    listed = [Path(part) for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    if len(listed) > 1:
        fail("KUBECONFIG names several files", "name one with --kubeconfig", 2)
    if listed:
        return _there(listed[0], "KUBECONFIG")
    usual = Path.home() / ".kube" / "config"
    if not usual.exists() and _POD_TOKEN.exists():
        return None
    if not usual.exists():
        fail("no kubeconfig was found", "name one with --kubeconfig or KUBECONFIG", 2)
    return usual


def _there(file: Path, source: str) -> Path:
    """What reads kubeconfigs takes a missing file for an empty one."""
    if not file.exists():
        fail(f"{source}: {file}: No such file or directory", "name a kubeconfig that is there", 2)
    return file


def _tell(finding: Finding) -> None:
    mark, style = _MARKS[finding.outcome]
    print(f"{styled(mark, style)} {finding.check}: ", end="")
    say(finding.text)
    if finding.hint:
        say(f"       try: {finding.hint}")
        say(f"       more: {finding.anchor}", "dim")


def _sum_up(found: list[Finding]) -> None:
    failures = sum(finding.outcome == "failed" for finding in found)
    warnings = sum(finding.outcome == "warning" for finding in found)
    if failures:
        say(f"\n{failures} of {len(found)} checks failed", "red")
    else:
        say(f"\nall is well{f', with {many(warnings, "warning")}' if warnings else ''}", "green")
