"""Puts the commands together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from hedgerow.cli import decide, observe, picture, programs
from hedgerow.cli.check import check
from hedgerow.cli.context import Command
from hedgerow.cli.inject import inject, injector, uninject
from hedgerow.cli.policy import policy, rollback
from hedgerow.cli.status import status
from hedgerow.cli.tap import tap

app = typer.Typer(
    name="hedgerow",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich takes longer to load than all the rest
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Learn which services talk to each other, close everything else, and see it.",
    epilog=(
        "The controller is found by --server or HEDGEROW_SERVER (http://127.0.0.1:8080 without), the access token by "
        "--token-file or HEDGEROW_TOKEN_FILE. Exit codes: 0 done, 1 the controller said no, 2 the command was written "
        "wrong, 3 no controller answered, 4 access was refused, 130 Ctrl-C."
    ),
)


@app.callback()
def hedgerow(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=programs.print_version)
    ] = False,
) -> None:
    """Options before the command."""


COMMANDS: tuple[Callable[..., None], ...] = (
    programs.demo,
    programs.controller,
    programs.sidecar,
    programs.capture,
    injector,
    inject,
    uninject,
    check,
    status,
    picture.graph,
    observe.flows,
    tap,
    observe.why,
    observe.drift,
    observe.audit,
    decide.allow,
    decide.deny,
    programs.version,
)
for command in COMMANDS:
    app.command(cls=Command)(command)
app.add_typer(policy, name="policy")
app.add_typer(rollback, name="rollback")
app.add_typer(decide.overrides, name="overrides")
app.add_typer(decide.mode, name="mode")
app.add_typer(decide.join_token, name="join-token")
