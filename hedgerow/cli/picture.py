"""``graph``: the service graph as a table, as data, and as pictures."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from hedgerow.cli import context
from hedgerow.cli.context import Server, TokenFile, Within
from hedgerow.cli.output import VERDICTS, Column, ago, connection, print_table, say, size, to_yaml


class GraphFormat(StrEnum):
    """The value of ``graph --format``."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    DOT = "dot"
    GRAPHML = "graphml"
    MERMAID = "mermaid"
    SVG = "svg"


_SUFFIXES = {
    ".json": GraphFormat.JSON,
    ".yaml": GraphFormat.YAML,
    ".yml": GraphFormat.YAML,
    ".dot": GraphFormat.DOT,
    ".gv": GraphFormat.DOT,
    ".graphml": GraphFormat.GRAPHML,
    ".mmd": GraphFormat.MERMAID,
    ".mermaid": GraphFormat.MERMAID,
    ".svg": GraphFormat.SVG,
}


def graph(
    output: Annotated[
        GraphFormat | None,
        typer.Option("--output", "-o", "--format", help="How to write it; without it, as --out ends, or a table."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to this file.")] = None,
    namespace: Within = "",
    server: Server = "",
    token_file: TokenFile = None,
) -> None:
    """Show or export the service graph."""
    context.check_namespace(namespace)
    form = output or _form_of(out)
    if out is not None and form is GraphFormat.TABLE:
        context.fail("--out: a table is for people", "name another format with -o", 2)
    plain = form in (GraphFormat.TABLE, GraphFormat.JSON, GraphFormat.YAML)
    query = {"format": "json" if plain else form.value, "namespace": namespace}
    if not plain:
        _write(context.call(server, token_file, lambda client: client.get_text("/graph", query)), out)
        return
    answer = context.call(server, token_file, lambda client: client.get("/graph", query))
    if form is GraphFormat.TABLE:
        _edges(answer, namespace)
    else:
        _write(json.dumps(answer, indent=2) + "\n" if form is GraphFormat.JSON else to_yaml(answer), out)


def _form_of(out: Path | None) -> GraphFormat:
    if out is None:
        return GraphFormat.TABLE
    form = _SUFFIXES.get(out.suffix.lower())
    if form is None:
        context.fail(f"--out: {out} does not say which format", f"add -o, or end it with {', '.join(_SUFFIXES)}", 2)
    return form


def _write(body: str, out: Path | None) -> None:
    if out is None:
        print(body, end="" if body.endswith("\n") else "\n")
        return
    try:
        out.write_text(body, encoding="utf-8")
    except OSError as error:
        context.fail(f"--out: {out} cannot be written: {error.strerror}", "name a file in a folder of yours", 2)
    say(f"written to {out}")


def _edges(answer: dict[str, Any], namespace: str) -> None:
    print_table(
        (
            Column("connection", least=46),
            Column("state", spare=3),
            Column("verdict", colours=VERDICTS),
            Column("opened", spare=1),
            Column("mtls", spare=4),
            Column("denied", spare=2),
            Column("bytes", spare=5),
            Column("last seen"),
        ),
        [
            (
                connection(edge["from"], edge["to"], edge["port"], edge["protocol"]),
                edge["state"],
                edge["verdict"],
                edge["connections"],
                f"{100 * edge['verified'] // edge['connections']} %" if edge["connections"] else "-",
                edge["denied"],
                size(edge["bytes_sent"] + edge["bytes_received"]),
                ago(edge["last_seen"]),
            )
            for edge in answer["edges"]
        ],
        f"No traffic{context.of(namespace)} has been seen yet.",
    )
