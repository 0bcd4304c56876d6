"""Commands that change the policy: ``policy …``, ``allow``, ``deny``, ``overrides``, ``mode set``, ``join-token``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape

from graph.model import InboundTls, Mode
from hedgerow.cli import context
from hedgerow.cli.context import Format, Owner, Server, TokenFile
from hedgerow.cli.output import Output, ago, console, print_table, show

policy = typer.Typer(no_args_is_help=True, help="Show, compare, export and approve the policy.")
overrides = typer.Typer(invoke_without_command=True, help="List and revoke what people allowed or denied by hand.")
mode = typer.Typer(no_args_is_help=True, help="Change how strictly a workload or a namespace is judged.")
join_token = typer.Typer(no_args_is_help=True, help="Admit machines without Kubernetes.")

Workload = Annotated[str, typer.Argument(help="namespace/name", autocompletion=context.complete_workload)]
Reason = Annotated[str, typer.Option("--reason", help="Why, in a sentence; it is kept in the audit log.")]


class Direction(StrEnum):
    """The value of ``mode set --direction``."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"
    BOTH = "both"


def _rules(rules: list[dict[str, Any]], empty: str) -> None:
    print_table(
        ("effect", "from", "to", "ports", "origin", "owner", "ends", "evidence"),
        (
            (
                rule["effect"],
                rule["from"],
                rule["to"],
                f"{','.join(rule['ports']) or 'all'}/{rule['protocol']}",
                rule["origin"],
                rule["owner"],
                ago(rule["expires_at"]),
                rule["reason"] or "; ".join(rule["evidence"]),
            )
            for rule in rules
        ),
        empty,
        wraps=("from", "to", "evidence"),
    )


