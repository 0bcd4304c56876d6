"""Commands that look: ``flows``, ``why``, ``drift``, ``audit``."""

from __future__ import annotations

import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from hedgerow.cli import completion, context
from hedgerow.cli.context import Format, Namespace, Server, TokenFile, Within
from hedgerow.cli.output import (
    VERDICTS,
    Column,
    Output,
    ago,
    connection,
    end,
    moment,
    print_table,
    printable,
    prose,
    say,
    show,
    size,
    to_yaml,
)
from hedgerow.client import Client, Unreachable


class VerdictFilter(StrEnum):
    """The value of ``flows --verdict``."""

    ALLOW = "allow"
    DENY = "deny"


def flows(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come, until Ctrl-C.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of the last ones.")] = 50,
    workload: Annotated[
        str,
        typer.Option(metavar="NAMESPACE/NAME", help="Only those with this end.", autocompletion=completion.workload),
    ] = "",
    verdict: Annotated[VerdictFilter | None, typer.Option(help="Only those that met this verdict.")] = None,
    namespace: Within = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Show what the sidecars saw."""
    context.check_namespace(namespace)
    query = {
        "workload": context.workload(workload, "--workload", namespace) if workload else "",
        "namespace": namespace,
        "verdict": verdict.value if verdict else "",
    }
    if not follow:
        answer = context.call(
            server, token_file, lambda client: client.get("/flows", {**query, "limit": limit})
        )  # newest first; people read downwards
        show(answer, output, lambda a: _flow_table(list(reversed(a["flows"])), namespace))
        return

    async def watch(client: Client) -> None:
        async for event, flow in client.events("/flows/live", query):
            if event == "missed":
                typer.echo("(some are left out: they come faster than this terminal takes them)", err=True)
            elif event != "flow":
                continue
            elif output is Output.JSON:
                print(json.dumps(flow), flush=True)
            elif output is Output.YAML:
                print(to_yaml(flow, document=True), end="", flush=True)
            else:
                say(_flow_line(flow), VERDICTS[_verdict(flow)] if _verdict(flow) != "allow" else "")
        raise Unreachable("the controller has ended the stream", "start it again, and this command")

    context.call(server, token_file, watch)


def _verdict(flow: dict[str, Any]) -> str:
    if flow["verdict"] == "allow" and flow["pending"] == "deny":
        return "would-deny"
    return str(flow["verdict"])


def _flow_table(items: list[dict[str, Any]], namespace: str) -> None:
    print_table(
        (
            Column("last seen"),
            Column("connection", least=46),
            Column("operation", least=16, spare=1),
            Column("seen by", spare=2),
            Column("verdict", colours=VERDICTS),
            Column("why", spare=3),
            Column("mtls", spare=4),
            Column("opened", spare=6),
            Column("requests", spare=7),
            Column("bytes", spare=5),
        ),
        [
            (
                ago(flow["last_seen"]),
                connection(flow["source"], flow["destination"], flow["port"], flow["protocol"]),
                flow["operation"],
                flow["reporter"],
                _verdict(flow),
                flow["reason"],
                "yes" if flow["verified"] else "no",
                "" if flow["operation"] else flow["connections"],
                flow["requests"] if flow["operation"] else "",
                "" if flow["operation"] else size(flow["bytes_sent"] + flow["bytes_received"]),
            )
            for flow in items
        ],
        f"No flows{context.of(namespace)} have been reported yet.",
    )


def _flow_line(flow: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(flow["last_seen"]).astimezone().strftime("%H:%M:%S")
    moved = size(flow["bytes_sent"] + flow["bytes_received"])
    proof = "mtls" if flow["verified"] else "no proof"
    ends = connection(flow["source"], flow["destination"], flow["port"], flow["protocol"])
    said = f"{flow['connections']} opened, {moved}"
    if flow["operation"]:
        ends, said = f"{ends}  {flow['operation']}", f"{flow['requests']} requests"
    return f"{at} {_verdict(flow):10} {ends}  {flow['reason']}, {proof}, {said}, by {flow['reporter']}"


def why(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="namespace/name, or an address.", autocompletion=completion.workload)
    ],
    destination: Annotated[
        str,
        typer.Argument(
            metavar="TO:PORT",
            help="namespace/name:port, or a host's or an address' port.",
            autocompletion=completion.target,
        ),
    ],
    operation: Annotated[
        str, typer.Option(metavar="NAME", help="What is asked over it: 'GET /cart/{id}'. Without, its opening.")
    ] = "",
    protocol: Annotated[str, typer.Option(metavar="NAME", help="TCP, UDP or SCTP.")] = "TCP",
    namespace: Namespace = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Explain what becomes of a connection, or of an operation on it, and which rule decides."""
    name, port = context.target(destination, namespace=namespace)
    query: dict[str, str | int | None] = {
        "from": context.workload(source, "from", namespace),
        "to": name,
        "port": port,
        "protocol": context.transport(protocol),
        "operation": context.operation(operation) if operation else "",
    }

    def table(answer: dict[str, Any]) -> None:
        closed = answer["pending"] if answer["pending"] != answer["verdict"] else f"{answer['pending']} too"
        say(f"{answer['verdict']} (when everything is enforced: {closed})", VERDICTS[answer["verdict"]])
        for line in answer["explanation"]:
            advice, colon, command = line.partition(": hedgerow ")
            if colon:  # in one piece, to be copied
                say(f"  {advice}:")
                say(f"    hedgerow {command}")
            else:
                prose(line, "  ")

    show(context.call(server, token_file, lambda client: client.get("/why", query)), output, table)


def drift(
    namespace: Within = "", server: Server = "", token_file: TokenFile = None, output: Format = Output.TABLE
) -> None:
    """Compare what was observed with what is allowed."""
    context.check_namespace(namespace)
    found = context.call(server, token_file, lambda client: client.get("/drift"))
    for part in ("unexpected", "unused"):
        found[part] = [each for each in found[part] if context.within(namespace, each["from"], each["to"])]
    found["unexpected_operations"] = [
        each for each in found["unexpected_operations"] if context.within(namespace, *each["edge"].split("->"))
    ]

    def table(answer: dict[str, Any]) -> None:
        print_table(
            (
                Column("observed but not allowed", least=20),
                Column("connections", spare=1),
                Column("denied"),
                Column("last seen"),
            ),
            [
                (
                    connection(edge["from"], edge["to"], edge["port"], edge["protocol"]),
                    edge["connections"],
                    edge["denied"],
                    ago(edge["last_seen"]),
                )
                for edge in answer["unexpected"]
            ],
            f"Everything observed{context.of(namespace)} is allowed.",
        )
        say("")
        if answer["unexpected_operations"]:
            print_table(
                (Column("asked but not allowed", least=20), Column("operation", least=20)),
                [(each["edge"], each["operation"] or "unknown") for each in answer["unexpected_operations"]],
                "",
            )
            say("")
        print_table(
            (
                Column("allowed but not observed", least=20),
                Column("effect", spare=1),
                Column("origin"),
                Column("owner"),
            ),
            [
                (
                    f"{end(rule['from'])} → {end(rule['to'])}:{','.join(rule['ports']) or 'all'}/{rule['protocol']}",
                    rule["effect"],
                    rule["origin"],
                    rule["owner"],
                )
                for rule in answer["unused"]
            ],
            f"Everything allowed{context.of(namespace)} has been observed.",
        )

    show(found, output, table)


def audit(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of the last entries.")] = 50,
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Show who changed what, the latest first. Ends with 1 when the log was altered."""
    answer = context.call(server, token_file, lambda client: client.get("/audit", {"limit": limit}))
    show(answer, output, _audit)
    if not answer["intact"]:
        context.fail(
            f"the audit log has been altered: {answer['problem'] or 'its chain is broken'}",
            "compare it with a backup of the state directory",
        )


def _audit(answer: dict[str, Any]) -> None:
    if not answer["entries"]:
        say("Nothing has been changed yet.")
    for entry in answer["entries"]:
        prose(
            f"{entry['sequence']}  {moment(entry['at'])}  {entry['actor']}  {entry['action']}  {entry['subject']}",
            style="bold",
        )
        if detail := _detail(entry["detail"]):
            prose(detail, "    ")


def _detail(detail: dict[str, Any]) -> str:
    """What an entry says beside its subject, in words: ``reason: …`` first, times as times."""
    names = sorted(detail, key=lambda name: (name != "reason", name))
    return printable("; ".join(f"{name.replace('_', ' ')}: {_word(name, detail[name])}" for name in names))


def _word(name: str, value: Any) -> str:
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if name.endswith(("_at", "not_after")) and isinstance(value, int | float):
        return moment(value)
    return str(value)
