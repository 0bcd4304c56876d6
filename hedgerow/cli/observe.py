"""Commands that look: ``status``, ``graph``, ``flows``, ``why``, ``drift``, ``audit``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from hedgerow.cli import context
from hedgerow.cli.context import Format, Server, TokenFile
from hedgerow.cli.output import Output, ago, console, print_table, show, size
from hedgerow.client import Client


class GraphFormat(StrEnum):
    """The value of ``graph --format``."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    DOT = "dot"
    GRAPHML = "graphml"
    MERMAID = "mermaid"
    SVG = "svg"


class VerdictFilter(StrEnum):
    """The value of ``flows --verdict``."""

    ALLOW = "allow"
    DENY = "deny"


def status(server: Server = "", token_file: TokenFile = None, output: Format = Output.TABLE) -> None:
    """Show the controller, its workloads and their modes, and every sidecar."""

    def table(answer: dict[str, Any]) -> None:
        states = ", ".join(f"{count} {state}" for state, count in answer["edges"].items() if count) or "none yet"
        out = console()
        out.print(f"controller {answer['version']}, trust domain {answer['trust_domain']}, up {_up(answer)}")
        out.print(f"edges: {states}; overrides in force: {answer['overrides']}")
        print_table(
            ("workload", "instances", "inbound", "outbound", "tls", "ready to enforce"),
            (
                (
                    item["workload"],
                    item["instances"],
                    item["inbound_mode"],
                    item["outbound_mode"],
                    item["inbound_tls"],
                    "yes" if item["ready_to_enforce"] else "; ".join(item["waiting_for"]) or "no",
                )
                if item["meshed"]
                else (item["workload"], item["instances"], "no sidecar", "-", "-", "-")
                for item in answer["workloads"]
            ),
            "The inventory holds no workloads.",
            wraps=("workload", "ready to enforce"),
        )
        troubled = [item for item in answer["sidecars"] if not item["connected"] or item["nack"]]
        out.print(f"sidecars: {len(answer['sidecars'])} known, {len(troubled)} in trouble")
        print_table(
            ("sidecar", "connected", "holds", "sent", "refused because"),
            (
                (i["instance"], "yes" if i["connected"] else f"no, {ago(i['last_seen'])}", i["held_version"],
                 i["pushed_version"], i["nack"])
                for i in troubled
            ),
            "All of them hold what was sent to them." if answer["sidecars"] else "None has connected yet.",
        )  # fmt: skip

    show(context.call(server, token_file, lambda client: client.get("/status")), output, table)


def _up(answer: dict[str, Any]) -> str:
    return ago(answer["started_at"]).removesuffix(" ago")