@policy.command("show")
def policy_show(
    workload: Annotated[
        str,
        typer.Argument(help="Only this workload's, as its sidecars hold it.", autocompletion=context.complete_workload),
    ] = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Show the rules in force."""
    if not workload:
        answer = context.call(server, token_file, lambda client: client.get("/policy"))
        show(answer, output, lambda a: _rules(a["rules"], "No rule is in force."))
        return
    name = context.workload(workload, "workload")
    answer = context.call(server, token_file, lambda client: client.get(f"/policy/{name}"))

    def table(body: dict[str, Any]) -> None:
        held = body["snapshot"]
        console().print(
            f"{held['workload']}, version {held['version']}: inbound {held['inbound_mode']} ({held['inbound_tls']}), "
            f"outbound {held['outbound_mode']}"
        )
        _rules(held["rules"], "No rule is in force.")

    show(answer, output, table)


@policy.command("diff")
def policy_diff(server: Server = "", token_file: TokenFile = None, output: Format = Output.TABLE) -> None:
    """Show what approving everything that waits would change."""

    def table(answer: dict[str, Any]) -> None:
        out = console()
        for sign, style, rules in (("+", "green", answer["added"]), ("-", "red", answer["removed"])):
            for rule in rules:
                ports = ",".join(rule["ports"]) or "all"
                line = f"{sign} {rule['effect']} {rule['from']} -> {rule['to']}:{ports}/{rule['protocol']}"
                out.print(escape(line), style=style)
        print_table(
            ("waiting", "state", "for", "evidence"),
            ((e["edge"], e["state"], e["waiting_for"], "; ".join(e["evidence"])) for e in answer["edges"]),
            "Nothing waits for approval.",
        )

    show(context.call(server, token_file, lambda client: client.get("/policy/diff")), output, table)


@policy.command("export")
def policy_export(
    server: Server = "",
    token_file: TokenFile = None,
    out: Annotated[Path | None, typer.Option(help="Write one file a policy into this folder.")] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="YAML documents, or one JSON list.")] = Output.YAML,
) -> None:
    """Write the policy as networking.k8s.io/v1 NetworkPolicies."""
    answer = context.call(server, token_file, lambda client: client.get("/policy/export", {"format": "json"}))
    policies: list[dict[str, Any]] = answer["policies"]
    if out is None:
        if output is Output.JSON:
            show(policies, output, lambda _: None)
        else:
            print(yaml.safe_dump_all(policies, sort_keys=False, explicit_start=True), end="")
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for item in policies:
            meta = item["metadata"]
            text = yaml.safe_dump(item, sort_keys=False)
            (out / f"{meta['namespace']}.{meta['name']}.yaml").write_text(text, encoding="utf-8")
    except OSError as error:
        context.fail(f"--out: {out} cannot be written: {error.strerror}", "name a folder of yours", 2)
    console().print(f"{len(policies)} NetworkPolicies written to {escape(str(out))}")


@policy.command("approve")
def policy_approve(
    reason: Reason,
    edges: Annotated[
        list[str] | None, typer.Argument(help="Edges as `policy diff` names them: shop/a->shop/b:8080/TCP")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything that waits.")] = False,
    owner: Owner = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Approve learned connections that wait for a person."""
    if bool(edges) == everything:
        context.fail("edges: none named" if not edges else "edges: named, and --all too",
                     "name the edges that `hedgerow policy diff` shows, or give --all", 2)  # fmt: skip
    body = {"edges": "all" if everything else edges, "owner": context.whoever(owner), "reason": reason}
    answer = context.call(server, token_file, lambda client: client.post("/policy/approve", body))
    show(
        answer,
        output,
        lambda a: print_table(("approved",), ((edge,) for edge in a["approved"]), "Nothing waited for approval."),
    )


def _override(effect: str, source: str, destination: str, lasting: str, reason: str, owner: str, protocol: str,
              server: str, token_file: Path | None, output: Output) -> None:  # fmt: skip
    name, port = context.target(destination)
    body = {
        "effect": effect,
        "from": context.workload(source, "from"),
        "to": name,
        "port": port,
        "protocol": protocol.upper(),
        "owner": context.whoever(owner),
        "reason": reason,
        "expires_in": context.seconds(lasting, "--for") if lasting else None,
    }
    answer = context.call(server, token_file, lambda client: client.post("/overrides", body))

    def table(result: dict[str, Any]) -> None:
        made = result["override"]
        until = f"ends {ago(made['expires_at'])}" if made["expires_at"] else "has no end"
        where = "every sidecar it concerns holds it" if result["pushed"] else "not every sidecar has taken it yet"
        console().print(
            escape(f"{made['id']}: {effect} {made['from']} -> {made['to']}:{made['port']}, {until}; {where}")
        )

    show(answer, output, table)


Source = Annotated[str, typer.Argument(metavar="FROM", help="namespace/name", autocompletion=context.complete_workload)]
Target = Annotated[str, typer.Argument(metavar="TO:PORT", help="namespace/name:port")]
Lasting = Annotated[str, typer.Option("--for", help="How long: 90s, 30m, 8h, 7d. Without it, until it is revoked.")]
Transport = Annotated[str, typer.Option("--protocol", help="TCP, UDP or SCTP.")]


def allow(source: Source, destination: Target, reason: Reason, lasting: Lasting = "", owner: Owner = "",
          protocol: Transport = "TCP", server: Server = "", token_file: TokenFile = None,
          output: Format = Output.TABLE) -> None:  # fmt: skip
    """Allow a connection by hand, for a while."""
    _override("allow", source, destination, lasting, reason, owner, protocol, server, token_file, output)


def deny(source: Source, destination: Target, reason: Reason, lasting: Lasting = "", owner: Owner = "",
         protocol: Transport = "TCP", server: Server = "", token_file: TokenFile = None,
         output: Format = Output.TABLE) -> None:  # fmt: skip
    """Deny a connection by hand; it wins over everything learned and ends what is open."""
    _override("deny", source, destination, lasting, reason, owner, protocol, server, token_file, output)


@overrides.callback()
def overrides_list(
    command: typer.Context, server: Server = "", token_file: TokenFile = None, output: Format = Output.TABLE
) -> None:
    """List what people allowed or denied by hand."""
    if command.invoked_subcommand is not None:
        return
    answer = context.call(server, token_file, lambda client: client.get("/overrides"))
    show(
        answer,
        output,
        lambda a: print_table(
            ("id", "state", "effect", "from", "to", "owner", "ends", "reason"),
            (
                (o["id"], o["state"], o["effect"], o["from"], f"{o['to']}:{o['port']}/{o['protocol']}", o["owner"],
                 ago(o["expires_at"]), o["reason"])
                for o in a["overrides"]
            ),
            "There are no overrides.",
            wraps=("from", "to", "reason"),
        ),
    )  # fmt: skip


@overrides.command("revoke")
def overrides_revoke(
    id: Annotated[str, typer.Argument(help="As `hedgerow overrides` names it.")],
    reason: Reason,
    owner: Owner = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """End an override now."""
    query = {"owner": context.whoever(owner), "reason": reason}
    answer = context.call(server, token_file, lambda client: client.delete(f"/overrides/{id}", query))
    show(answer, output, lambda a: console().print(escape(f"{a['override']['id']}: {a['override']['state']}")))


@mode.command("set")
def mode_set(
    scope: Annotated[str, typer.Argument(help="namespace/name, or a whole namespace", metavar="WORKLOAD|NAMESPACE")],
    to: Annotated[Mode, typer.Argument(metavar="MODE", help="learn, audit, enforce or quarantine")],
    reason: Reason = "",
    direction: Annotated[Direction, typer.Option(help="Which connections.")] = Direction.BOTH,
    inbound_tls: Annotated[
        InboundTls | None, typer.Option(help="Whether connections without mutual TLS are taken.")
    ] = None,
    owner: Owner = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Set the mode of a workload, or of every workload in a namespace."""
    body: dict[str, Any] = {
        "direction": direction.value,
        "mode": to.value,
        "inbound_tls": inbound_tls.value if inbound_tls else None,
        "owner": context.whoever(owner),
        "reason": reason or f"set to {to.value} by hand",
    }
    if "/" in scope:
        body["workload"] = context.workload(scope, "workload")
    else:
        body["namespace"] = scope
    answer = context.call(server, token_file, lambda client: client.post("/modes", body))

    def table(result: dict[str, Any]) -> None:
        where = "every sidecar holds it" if result["pushed"] else "not every sidecar has taken it yet"
        console().print(escape(f"{to.value}: {', '.join(result['workloads'])}; {where}"))

    show(answer, output, table)


@join_token.command("create")
def join_token_create(
    workload: Workload,
    instance: Annotated[str, typer.Argument(help="The name of the replica that will use it.")],
    lasting: Lasting = "10m",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Make a token that admits one sidecar once. It is shown this one time."""
    body = {
        "workload": context.workload(workload, "workload"),
        "instance": instance,
        "expires_in": context.seconds(lasting, "--for"),
    }
    answer = context.call(server, token_file, lambda client: client.post("/join-tokens", body))
    show(answer, output, lambda a: print(a["token"]))
