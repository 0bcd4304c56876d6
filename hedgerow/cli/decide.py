"""Commands by which a person decides: ``allow``, ``deny``, ``overrides``, ``mode set``, ``join-token``."""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from graph.model import InboundTls, Mode
from hedgerow.cli import completion, context
from hedgerow.cli.context import Format, Namespace, Owner, Server, TokenFile, Within
from hedgerow.cli.output import VERDICTS, Column, Output, ago, connection, end, print_table, prose, show
from hedgerow.cli.policy import Reason

overrides = typer.Typer(invoke_without_command=True, help="List and revoke what people allowed or denied by hand.")
mode = typer.Typer(no_args_is_help=True, help="Change how strictly connections are judged.")
join_token = typer.Typer(no_args_is_help=True, help="Admit machines without Kubernetes.")

_FROM = "namespace/name, or an address or a network outside."
_TO = (
    "namespace/name:port, or the port of what is outside: api.example.com, '*.example.com', 192.0.2.7, "
    "203.0.113.0/24, [2001:db8::/32]; :all for every port."
)
Source = Annotated[str, typer.Argument(metavar="FROM", help=_FROM, autocompletion=completion.workload)]
Target = Annotated[str, typer.Argument(metavar="TO:PORT", help=_TO, autocompletion=completion.target)]
From = Annotated[
    str, typer.Option("--from", metavar="FROM", help="FROM, as an option.", autocompletion=completion.workload)
]
To = Annotated[str, typer.Option("--to", metavar="TO:PORT", help="TO, as an option.", autocompletion=completion.target)]
Lasting = Annotated[
    str,
    typer.Option("--for", metavar="TIME", help="How long: 90s, 30m, 8h, 7d. Without it, until it is revoked."),
]
Operations = Annotated[
    list[str] | None,
    typer.Option("--operation", metavar="NAME", help="Only this: 'GET /cart/{id}'. May be given several times."),
]
Transport = Annotated[str, typer.Option("--protocol", metavar="NAME", help="TCP, UDP or SCTP.")]

_ID = re.compile(r"[0-9a-zA-Z._-]{1,200}")


class NetworkPolicyMode(StrEnum):
    """The value of ``mode set --network-policy``."""

    OFF = "off"
    REPORT = "report"
    APPLY = "apply"


class Direction(StrEnum):
    """The value of ``mode set --direction``."""

    INBOUND = "inbound"
    OUTBOUND = "outbound"
    BOTH = "both"


def allow(reason: Reason, source: Source = "", destination: Target = "", from_: From = "", to: To = "",
          lasting: Lasting = "", owner: Owner = "", operation: Operations = None, protocol: Transport = "TCP",
          namespace: Namespace = "", server: Server = "", token_file: TokenFile = None,
          output: Format = Output.TABLE) -> None:  # fmt: skip
    """Allow a connection, or operations of it, by hand, for a while."""
    ends = _asked_for(*_ends_given(source, destination, from_, to), protocol, operation or [], namespace)
    _override({"effect": "allow", **ends, **_by_whom(owner, reason, lasting)}, server, token_file, output)


def deny(reason: Reason, source: Source = "", destination: Target = "", from_: From = "", to: To = "",
         lasting: Lasting = "", owner: Owner = "", operation: Operations = None, protocol: Transport = "TCP",
         namespace: Namespace = "", server: Server = "", token_file: TokenFile = None,
         output: Format = Output.TABLE) -> None:  # fmt: skip
    """Deny a connection, or operations of it, by hand, and end what is open."""
    ends = _asked_for(*_ends_given(source, destination, from_, to), protocol, operation or [], namespace)
    _override({"effect": "deny", **ends, **_by_whom(owner, reason, lasting)}, server, token_file, output)


def _ends_given(source: str, destination: str, from_: str, to: str) -> tuple[str, str]:
    """FROM and TO, each as an argument or as an option."""
    given = [each for each in (source, destination) if each]
    ends = [*([from_] if from_ else []), *given, *([to] if to else [])]
    if len(ends) != 2:
        context.fail(
            "two ends are wanted, FROM and TO:PORT",
            "write `shop/front shop/cart:8080`, or `--from shop/front --to shop/cart:8080`",
            2,
        )
    return ends[0], ends[1]


def _asked_for(source: str, destination: str, protocol: str, operations: list[str], namespace: str) -> dict[str, Any]:
    name, port = context.target(destination, every_port=True, wide=True, namespace=namespace)
    return {
        "from": context.end(source, "from", namespace),
        "to": name,
        "port": port,
        "protocol": context.transport(protocol),
        "operations": [context.operation(operation) for operation in operations],
    }


def _by_whom(owner: str, reason: str, lasting: str) -> dict[str, Any]:
    return {
        "owner": context.whoever(owner),
        "reason": reason,
        "expires_in": context.seconds(lasting, "--for") if lasting else None,
    }


def _override(body: dict[str, Any], server: str, token_file: Path | None, output: Output) -> None:
    answer = context.call(server, token_file, lambda client: client.post("/overrides", body))

    def table(result: dict[str, Any]) -> None:
        made = result["override"]
        until = f"ends {ago(made['expires_at'])}" if made["expires_at"] else "has no end"
        only = f", only {', '.join(made['operations'])}" if made["operations"] else ""
        prose(f"{made['id']}: {made['effect']} {_ends(made)}{only}, {until}; {_where(result)}")
        if result.get("note"):
            prose(result["note"])

    show(answer, output, table)


def _ends(override: dict[str, Any]) -> str:
    if override["port"] is None:
        return f"{end(override['from'])} → {end(override['to'])}, every {override['protocol']} port"
    return connection(override["from"], override["to"], override["port"], override["protocol"])


