"""What every command shares: its options, the way it reaches the controller, and how it fails.

Exit codes: 0 done; 1 the controller said no; 2 the command was written wrong; 3 no controller answered; 4 access was
refused; 130 ended by Ctrl-C; 141 the reader of a pipe went away.
"""

from __future__ import annotations

import getpass
import ipaddress
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer.core import TyperCommand

from graph.errors import InvalidValue
from graph.model import WorkloadRef, is_host
from graph.operations import check_operation
from graph.outside import normal_host, parse_outside
from hedgerow.cli import completion
from hedgerow.cli.output import Output, printable
from hedgerow.client import Access, BadAddress, Client, ClientError, Refused, Unreachable

# The environment is read by :class:`hedgerow.client.Access` alone, which knows what goes before what.
Server = Annotated[
    str, typer.Option("--server", metavar="URL", help="The controller's web API, in place of HEDGEROW_SERVER.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="Holds the access token, in place of HEDGEROW_TOKEN_FILE."),
]
Format = Annotated[Output, typer.Option("--output", "-o", help="How to print the answer.")]
Owner = Annotated[str, typer.Option("--owner", metavar="NAME", help="Who answers for the change; you, when left out.")]
# -n is the namespace wherever it is, as kubectl has it
Within = Annotated[
    str,
    typer.Option(
        "--namespace", "-n", metavar="NAME", help="Only of this namespace.", autocompletion=completion.namespace
    ),
]
Namespace = Annotated[
    str,
    typer.Option(
        "--namespace",
        "-n",
        metavar="NAME",
        help="Of workloads that are named without one.",
        autocompletion=completion.namespace,
    ),
]

_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Command(TyperCommand):
    """A command that takes what lies outside also as the controller writes it, ``-/192.0.2.7``: that is no option."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # typer's own class
        return super().parse_args(ctx, [argument.removeprefix("-/") for argument in args])


def fail(message: str, remedy: str = "", code: int = 1) -> NoReturn:
    """Say what went wrong and what to do next, on standard error, and end."""
    sys.stdout.flush()
    print(f"error: {printable(message)}", file=sys.stderr)
    if remedy:
        print(f"  try: {printable(remedy)}", file=sys.stderr)
    raise typer.Exit(code)


def call[T](server: str, token_file: Path | None, work: Callable[[Client], Awaitable[T]]) -> T:
    """Run ``work`` with a client of the controller; its failures end the command with a clear word."""
    from hedgerow.cli.interruptible import run

    async def asked() -> T:
        async with Client(Access.find(server, token_file)) as client:
            return await work(client)

    try:
        return run(asked())
    except BadAddress as error:
        fail(error.message, error.remedy, 2)
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


def check_namespace(text: str) -> None:
    """Check what ``-n`` says; nothing is fine."""
    if "/" in text:
        fail(f"--namespace: {text!r} is not a namespace name", "name the namespace alone", 2)
    try:
        if text:
            WorkloadRef.parse(f"{text}/any", field="--namespace")
    except InvalidValue as error:
        fail(f"--namespace: {error.problem}", error.remedy, 2)


def within(namespace: str, *ends: str) -> bool:
    """Whether one of the ends is of this namespace; everything is where none is named."""
    return not namespace or any(end.startswith(f"{namespace}/") for end in ends)


def of(namespace: str) -> str:
    """What a sentence about nothing found says besides, so that a mistyped namespace is seen."""
    return f" of the namespace {namespace}" if namespace else ""


def workload_in(text: str, field: str, namespace: str) -> str:
    """:func:`workload` for commands about one: two namespaces for it are a mistake."""
    if namespace and "/" in text and not text.startswith(f"{namespace}/"):
        fail(f"--namespace: {namespace}, but {field} is {text}", "name the namespace once", 2)
    return workload(text, field, namespace)


def workload(text: str, field: str, namespace: str = "") -> str:
    """Check ``namespace/name``, or the address or the host name of something outside, before anything is sent.

    :param namespace: of a name without one
    """
    try:
        if _is_address(text):
            return str(WorkloadRef.external(text))
        if namespace and text and "/" not in text and not is_host(text.lower().rstrip(".")):
            check_namespace(namespace)
            text = f"{namespace}/{text}"
        name = normal_host(text, field=field) if "/" not in text else text
        return str(WorkloadRef.external_host(name) if is_host(name) else WorkloadRef.parse(text, field=field))
    except InvalidValue as error:
        bare = text and not namespace and "/" not in text  # commands about workloads take -n
        fail(f"{field}: {error.problem}", f"{error.remedy}, or name its namespace with -n" if bare else error.remedy, 2)


def end(text: str, field: str, namespace: str = "") -> str:
    """Check what :func:`workload` does, and besides a network or the names below a domain."""
    if not (text.startswith("*") or _is_address(text.partition("/")[0])):
        return workload(text, field, namespace)
    try:
        return str(parse_outside(text, field=field))
    except InvalidValue as error:
        fail(f"{field}: {error.problem}", error.remedy, 2)


def target(text: str, *, every_port: bool = False, wide: bool = False, namespace: str = "") -> tuple[str, int | None]:
    """Read ``namespace/name:port``, or ``192.0.2.7:443``, ``[2001:db8::7]:443``, ``api.example.com:443``.

    :param every_port: whether ``:all`` may stand for every port; it is returned as None
    :param wide: whether it may be ``203.0.113.0/24:443``, ``[2001:db8::/32]:443`` or ``*.example.com:443``
    """
    name, colon, number = text.rpartition(":")
    host = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    known = end if wide else workload
    if every_port and colon and number == "all":
        return known(host, "to", namespace), None
    digits = colon and number.isascii() and number.isdigit()
    if digits and not (len(number) <= 5 and 1 <= int(number) <= 65535):
        fail(f"to: {number[:40]} is not a port", "use one from 1 to 65535", 2)
    if not digits:
        every = ", or shop/cart:all for every port" if every_port else ""
        fail(f"to: {text!r} names no port", f"write it as namespace/name:port, such as shop/cart:8080{every}", 2)
    return known(host, "to", namespace), int(number)


def operation(text: str) -> str:
    """Check an operation such as ``GET /cart/{id}``."""
    try:
        return check_operation(text, "--operation")
    except InvalidValue as error:
        fail(f"--operation: {error.problem}", error.remedy, 2)


def transport(text: str) -> str:
    """Check the name of a protocol."""
    if text.upper() not in ("TCP", "UDP", "SCTP"):
        fail(f"--protocol: {text!r} is no such protocol", "write TCP, UDP or SCTP", 2)
    return text.upper()


def seconds(text: str, field: str) -> int:
    """Read a duration such as ``90s``, ``30m``, ``8h``, ``7d``."""
    match = _DURATION.fullmatch(text)
    if match is None or int(match[1]) == 0:
        fail(f"{field}: {text!r} is not a duration", "write it as 90s, 30m, 8h or 7d", 2)
    return int(match[1]) * _UNITS[match[2]]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
