"""Puts the commands together."""

from __future__ import annotations

from collections.abc import Callable

import typer

from hedgerow.cli import decide, observe, programs

app = typer.Typer(
    name="hedgerow",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Learn which services talk to each other, close everything else, and see it.",
)
COMMANDS: tuple[Callable[..., None], ...] = (
    programs.demo,
    programs.controller,
    programs.sidecar,
    observe.status,
    observe.graph,
    observe.flows,
    observe.why,
    observe.drift,
    observe.audit,
    decide.allow,
    decide.deny,
    programs.version,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(decide.policy, name="policy")
app.add_typer(decide.overrides, name="overrides")
app.add_typer(decide.mode, name="mode")
app.add_typer(decide.join_token, name="join-token")
