"""``status``: the controller, what was refused lately, workloads with their modes, and sidecars."""

from __future__ import annotations

from typing import Any

from hedgerow.cli import context
from hedgerow.cli.context import Format, Server, TokenFile, Within
from hedgerow.cli.output import Column, Output, ago, duration, print_table, prose, say, show
from hedgerow.words import many

#: Problems with the cluster that the table shows.
_PROBLEMS = 10
#: Seconds for which a part of the controller that was begun again is shown.
_LATELY = 600.0
_MODES = {"enforce": "green", "audit": "yellow", "quarantine": "red"}


def status(
    namespace: Within = "", server: Server = "", token_file: TokenFile = None, output: Format = Output.TABLE
) -> None:
    """Show the controller, workloads, modes and sidecars."""
    context.check_namespace(namespace)
    answer = context.call(server, token_file, lambda client: client.get("/status"))
    for part in ("workloads", "sidecars"):
        answer[part] = [each for each in answer[part] if context.within(namespace, each["workload"])]
    show(answer, output, lambda found: _status(found, namespace))


def _status(answer: dict[str, Any], namespace: str) -> None:
    states = ", ".join(f"{count} {state}" for state, count in answer["edges"].items() if count) or "none yet"
    up = ago(answer["started_at"]).removesuffix(" ago")
    say(f"controller {answer['version']}, trust domain {answer['trust_domain']}, up {up}")
    say(f"edges: {states}; overrides in force: {answer['overrides']}")
    if answer.get("refused"):
        _refused(answer["refused"], answer["started_at"])
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
        f"The inventory holds no workloads{context.of(namespace)}.",
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


def _refused(lately: dict[str, Any], began: float) -> None:
    """How many connections, and how many requests over connections that were let through (403)."""
    found = [_counted(lately["connections"], "connection", lately["pairs"])]
    if "requests" in lately:  # a controller of before counts them not
        said = _counted(lately["requests"], "request", lately["request_pairs"])
        whole = lately["requests_since"] <= lately["since"]
        found.append(said if whole else f"{said} (since the controller began, {ago(began)})")
    what = f"refused in the last {duration(lately['seconds'])}: {', '.join(found)}"
    if lately["connections"] or lately.get("requests"):
        prose(f"{what}; see `hedgerow drift`, or `hedgerow flows --verdict deny`", style="yellow")
    else:
        say(what)


def _counted(number: int, noun: str, pairs: int) -> str:
    return f"{many(number, noun)} of {many(pairs, 'pair')} of workloads" if number else f"no {noun}s"


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
