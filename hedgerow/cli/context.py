"""What every command shares: its options, the way it reaches the controller, and how it fails.

Exit codes: 0 done; 1 the controller said no; 2 the command was written wrong; 3 no controller answered; 4 access was
refused; 130 ended by Ctrl-C.
"""

from __future__ import annotations

import asyncio
import getpass
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from graph.errors import InvalidValue
from graph.model import WorkloadRef
from hedgerow.cli.output import Output
from hedgerow.client import Access, Client, ClientError, Refused, Unreachable

Server = Annotated[str, typer.Option("--server", envvar="HEDGEROW_SERVER", help="Address of the controller's web API.")]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", envvar="HEDGEROW_TOKEN_FILE", help="File that holds the access token.")
]
Format = Annotated[Output, typer.Option("--output", "-o", help="How to print the answer.")]
Owner = Annotated[str, typer.Option("--owner", help="Who answers for the change; you, when left out.")]

_DURATION = re.compile(r"(\d+)([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def fail(message: str, remedy: str = "", code: int = 1) -> NoReturn:
    """Say what went wrong and what to do next, on standard error, and end."""
    print(f"error: {message}", file=sys.stderr)
    if remedy:
        print(f"  try: {remedy}", file=sys.stderr)
    raise typer.Exit(code)


def call[T](server: str, token_file: Path | None, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run ``work`` with a client of the controller; its failures end the command with a clear word."""

    async def run() -> T:
        async with Client(Access.find(server, token_file)) as client:
            return await work(client)

    try:
        return asyncio.run(run())
    except Unreachable as error:
        fail(error.message, error.remedy, 3)
    except Refused as error:
        fail(error.message, error.remedy, 4)
    except ClientError as error:
        fail(error.message, error.remedy, 1)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def whoever(owner: str) -> str:
    """The owner named, else the user at the keyboard."""
    if owner:
        return owner
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        fail("this user has no name", "say who answers for the change with --owner", 2)


def workload(text: str, field: str) -> str:
    """Check ``namespace/name`` before anything is sent."""
    try:
        return str(WorkloadRef.parse(text, field=field))
    except InvalidValue as error:
        fail(f"{error.field}: {error.problem}", error.remedy, 2)


def target(text: str) -> tuple[str, int]:
    """Read ``namespace/name:port``."""
    name, colon, number = text.rpartition(":")
    if not colon or not number.isascii() or not number.isdigit() or not 1 <= int(number) <= 65535:
        fail(f"to: {text!r} names no port", "write it as namespace/name:port, such as shop/cart:8080", 2)
    return workload(name, "to"), int(number)


def seconds(text: str, field: str) -> int:
    """Read a duration such as ``90s``, ``30m``, ``8h``, ``7d``."""
    match = _DURATION.fullmatch(text)
    if match is None or int(match[1]) == 0:
        fail(f"{field}: {text!r} is not a duration", "write it as 90s, 30m, 8h or 7d", 2)
    return int(match[1]) * _UNITS[match[2]]


def complete_workload(incomplete: str) -> list[str]:
    """Shell completion of workload names; silent when no controller answers."""

    async def names() -> list[str]:
        async with Client(Access.find(), timeout=1.0) as client:
            answer: dict[str, Any] = await client.get("/status")
            return [str(item["workload"]) for item in answer["workloads"]]

    try:
        return [name for name in asyncio.run(names()) if name.startswith(incomplete)]
    except ClientError:
        return []
