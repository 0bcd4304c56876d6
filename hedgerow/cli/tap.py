"""``hedgerow tap``: requests of a workload while they happen."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from graph.errors import InvalidValue
from graph.tap import read_status
from hedgerow.cli import completion, context
from hedgerow.cli.context import Format, Namespace, Owner, Server, TokenFile
from hedgerow.cli.output import VERDICTS, Output, end, printable, say, size, to_yaml
from hedgerow.client import Client
from hedgerow.flow_file import FlowFile
from hedgerow.words import many


def tap(
    workload: Annotated[
        str,
        typer.Argument(metavar="WORKLOAD", help="namespace/name, whose requests are shown.",
                       autocompletion=completion.workload),
    ],
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why you look, for those who find it in the audit log.")
    ],
    to: Annotated[
        str,
        typer.Option(metavar="WORKLOAD", help="Show what WORKLOAD asks of this one, not what it is asked.",
                     autocompletion=completion.workload),
    ] = "",
    port: Annotated[list[int] | None, typer.Option(min=1, max=65535, help="Only this port; may be repeated.")] = None,
    operation: Annotated[
        str, typer.Option(metavar="NAME", help="Only this one, as rules name it: 'GET /cart/{id}', or 'GET /cart*'.")
    ] = "",
    status: Annotated[str, typer.Option(metavar="CODE", help="Only answers such as 503, 5xx or 400-499.")] = "",
    bodies: Annotated[bool, typer.Option("--bodies", help="With bodies, redacted, 8 KiB of each.")] = False,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a flow file that mitmweb opens, too.")
    ] = None,
    count: Annotated[int, typer.Option("--count", min=0, max=1_000_000, help="End after so many.")] = 0,
    lasting: Annotated[str, typer.Option("--for", metavar="TIME", help="How long: 30s, 10m, at most 1h.")] = "5m",
    namespace: Namespace = "",
    owner: Owner = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:  # fmt: skip
    """Watch requests while they happen."""
    if namespace.isdecimal() and "/" in workload and not workload.startswith(f"{namespace}/"):
        context.fail(f"-n is the namespace, and {workload} names one", f"write --count {namespace}", 2)
    name = context.workload_in(workload, "workload", namespace)
    seconds = context.seconds(lasting, "--for")
    if seconds > 3600:
        context.fail(f"--for: {lasting!r} is longer than a tap may last", "write at most 1h, and start it again", 2)
    _check_operation(operation)
    _check_status(status)
    body = {
        "workload": context.workload(to, "--to", namespace) if to else name,
        "from": name if to else None,
        "ports": port or [],
        "operation": operation or None,
        "status": status or None,
        "bodies": bodies,
        "count": count,
        "for": seconds,
        "owner": context.whoever(owner),
        "reason": reason,
    }

    with _flow_file(save) as file:

        async def watch(client: Client) -> None:
            async for event, found in client.events("/tap", body=body):
                if event == "request":
                    _show(found, output)
                    if file is not None:
                        file.add(found)
                else:
                    _tell(event, found)
                if event == "started" and file is not None:
                    file.begin()
                if event == "ended":
                    return

        try:
            context.call(server, token_file, watch)
        finally:  # Ctrl-C is how most of them end
            if file is not None and file.begun:
                typer.echo(f"({file.written} written to {save}: mitmweb -r {save})", err=True)


def _check_operation(text: str) -> None:
    """Refuse what no request is called by, before anything is asked: the tap would wait for it to its end."""
    if not text or text.endswith(" /{other}"):  # which is what operations beyond `http.operations` are called
        return
    if not text.endswith("*"):
        context.operation(text)
    elif len(text) > 1 and not ("A" <= text[0] <= "Z"):
        context.fail(
            f"--operation: {text[:80]!r} does not begin with a method",
            "write it as 'GET /cart*', the method in capitals",
            2,
        )


def _check_status(text: str) -> None:
    try:
        if text:
            read_status(text)
    except InvalidValue as error:
        context.fail(f"--status: {error.problem}", error.remedy, 2)


@contextlib.contextmanager
def _flow_file(path: Path | None) -> Iterator[FlowFile | None]:
    if path is None:
        yield None
        return
    try:
        # what is shown may be somebody's secret
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        context.fail(f"--save: {path} can not be written: {error.strerror}", "name another file", 2)
    with os.fdopen(descriptor, "wb") as file:
        yield FlowFile(file)


def _tell(event: str, found: dict[str, Any]) -> None:
    """What is no request goes to standard error, so that a pipe gets requests alone."""
    if event == "started":
        sidecars = many(len(found["sidecars"]), "sidecar")
        text = f"watching {found['workload']} on {sidecars} for {found['seconds']:g} s"
    elif event == "problem":
        text = f"{found['instance']} does not take part: {found['error']}"
    elif event == "shed":
        text = f"{found['total']} left out so far: they come faster than they are shown"
    elif event == "ended":
        text = f"{found['shown']} shown, {found['shed']} left out"
        if not found["shown"]:
            text += "; requests are HTTP or gRPC: what is no such, or goes to an opaque port, is in `hedgerow flows`"
    else:
        return
    typer.echo(f"({printable(text)})", err=True)


def _show(found: dict[str, Any], output: Output) -> None:
    if output is Output.JSON:
        print(json.dumps(found), flush=True)
        return
    if output is Output.YAML:
        print(to_yaml(found, document=True), end="", flush=True)
        return
    verdict = _verdict(found)
    say(_line(found, verdict), VERDICTS[verdict] if verdict != "allow" else "")
    for name in ("request", "response"):
        message = found[name]
        if message is None or not (message["body"] or message["withheld"]):
            continue
        for line in base64.b64decode(message["body"]).decode("utf-8", "replace").splitlines():
            say(f"    {'>' if name == 'request' else '<'} {line}", "dim")
        if message["withheld"]:
            say(f"    (body of the {name}: {message['withheld']})", "dim")


def _verdict(found: dict[str, Any]) -> str:
    if found["verdict"] == "allow" and found["pending"] == "deny":
        return "would-deny"
    return str(found["verdict"])


def _line(found: dict[str, Any], verdict: str) -> str:
    at = datetime.fromtimestamp(found["at"]).astimezone().strftime("%H:%M:%S")
    status = str(found["status"] or "no answer")
    if found["grpc_status"] is not None:
        status += f" grpc {found['grpc_status']}"
    moved = found["request"]["bytes"] + (found["response"] or {"bytes": 0})["bytes"]
    path = found["path"] if len(found["path"]) <= 120 else found["path"][:119] + "…"
    return (
        f"{at} {verdict:10} {end(found['from'])} → {end(found['to'])}:{found['port']}  "
        f"{found['method']} {path}  {status}  {found['seconds'] * 1000:.1f} ms, {size(moved)}, {found['reason']}"
    )
