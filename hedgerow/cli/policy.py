"""``policy show|diff|export|approve`` and ``rollback network-policies``."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hedgerow.cli import completion, context
from hedgerow.cli.context import Format, Owner, Server, TokenFile, Within
from hedgerow.cli.output import VERDICTS, Column, Output, ago, end, print_table, printable, prose, say, show, to_yaml

policy = typer.Typer(no_args_is_help=True, help="Show, compare, export and approve the policy.")

Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why, in a sentence; it is kept in the audit log.")
]


def _of(namespace: str, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [rule for rule in rules if context.within(namespace, rule["from"], rule["to"])]


def _rules(rules: list[dict[str, Any]], namespace: str = "") -> None:
    print_table(
        (
            Column("effect", colours=VERDICTS),
            Column("from", least=20),
            Column("to", least=20),
            Column("ports"),
            Column("only", least=16, spare=1),
            Column("origin"),
            Column("owner", spare=3),
            Column("ends", spare=2),
            Column("evidence", least=20, spare=4),
        ),
        [
            (
                rule["effect"],
                end(rule["from"]),
                end(rule["to"]),
                _ports(rule),
                ", ".join(rule["operations"]),
                rule["origin"],
                rule["owner"],
                ago(rule["expires_at"]),
                rule["reason"] or "; ".join(rule["evidence"]),
            )
            for rule in rules
        ],
        f"No rule{context.of(namespace)} is in force.",
    )


def _ports(rule: dict[str, Any]) -> str:
    return f"{','.join(rule['ports']) or 'all'}/{rule['protocol']}"


@policy.command("show")
def policy_show(
    workload: Annotated[
        str,
        typer.Argument(
            metavar="[NAMESPACE/NAME]",
            help="Only this workload's, as its sidecars hold it.",
            autocompletion=completion.workload,
        ),
    ] = "",
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAME",
            help="Of the workload, or only its rules.",
            autocompletion=completion.namespace,
        ),
    ] = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Show the rules in force."""
    if not workload:
        context.check_namespace(namespace)
        answer = context.call(server, token_file, lambda client: client.get("/policy"))
        answer["rules"] = _of(namespace, answer["rules"])
        answer["workloads"] = {n: each for n, each in answer["workloads"].items() if context.within(namespace, n)}
        show(answer, output, lambda body: _rules(body["rules"], namespace))
        return
    name = context.workload_in(workload, "workload", namespace)
    answer = context.call(server, token_file, lambda client: client.get(f"/policy/{name}"))

    def table(body: dict[str, Any]) -> None:
        held = body["snapshot"]
        say(
            f"{held['workload']}, version {held['version']}: inbound {held['inbound_mode']} ({held['inbound_tls']}), "
            f"outbound {held['outbound_mode']}"
        )
        if held["protocols"]:
            say("spoken on its ports: " + ", ".join(f"{port} {name}" for port, name in held["protocols"].items()))
        _rules(held["rules"])

    show(answer, output, table)