def graph(
    server: Server = "",
    token_file: TokenFile = None,
    output: Annotated[GraphFormat, typer.Option("--output", "-o", "--format", help="How to write it.")] = (
        GraphFormat.TABLE
    ),
    namespace: Annotated[str, typer.Option(help="Only this namespace.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
) -> None:
    """Show or export the service graph."""
    text = output not in (GraphFormat.TABLE, GraphFormat.JSON, GraphFormat.YAML)
    query = {"format": output.value if text else "json", "namespace": namespace}
    if text:
        body = context.call(server, token_file, lambda client: client.get_text("/graph", query))
        _write(body, out)
        return
    answer = context.call(server, token_file, lambda client: client.get("/graph", query))
    if out is not None:
        _write(json.dumps(answer, indent=2) + "\n", out)
        return
    show(answer, Output(output.value), _edges)


def _write(body: str, out: Path | None) -> None:
    if out is None:
        print(body, end="" if body.endswith("\n") else "\n")
        return
    try:
        out.write_text(body, encoding="utf-8")
    except OSError as error:
        context.fail(f"--out: {out} cannot be written: {error.strerror}", "name a file in a folder of yours", 2)


def _edges(answer: dict[str, Any]) -> None:
    print_table(
        ("connection", "state", "verdict", "opened", "mtls", "denied", "bytes", "last seen"),
        (
            (
                f"{edge['from']} → {edge['to']}:{edge['port']}/{edge['protocol']}",
                edge["state"],
                edge["verdict"],
                edge["connections"],
                f"{100 * edge['verified'] // edge['connections']} %" if edge["connections"] else "-",
                edge["denied"],
                size(edge["bytes_sent"] + edge["bytes_received"]),
                ago(edge["last_seen"]),
            )
            for edge in answer["edges"]
        ),
        "No traffic has been seen yet.",
        wraps=("connection",),
    )


def flows(
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come, until Ctrl-C.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of the last ones.")] = 50,
    workload: Annotated[
        str, typer.Option(help="Only those with this end.", autocompletion=context.complete_workload)
    ] = "",
    verdict: Annotated[VerdictFilter | None, typer.Option(help="Only those that met this verdict.")] = None,
) -> None:
    """Show what the sidecars saw."""
    query = {
        "workload": context.workload(workload, "--workload") if workload else "",
        "verdict": verdict.value if verdict else "",
    }
    if not follow:
        answer = context.call(
            server, token_file, lambda client: client.get("/flows", {**query, "limit": limit})
        )  # newest first; people read downwards
        show(answer, output, lambda a: _flow_table(list(reversed(a["flows"]))))
        return

    async def watch(client: Client) -> None:
        async for event, flow in client.events("/flows/live", query):
            if event == "flow":
                if output is Output.TABLE:
                    console().print(escape(_flow_line(flow)), style="red" if flow["verdict"] == "deny" else None)
                else:
                    print(json.dumps(flow), flush=True)

    context.call(server, token_file, watch)


def _flow_table(items: list[dict[str, Any]]) -> None:
    print_table(
        ("last seen", "connection", "seen by", "verdict", "why", "mtls", "opened", "bytes"),
        (
            (
                ago(flow["last_seen"]),
                f"{flow['source']} → {flow['destination']}:{flow['port']}/{flow['protocol']}",
                flow["reporter"],
                flow["verdict"] if flow["verdict"] == flow["pending"] else f"{flow['verdict']}, then {flow['pending']}",
                flow["reason"],
                "yes" if flow["verified"] else "no",
                flow["connections"],
                size(flow["bytes_sent"] + flow["bytes_received"]),
            )
            for flow in items
        ),
        "No flows have been reported yet.",
        wraps=("connection", "seen by"),
    )


def _flow_line(flow: dict[str, Any]) -> str:
    moved = size(flow["bytes_sent"] + flow["bytes_received"])
    proof = "mtls" if flow["verified"] else "no proof"
    return (
        f"{flow['verdict']:5} {flow['source']} -> {flow['destination']}:{flow['port']}/{flow['protocol']} "
        f"{flow['reason']}, {proof}, {flow['connections']} connections, {moved}, seen by {flow['reporter']}"
    )


def why(
    source: Annotated[
        str, typer.Argument(metavar="FROM", help="namespace/name", autocompletion=context.complete_workload)
    ],
    destination: Annotated[str, typer.Argument(metavar="TO:PORT", help="namespace/name:port")],
    protocol: Annotated[str, typer.Option(help="TCP, UDP or SCTP.")] = "TCP",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Explain what becomes of a connection, at both of its ends, and which rule decides."""
    name, port = context.target(destination)
    query: dict[str, str | int] = {
        "from": context.workload(source, "from"),
        "to": name,
        "port": port,
        "protocol": protocol.upper(),
    }

    def table(answer: dict[str, Any]) -> None:
        out = console()
        closed = answer["pending"] if answer["pending"] != answer["verdict"] else f"{answer['pending']} too"
        out.print(f"{answer['verdict']} (when everything is enforced: {closed})")
        for line in answer["explanation"]:
            out.print(escape(f"  {line}"))

    show(context.call(server, token_file, lambda client: client.get("/why", query)), output, table)


def drift(server: Server = "", token_file: TokenFile = None, output: Format = Output.TABLE) -> None:
    """Compare what was observed with what is allowed."""

    def table(answer: dict[str, Any]) -> None:
        print_table(
            ("observed but not allowed", "connections", "denied", "last seen"),
            ((e["id"], e["connections"], e["denied"], ago(e["last_seen"])) for e in answer["unexpected"]),
            "Everything observed is allowed.",
        )
        print_table(
            ("allowed but not observed", "origin", "owner"),
            ((r["id"], r["origin"], r["owner"]) for r in answer["unused"]),
            "Everything allowed has been observed.",
        )

    show(context.call(server, token_file, lambda client: client.get("/drift")), output, table)


def audit(
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of the last entries.")] = 50,
) -> None:
    """Show who changed what. Ends with 1 when the chain of entries is broken."""
    answer = context.call(server, token_file, lambda client: client.get("/audit", {"limit": limit}))

    def table(body: dict[str, Any]) -> None:
        print_table(
            ("entry", "when", "who", "did", "to", "detail"),
            (
                (e["sequence"], ago(e["at"]), e["actor"], e["action"], e["subject"], _detail(e["detail"]))
                for e in body["entries"]
            ),
            "Nothing has been changed yet.",
            wraps=("to", "detail"),
        )

    show(answer, output, table)
    if not answer["intact"]:
        context.fail("the audit log has been altered", "compare it with a backup of the state directory")


def _detail(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return str(value)