def _where(result: dict[str, Any]) -> str:
    if result["pushed"]:
        return "every connected sidecar that it concerns holds it"
    return "not every sidecar has taken it yet, see `hedgerow status`"


@overrides.callback()
def overrides_list(
    command: typer.Context,
    namespace: Within = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """List what people allowed or denied by hand."""
    if command.invoked_subcommand is not None:
        return

    def table(answer: dict[str, Any]) -> None:
        print_table(
            (
                Column("id"),
                Column("state", colours={"active": "bold"}),
                Column("effect", colours=VERDICTS),
                Column("connection", least=20),
                Column("only", least=16, spare=1),
                Column("ends", spare=2),
                Column("owner", spare=3),
                Column("reason", least=20, spare=4),
            ),
            [
                (each["id"], each["state"], each["effect"], _ends(each), ", ".join(each["operations"]),
                 ago(each["expires_at"]), each["owner"], each["reason"])
                for each in answer["overrides"]
            ],
            f"There are no overrides{context.of(namespace)}.",
        )  # fmt: skip

    context.check_namespace(namespace)
    found = context.call(server, token_file, lambda client: client.get("/overrides"))
    found["overrides"] = [each for each in found["overrides"] if context.within(namespace, each["from"], each["to"])]
    show(found, output, table)


@overrides.command("rm", hidden=True)
@overrides.command("revoke")
def overrides_revoke(
    name: Annotated[
        str,
        typer.Argument(metavar="ID", help="As `hedgerow overrides` names it.", autocompletion=completion.override),
    ],
    reason: Reason,
    owner: Owner = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """End an override now."""
    bare = name.removeprefix("override/")
    if not _ID.fullmatch(bare):
        context.fail(f"id: {name!r} is no override's", "`hedgerow overrides` lists them", 2)
    query = {"owner": context.whoever(owner), "reason": reason}
    path = f"/overrides/override/{bare}"
    answer = context.call(server, token_file, lambda client: client.delete(path, query))

    def table(result: dict[str, Any]) -> None:
        prose(f"{result['override']['id']}: {result['override']['state']}; {_where(result)}")
        if result.get("note"):
            prose(result["note"])

    show(answer, output, table)


@mode.command("set")
def mode_set(
    scope: Annotated[
        str,
        typer.Argument(
            metavar="WORKLOAD|NAMESPACE", help="namespace/name, or a whole namespace.", autocompletion=completion.scope
        ),
    ],
    to: Annotated[Mode | None, typer.Argument(metavar="MODE", help="learn, audit, enforce or quarantine.")] = None,
    reason: Reason = "",
    direction: Annotated[Direction, typer.Option(help="Which connections.")] = Direction.BOTH,
    inbound_tls: Annotated[
        InboundTls | None, typer.Option(help="Whether connections without mutual TLS are taken.")
    ] = None,
    network_policy: Annotated[
        NetworkPolicyMode | None,
        typer.Option(help="On Kubernetes, what is done with a namespace's NetworkPolicies."),
    ] = None,
    namespace: Namespace = "",
    owner: Owner = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Set the mode of a workload, or of a whole namespace."""
    if namespace:
        scope = context.workload_in(scope, "workload", namespace)
    if to is None and inbound_tls is None and network_policy is None:
        context.fail("mode: none given", "write learn, audit, enforce or quarantine, or give an option", 2)
    if network_policy is not None and "/" in scope:
        context.fail("--network-policy: set for one workload", f"set it for {scope.partition('/')[0]}", 2)
    named = [to.value] if to is not None else []
    named += [f"inbound TLS {inbound_tls.value}"] if inbound_tls is not None else []
    named += [f"NetworkPolicies {network_policy.value}"] if network_policy is not None else []
    what = ", ".join(named)
    body: dict[str, Any] = {
        "direction": direction.value,
        "mode": to.value if to is not None else None,
        "inbound_tls": inbound_tls.value if inbound_tls else None,
        "network_policy": network_policy.value if network_policy else None,
        "owner": context.whoever(owner),
        "reason": reason or f"set to {what} by hand",
    }
    if "/" in scope:
        body["workload"] = context.workload(scope, "workload")
    else:
        body["namespace"] = scope
    answer = context.call(server, token_file, lambda client: client.post("/modes", body))

    def table(result: dict[str, Any]) -> None:
        prose(f"{what}: {', '.join(result['workloads']) or 'no workload yet'}; {_where(result)}")
        if result.get("kept"):
            prose(f"set one by one, and left as they are: {', '.join(result['kept'])}")

    show(answer, output, table)


@join_token.command("create")
def join_token_create(
    workload: Annotated[
        str, typer.Argument(metavar="WORKLOAD", help="namespace/name", autocompletion=completion.workload)
    ],
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="The name of the replica that will use it.")],
    lasting: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long it may be used: 90s, 30m, 8h, 7d.")
    ] = "10m",
    namespace: Namespace = "",
    owner: Owner = "",
    server: Server = "",
    token_file: TokenFile = None,
    output: Format = Output.TABLE,
) -> None:
    """Make a token that admits one sidecar, once. It is shown this one time."""
    body = {
        "workload": context.workload_in(workload, "workload", namespace),
        "instance": instance,
        "expires_in": context.seconds(lasting, "--for"),
        "owner": context.whoever(owner),
    }
    answer = context.call(server, token_file, lambda client: client.post("/join-tokens", body))

    def table(made: dict[str, Any]) -> None:
        print(made["token"])
        hint = f"for {made['workload']} as {made['instance']}, once, and it expires {ago(made['expires_at'])}"
        print(f"({hint}; write it to the file that the sidecar's join_token_file names)", file=sys.stderr)

    show(answer, output, table)
