"""Commands that look: ``status``, ``flows``, ``why``, ``drift``, ``audit``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from hedgerow.cli import completion, context
from hedgerow.cli.context import Format, Server, TokenFile
from hedgerow.cli.output import (
    VERDICTS,
    Column,
    Output,
    ago,
    connection,
    duration,
    end,
    print_table,
    printable,
    prose,
    say,
    show,
    size,
    to_yaml,
)
from hedgerow.client import Client, Unreachable
from hedgerow.words import many

#: Problems with the cluster that the table shows.
_PROBLEMS = 10
#: Seconds for which a part of the controller that was begun again is shown.
_LATELY = 600.0
_MODES = {"enforce": "green", "audit": "yellow", "quarantine": "red"}


class VerdictFilter(StrEnum):
    """The value of ``flows --verdict``."""

    ALLOW = "allow"
    DENY = "deny"


def status(server: Server = "", token_file: TokenFile = None, output: Format = Output.TABLE) -> None:
    """Show the controller, workloads, modes and sidecars."""
    show(context.call(server, token_file, lambda client: client.get("/status")), output, _status)


def _status(answer: dict[str, Any]) -> None:
    states = ", ".join(f"{count} {state}" for state, count in answer["edges"].items() if count) or "none yet"
    up = ago(answer["started_at"]).removesuffix(" ago")
    say(f"controller {answer['version']}, trust domain {answer['trust_domain']}, up {up}")
    say(f"edges: {states}; overrides in force: {answer['overrides']}")
    if answer.get("refused"):
        _refused(answer["refused"])
    if answer.get("cluster"):
        _cluster(answer["cluster"])
    say("")
    print_table(
        (
            Column("workload"),
            Column("instances", spare=2),
            Column("inbound", colours=_MODES),
            Column("outbound", colours=_MODES),
            Column("tls", spare=1),
            Column("ready to enforce", least=16),
        ),
        [
            (
                item["workload"],
                item["instances"],
                item["inbound_mode"],
                item["outbound_mode"],
                item["inbound_tls"],
                "yes" if item["ready_to_enforce"] else "; ".join(item["waiting_for"]) or "no",
            )
            if item["meshed"] and not item["transport"]
            else (item["workload"], item["instances"], _without(item), "-", "-", "-")
            for item in answer["workloads"]
        ],
        "The inventory holds no workloads.",
    )
    say("")
    troubled = [item for item in answer["sidecars"] if not item["connected"] or item["nack"]]
    say(f"sidecars: {len(answer['sidecars'])} known, {len(troubled)} in trouble", "red" if troubled else "")
    print_table(
        (
            Column("sidecar"),
            Column("connected"),
            Column("holds", spare=1),
            Column("sent", spare=2),
            Column("refused because", least=20),
        ),
        [
            (
                item["instance"],
                "yes" if item["connected"] else f"no, {ago(item['last_seen'])}",
                item["held_version"],
                item["pushed_version"],
                item["nack"],
            )
            for item in troubled
        ],
        "All of them hold what was sent to them." if answer["sidecars"] else "None has connected yet.",
    )


def _refused(lately: dict[str, Any]) -> None:
    when = f"refused in the last {duration(lately['seconds'])}"
    if not lately["connections"]:
        say(f"{when}: no connections")
        return
    what = f"{many(lately['connections'], 'connection')} of {many(lately['pairs'], 'pair')} of workloads"
    prose(f"{when}: {what}; see `hedgerow drift`, or `hedgerow flows --verdict deny`", style="yellow")


def _cluster(cluster: dict[str, Any]) -> None:
    held = {watch["resource"]: watch["objects"] for watch in cluster["watches"]}
    waiting = [part["name"] for part in cluster["parts"] if not part["synced"]]
    shown = ", ".join(many(held[f"{kind}s"], kind) for kind in ("pod", "service", "node") if f"{kind}s" in held)
    count = sum(cluster["troubles"].values())
    say(
        f"cluster: {shown}; " + (f"waiting for {', '.join(waiting)}" if waiting else f"problems: {count or 'none'}"),
        "yellow" if waiting or count else "",
    )
    watches = {f"watch {watch['resource']}": watch for watch in cluster["watches"]}
    troubled = [part for part in cluster["parts"] if _in_trouble(part, watches.get(part["name"]))]
    if troubled:
        print_table(
            (
                Column("part"),
                Column("heard of", spare=1),
                Column("begun again", spare=2),
                Column("last"),
                Column("because", least=20),
            ),
            [
                (
                    part["name"],
                    _past(watches.get(part["name"], {}).get("heard")),
                    part["failures"],
                    _past(part["failed"]),
                    part["problem"],
                )
                for part in troubled
            ],
            "",
        )
    for problem in cluster["problems"][:_PROBLEMS]:
        prose(problem, "  ")
    if count > _PROBLEMS:
        say(f"  and {count - _PROBLEMS} more; `hedgerow status -o json` shows a hundred")


def _in_trouble(part: dict[str, Any], watch: dict[str, Any] | None) -> bool:
    lost = watch is not None and watch["heard"] is not None and watch["watching"] is None
    lately = part["failed"] is not None and part["failed"] < _LATELY
    return not part["synced"] or lost or lately


def _past(seconds: float | None) -> str:
    return "-" if seconds is None else f"{duration(seconds)} ago"


def _without(workload: dict[str, Any]) -> str:
    return "another mesh's" if workload["meshed"] else "no sidecar"


def flows(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come, until Ctrl-C.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of the last ones.")] = 50,
    workload: Annotated[
        str,
        typer.Option(metavar="NAMESPACE/NAME", help="Only those with this end.", autocompletion=completion.workload),
    ] = "",
    verdict: Annotated[VerdictFilter | None, typer.Option(help="Only those that met this verdict.")] = None,
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
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


def _flow_table(items: list[dict[str, Any]]) -> None:
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
        "No flows have been reported yet.",
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
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Explain what becomes of a connection, or of an operation on it, and which rule decides."""
    name, port = context.target(destination)
    query: dict[str, str | int | None] = {
        "from": context.workload(source, "from"),
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


def drift(server: Server = "", token_file: TokenFile = None, output: Format = Output.TABLE) -> None:
    """Compare what was observed with what is allowed."""

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
            "Everything observed is allowed.",
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
            "Everything allowed has been observed.",
        )

    show(context.call(server, token_file, lambda client: client.get("/drift")), output, table)


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
        when = datetime.fromtimestamp(entry["at"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        prose(f"{entry['sequence']}  {when}  {entry['actor']}  {entry['action']}  {entry['subject']}", style="bold")
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
    if name.endswith("_at") and isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return str(value)