@policy.command("diff")
def policy_diff(
    network_policies: Annotated[
        bool, typer.Option("--network-policies", help="What would change at the cluster's NetworkPolicies instead.")
    ] = False,
    namespace: Within = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Show what approving everything that waits would change."""
    context.check_namespace(namespace)
    if network_policies:
        query = {"namespace": namespace} if namespace else {}
        answer = context.call(server, token_file, lambda client: client.get("/network-policies", query))
        show(answer, output, _cluster_diff)
        return

    def table(answer: dict[str, Any]) -> None:
        for sign, style, rules in (("+", "green", answer["added"]), ("-", "red", answer["removed"])):
            for rule in rules:
                say(f"{sign} {rule['effect']} {end(rule['from'])} → {end(rule['to'])}:{_ports(rule)}", style)
        if not answer["edges"]:
            say(f"Nothing{context.of(namespace)} waits for approval.")
            return
        for edge in answer["edges"]:
            say("")
            say(f"{edge['edge']}  {edge['state']}", "bold")
            for line in edge["evidence"]:
                prose(line, "    ")
            if edge["waiting_for"]:
                prose(f"waits for: {edge['waiting_for']}", "    ")
        say("")
        say("To approve one:")
        say(f"    hedgerow policy approve '{answer['edges'][0]['edge']}' --reason …")

    found = context.call(server, token_file, lambda client: client.get("/policy/diff"))
    for part in ("added", "removed"):
        found[part] = _of(namespace, found[part])
    found["edges"] = [each for each in found["edges"] if context.within(namespace, *each["edge"].split("->"))]
    show(found, output, table)


def _cluster_diff(answer: dict[str, Any]) -> None:
    if not answer["namespaces"]:
        say("No namespace has workloads that NetworkPolicies could be for.")
    for each in answer["namespaces"]:
        pinned = f", held at revision {each['pinned']}" if each["pinned"] is not None else ""
        say(f"{each['namespace']}: {each['mode']}{pinned}", "bold")
        if each["problem"]:
            prose(each["problem"], "    ")
            continue
        for manifest in each["create"]:
            say(f"+ {manifest['metadata']['name']}", "green")
        for change in each["change"]:
            say(f"~ {change['to']['metadata']['name']}", "yellow")
            _lines(to_yaml(change["from"]["spec"]), to_yaml(change["to"]["spec"]))
        for name in each["delete"]:
            say(f"- {name}", "red")
        for words, lines in (("in the way", "conflicts"), ("of others", "foreign"), ("stays open", "open")):
            for line in each[lines]:
                prose(f"{words}: {line}", "    ")
        if not any(each[part] for part in ("create", "change", "delete", "conflicts")):
            say("    the cluster has what it should have")


def _lines(before: str, after: str) -> None:
    """The lines that are different."""
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), n=1, lineterm=""):
        if not line.startswith(("---", "+++")):
            say(f"    {line}", {"+": "green", "-": "red"}.get(line[:1], ""))


@policy.command("export")
def policy_export(
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write one file a policy into this folder.")
    ] = None,
    namespace: Within = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="YAML documents, one JSON list, or a table of what there is.")
    ] = Output.YAML,
) -> None:
    """Write the policy as Kubernetes NetworkPolicies."""
    context.check_namespace(namespace)
    answer = context.call(server, token_file, lambda client: client.get("/policy/export", {"format": "json"}))
    policies: list[dict[str, Any]] = [
        each for each in answer["policies"] if not namespace or each["metadata"]["namespace"] == namespace
    ]
    for limit in answer["proof"]["inexpressible"]:
        if limit["widens"] and context.within(namespace, limit["workload"]):
            print(printable(f"wider than the sidecars: {limit['workload']}: {limit['detail']}"), file=sys.stderr)
    if out is not None:
        _write(policies, out, output)
    elif output is Output.YAML:
        print("".join(to_yaml(item, document=True) for item in policies), end="")
    else:
        show(policies, output, _policies)


def _policies(policies: list[dict[str, Any]]) -> None:
    print_table(
        (
            Column("namespace"),
            Column("name", least=20),
            Column("pods", least=20, spare=1),
            Column("ingress"),
            Column("egress"),
        ),
        [
            (
                item["metadata"]["namespace"],
                item["metadata"]["name"],
                ", ".join(f"{key}={value}" for key, value in item["spec"]["podSelector"].get("matchLabels", {}).items())
                or "all",
                f"{len(item['spec'].get('ingress', []))} rules",
                f"{len(item['spec'].get('egress', []))} rules",
            )
            for item in policies
        ],
        "There is nothing to export.",
    )


def _write(policies: list[dict[str, Any]], out: Path, output: Output) -> None:
    suffix = "json" if output is Output.JSON else "yaml"
    names = set()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for item in policies:
            meta = item["metadata"]
            text = json.dumps(item, indent=2) + "\n" if suffix == "json" else to_yaml(item)
            names.add(f"{meta['namespace']}.{meta['name']}.{suffix}")
            (out / f"{meta['namespace']}.{meta['name']}.{suffix}").write_text(text, encoding="utf-8")
        others = sorted(path.name for path in out.glob(f"*.{suffix}") if path.name not in names)
    except OSError as error:
        context.fail(f"--out: {out} cannot be written: {error.strerror}", "name a folder of yours", 2)
    say(f"{len(policies)} NetworkPolicies written to {out}")
    if others:  # `kubectl apply -f` takes them as well
        say(f"not of this export, and left as they were: {', '.join(others)}", "yellow")


@policy.command("approve", cls=context.Command)
def policy_approve(
    reason: Reason,
    edges: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EDGE]...",
            help="As `policy diff` names them, in quotes: 'shop/a->shop/b:8080/TCP'",
            autocompletion=completion.waiting_edge,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that waits.")] = False,
    owner: Owner = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Approve learned connections that wait for a person."""
    if bool(edges) == everything:
        context.fail(
            "edges: named, and --all too" if edges else "edges: none named",
            "name the edges that `hedgerow policy diff` shows, or give --all",
            2,
        )
    for edge in edges or ():
        if "->" not in edge:
            quoted = "'shop/a->shop/b:8080/TCP'"
            context.fail(f"edges: {edge!r} is no edge", f"write it in quotes, or the shell cuts it: {quoted}", 2)
    named = [edge if "/" in edge.partition("->")[0] else f"-/{edge}" for edge in edges or ()]
    body = {"edges": "all" if everything else named, "owner": context.whoever(owner), "reason": reason}
    answer = context.call(server, token_file, lambda client: client.post("/policy/approve", body))

    def table(result: dict[str, Any]) -> None:
        print_table((Column("approved"),), [(edge,) for edge in result["approved"]], "Nothing waited for approval.")

    show(answer, output, table)


rollback = typer.Typer(no_args_is_help=True, help="Go back to what was in force before.")


@rollback.callback()
def _rollback() -> None:
    """So that the kind of thing has to be named."""


@rollback.command("network-policies")
def rollback_network_policies(
    namespace: Annotated[str, typer.Argument(metavar="NAMESPACE")],
    reason: Reason,
    to: Annotated[
        str,
        typer.Option(
            metavar="WHERE",
            help="previous, a revision's number, newest (go on with today's policy), or report (take ours out).",
        ),
    ] = "previous",
    owner: Owner = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Go back to the NetworkPolicies that were applied to a namespace before, and stay there."""
    by = {"owner": context.whoever(owner), "reason": reason}
    if to == "report":
        body = {"namespace": namespace, "network_policy": "report", **by}
        answer = context.call(server, token_file, lambda client: client.post("/modes", body))
        show(answer, output, lambda _: prose(f"{namespace}: only reported from now on; ours are taken out in order"))
        return
    if to not in ("previous", "newest") and not (to.isascii() and to.isdigit() and len(to) < 10):
        context.fail(f"--to: {to!r} is no revision", "write previous, newest, report, or a number", 2)
    where: int | str = int(to) if to.isdigit() else to
    path = f"/network-policies/{namespace}/rollback"
    answer = context.call(server, token_file, lambda client: client.post(path, {"to": where, **by}))

    def table(result: dict[str, Any]) -> None:
        if result["pinned"] is None:
            prose(f"{namespace}: today's policy is applied again")
            return
        prose(f"{namespace}: revision {result['pinned']} is applied, and stays until:")
        say(f"    hedgerow rollback network-policies {namespace} --to newest --reason …")

    show(answer, output, table)
