"""Commands that run a program (``demo``, ``controller``, ``sidecar``, ``capture``), imported only when asked for."""

from __future__ import annotations

import importlib
import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hedgerow.cli import context

Config = Annotated[Path, typer.Option("--config", metavar="FILE", help="Its configuration, YAML.")]


def _load(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("certs", "graph", "sidecar", "controller", "hedgerow"):
            raise
        context.fail(f"{error.name} is not installed", f"pip install 'hedgerow[{extra}]'", 2)


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="End after the summary instead of serving until Ctrl-C.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on the last line.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write NetworkPolicies and inventory into this folder.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the page on 127.0.0.1; 0 takes a free one.")
    ] = 8088,
    explicit: Annotated[
        bool, typer.Option("--explicit", help="No namespaces and no capture, even where possible.")
    ] = False,
) -> None:
    """Run a whole mesh here: learn it, close it, attack it."""
    module = _load("hedgerow.local.command", "sidecar,controller")
    raise typer.Exit(module.demo(once=once, json=json, out=out, port=port, explicit=explicit))


def controller(config: Config) -> None:
    """Run the controller."""
    raise typer.Exit(_load("controller.__main__", "controller").main(["--config", str(config)]))


def sidecar(
    config: Config,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes that carry connections; 1 to 16.")
    ] = None,
) -> None:
    """Run a sidecar.

    It runs as a user of its own; `hedgerow capture` is the step before, which needs rights that it has not.
    """
    given = ["--config", str(config), *(["--workers", str(workers)] if workers is not None else [])]
    raise typer.Exit(_load("sidecar.__main__", "sidecar").main(given))


def capture(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="The sidecar's configuration.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take away what was installed.")] = False,
) -> None:
    """Send this network namespace's connections through its sidecar; needs NET_ADMIN."""
    if (config is None) != remove:
        context.fail("--config: needed to install, and only then", "give --config FILE, or --remove", 2)
    given = ["--remove"] if config is None else ["--config", str(config)]
    raise typer.Exit(_load("sidecar.__main__", "sidecar").main(["capture", *given]))


def version(
    json: Annotated[bool, typer.Option("--json", help="As JSON, with the interpreter.")] = False,
) -> None:
    """Print the version."""
    from hedgerow import __version__

    if json:
        print(jsonlib.dumps({"version": __version__, "python": sys.version.split()[0]}))
    else:
        print(__version__)


def print_version(asked: bool) -> None:
    """``hedgerow --version``."""
    if asked:
        version()
        raise typer.Exit
