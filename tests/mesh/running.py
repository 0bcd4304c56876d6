"""What tests do with a running mesh: find programs, count an edge, close the mesh, look at who was refused."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from graph.flow import EdgeKey
from graph.model import Port, WorkloadRef
from hedgerow.local.description import Program, ServedAs, WorkloadSpec
from hedgerow.local.mesh import LocalMesh

PROGRAMS = Path(__file__).parent / "programs"

#: An edge is learned as soon as it was proved; seconds between two reports of a sidecar.
LEARNING = {"min_connections": 1, "min_seconds": 0.2, "quiet_seconds": 0.5}
REPORT_INTERVAL = 0.1
#: Counters that do not change for so long have all been reported, seconds.
_SETTLED = 4 * REPORT_INTERVAL


def installed(program: str, *elsewhere: str) -> str:
    """The path of a program that a test needs; the test fails when it is missing.

    :param elsewhere: patterns for places that are not on PATH; the last match counts, which is the newest version
    """
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    for pattern in elsewhere:
        found = found or max(map(str, Path("/").glob(f"{pattern}/{program}")), default=None, key=_version)
    if found is None:
        pytest.fail(f"{program} is not installed, and this test needs it: run .ci/system-packages test", pytrace=False)
    return found


def _version(path: str) -> list[int]:
    return [int(part) for part in path.split("/") if part.isdigit()]


def script(name: str, *arguments: object) -> tuple[str, ...]:
    """The command line of one of our small programs."""
    return (sys.executable, "-P", str(PROGRAMS / name), *map(str, arguments))


def server(
    name: str, argv: Iterable[str], port: int, *, service_port: int = 0, app_protocol: str = "tcp", **more: Any
) -> WorkloadSpec:
    """A workload ``namespace/name`` that serves one port, behind a service of its name."""
    ref = WorkloadRef.parse(name)
    program = Program(tuple(argv), **({"uid": more.pop("uid")} if "uid" in more else {}))
    return WorkloadSpec(
        ref,
        program,
        ports=(Port(port, name=app_protocol, app_protocol=app_protocol),),
        services=(ServedAs(ref.name, ((service_port or port, port),)),),
        service_account=ref.name,
        **more,
    )


def client(name: str, **more: Any) -> WorkloadSpec:
    """A workload that runs what tests tell it to."""
    ref = WorkloadRef.parse(name)
    return WorkloadSpec(ref, service_account=ref.name, **more)


# --- the graph


@dataclass(frozen=True, slots=True)
class Counters:
    """What the graph says of one edge; all zero when it does not know it."""

    connections: int = 0
    verified: int = 0
    denied: int = 0
    failed: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    @classmethod
    async def of(cls, mesh: LocalMesh, edge: EdgeKey) -> Self:
        found = await find_edge(mesh, edge)
        return cls(**{name: found[name] for name in cls.__dataclass_fields__}) if found else cls()

    def __sub__(self, before: Counters) -> Counters:
        return Counters(*(getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a program did, as the program knows it: connections it made, and the bytes it sent and received on them.

    Bytes are ranges (least, most) where the program's framing is not known to the byte.
    """

    connections: int
    sent: tuple[int, int]
    received: tuple[int, int]

    @classmethod
    def about(cls, connections: int, sent: int, received: int, *, each: int = 2_000) -> Self:
        """Payload alone is known.

        :param each: the most that opening and closing talk takes on one connection, bytes each way; framing of
            payload is given a tenth of it
        """
        room = connections * each
        return cls(connections, (sent, sent + sent // 10 + room), (received, received + received // 10 + room))


async def find_edge(mesh: LocalMesh, edge: EdgeKey) -> dict[str, Any] | None:
    """The edge's document from the API."""
    edges = (await mesh.api.get("/graph"))["edges"]
    return next((found for found in edges if found["id"] == str(edge)), None)


async def counted(mesh: LocalMesh, edge: EdgeKey, before: Counters, traffic: Traffic) -> Counters:
    """What the graph counted since ``before``, once both sidecars have reported all of ``traffic``."""
    last, since = before, 0.0

    async def settled() -> bool:
        nonlocal last, since
        now, added = await Counters.of(mesh, edge), last - before
        if now != last:
            last, since = now, time.monotonic()
            return False
        whole = (
            added.connections >= traffic.connections
            and added.bytes_sent >= traffic.sent[0]
            and added.bytes_received >= traffic.received[0]
        )
        return whole and time.monotonic() - since >= _SETTLED

    try:
        await mesh.wait_for(settled, f"{traffic} on {edge}", 15)
    except Exception as error:
        error.add_note(f"counted so far: {last - before}")
        raise
    return last - before


async def check_counted(mesh: LocalMesh, edge: EdgeKey, before: Counters, traffic: Traffic) -> None:
    """The graph shows exactly these connections, all of them mutual TLS, none refused, and these bytes."""
    added = await counted(mesh, edge, before, traffic)
    assert added.connections == traffic.connections
    assert added.verified == added.connections
    assert (added.denied, added.failed) == (0, 0)
    assert traffic.sent[0] <= added.bytes_sent <= traffic.sent[1]
    assert traffic.received[0] <= added.bytes_received <= traffic.received[1]
    shown = await find_edge(mesh, edge)
    assert shown is not None
    assert shown["denied"] == 0
    assert shown["source_identities"] == [identity(edge.source)]
    assert shown["destination_identities"] == [identity(edge.destination)]


def identity(ref: WorkloadRef) -> str:
    """The SPIFFE ID of a workload whose account has its name, as :func:`server` and :func:`client` make them."""
    return f"spiffe://hedgerow.local/ns/{ref.namespace}/sa/{ref.name}/wl/{ref.name}"


# --- the policy


async def close(mesh: LocalMesh, edges: Iterable[EdgeKey], *, namespaces: Iterable[str] | None = None) -> None:
    """Enforce, with mutual TLS alone inbound, once all of ``edges`` are learned.

    :param namespaces: None: those of ``edges``
    """
    edges = list(edges)

    async def learned() -> bool:
        shown = {each["id"]: each for each in (await mesh.api.get("/graph"))["edges"]}
        return all(str(edge) in shown and shown[str(edge)]["state"] == "active" for edge in edges)

    await mesh.wait_for(learned, f"{', '.join(map(str, edges))} to be learned")
    ends = {ref.namespace for edge in edges for ref in (edge.source, edge.destination)}
    for namespace in sorted(ends if namespaces is None else namespaces):
        await set_mode(mesh, namespace, "enforce", "strict")


async def set_mode(mesh: LocalMesh, namespace: str, mode: str, inbound_tls: str, direction: str = "both") -> None:
    """Set a namespace's mode; returns when every sidecar of it has taken it."""
    asked = {"namespace": namespace, "direction": direction, "mode": mode, "inbound_tls": inbound_tls}
    done = await mesh.api.post("/modes", {**asked, "owner": "tests", "reason": "the test's next step"})
    assert done["pushed"], f"not every sidecar of {namespace} took mode {mode}"


async def refusals(mesh: LocalMesh, edge: EdgeKey, direction: str) -> list[dict[str, Any]]:
    """The refused flows of one edge that the sidecar at one end reported."""
    flows = (await mesh.api.get("/flows", {"verdict": "deny", "limit": 1000}))["flows"]
    wanted = (str(edge.source), str(edge.destination), edge.port, direction)
    return [flow for flow in flows if (flow["source"], flow["destination"], flow["port"], flow["direction"]) == wanted]


# --- pods


async def until_said(mesh: LocalMesh, log: Path, wanted: str, deadline: float = 20.0) -> str:
    """Wait until a program has written ``wanted`` to its log; returns the log."""

    async def said() -> str:
        text = await asyncio.to_thread(log.read_text, errors="replace")
        return text if wanted in text else ""

    return await mesh.wait_for(said, f"{wanted!r} in {log.name}", deadline)
