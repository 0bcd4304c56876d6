"""The demo: a shop is meshed, learned, audited, closed and attacked, and every claim about it is measured.

The order is the story: start → learn → audit → enforce → attack → override → result. The mesh is never told what the
shop should do: :data:`hedgerow.local.shop.layout.EXPECTED` is only compared with what was learned.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from graph.flow import EdgeKey
from graph.model import WorkloadRef
from hedgerow.local import attacks, manifests
from hedgerow.local.attacks import probe
from hedgerow.local.errors import NotReady
from hedgerow.local.loopback import CANNOT_SHOW, LoopbackSite
from hedgerow.local.mesh import LocalMesh
from hedgerow.local.network import NamespaceSite
from hedgerow.local.pod import Pod
from hedgerow.local.processes import Process, python
from hedgerow.local.progress import Progress
from hedgerow.local.sandbox import Confinement
from hedgerow.local.shop.layout import CLIENTS, EXPECTED, REPORT, SHOP, SHOPPER
from hedgerow.local.shop.tally import Tally
from hedgerow.local.summary import OverrideTrial, Result

_OWNER = "demo"
#: An edge that is steady for so long is learned, seconds. Real meshes take days; the demo's traffic is its own.
LEARNING = {"min_connections": 1, "min_seconds": 3.0, "quiet_seconds": 5.0}
_LEARN_DEADLINE = 90.0
_TRAFFIC_DEADLINE = 60.0
#: What must go well in each mode before the next one, in requests of the shopper and runs of the periodic job.
_REQUESTS = 40
_RUNS = 2
#: How long the override lasts, seconds.
_OVERRIDE_LASTS = 5.0
#: The edge that the override opens: one of the attacks, so never learned; its server speaks first.
_OPENED = EdgeKey(WorkloadRef("shop", "recommendation"), WorkloadRef("data", "database"), 5432)
#: What each way of running leaves unproved.
_LIMITS = {
    Confinement.USER: (
        "everything runs as one user: capabilities and mounts keep applications from their sidecars, not users",
    ),
    Confinement.NONE: CANNOT_SHOW,
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the demo is given from outside.

    :param out: the folder for manifests; None writes none
    :param web: the listening socket of the page and the API
    :param confinement: how the mesh is kept apart: by the sandbox that this process is in, or not at all
    :param connector: makes sockets in that socket's network
    :param started: called once, when the page can be opened
    """

    out: Path | None
    web: socket.socket
    confinement: Confinement
    connector: Callable[[], aiohttp.BaseConnector] | None = None
    started: Callable[[LocalMesh], None] = lambda mesh: None


class Demo:
    """One run. :meth:`run` measures; the mesh is left running for people to look at until :meth:`stop`."""

    def __init__(self, given: Surroundings, progress: Progress) -> None:
        self._given = given
        self._progress = progress
        self._started = time.monotonic()
        self._audited_at = 0.0
        self.mesh = LocalMesh(
            SHOP,
            site=LoopbackSite() if given.confinement is Confinement.NONE else NamespaceSite(),
            controller_settings={"learning": LEARNING},
            sidecar_settings={"report_interval": 0.5},
            web=given.web,
            connector=given.connector,
        )

    async def run(self) -> Result:
        """The whole story.

        :raises LocalMeshError: when it could not be told to its end
        """
        progress = self._progress
        with progress.phase("Start a controller and a shop, a sidecar beside every program"):
            await self.mesh.start()
            self._given.started(self.mesh)
            for client in CLIENTS:
                await self.mesh.add(client)
            progress.note(f"{len(self.mesh.pods)} pods, {len(self.mesh.services)} services")
        with progress.phase("Learn who talks to whom"):
            await self._learn()
        with progress.phase("Audit: what would be refused?"):
            self._audited_at = time.time()
            await self._set_mode("audit", "permissive")
            await self._traffic()
        with progress.phase("Enforce: mutual TLS alone, and only what was learned"):
            await self._set_mode("enforce", "strict")
            await self._traffic()
        with progress.phase("Attack it"):
            outcome = await self._attack()
        with progress.phase(f"Override: allow {_OPENED} for {_OVERRIDE_LASTS:g} s"):
            trial = await self._override()
        with progress.phase("Go on under load, and count"):
            await self._traffic()
            return await self._measure(outcome, trial)

    async def stop(self) -> None:
        await self.mesh.stop()

    # --- the phases

    async def _learn(self) -> None:
        """Wait until the controller says of every workload with a sidecar that it can be closed."""

        async def ready() -> bool:
            workloads = (await self.mesh.api.get("/status"))["workloads"]
            meshed = [workload for workload in workloads if workload["meshed"]]
            open_still = [workload for workload in meshed if not workload["ready_to_enforce"]]
            known = len((await self.mesh.api.get("/graph"))["edges"])
            waiting = "; ".join(text for workload in open_still for text in workload["waiting_for"][:1])
            self._progress.note(f"{known} edges, {len(meshed) - len(open_still)}/{len(meshed)} ready {waiting[:80]}")
            return bool(meshed) and not open_still and self._tally(self._shopper).requests >= _REQUESTS

        await self.mesh.wait_for(ready, "every workload to be ready to enforce", _LEARN_DEADLINE)

    async def _set_mode(self, mode: str, inbound_tls: str) -> None:
        for namespace in sorted({str(pod.spec.ref.namespace) for pod in self.mesh.placed_pods()}):
            asked = {"namespace": namespace, "direction": "both", "mode": mode, "inbound_tls": inbound_tls}
            reason = "the demo's next step"
            done = await self.mesh.api.post("/modes", {**asked, "owner": _OWNER, "reason": reason})
            if not done["pushed"]:
                raise NotReady(f"not every sidecar of {namespace} took mode {mode}: see `hedgerow status`")

    async def _traffic(self) -> None:
        """Wait until the shop has been used for a while in the present mode."""
        shopper, report = self._tally(self._shopper).requests, self._tally(self._report).requests

        async def enough() -> bool:
            requests = self._tally(self._shopper).requests - shopper
            runs = self._tally(self._report).requests - report
            self._progress.note(f"{requests} requests, {runs} runs of the periodic job")
            return requests >= _REQUESTS and runs >= _RUNS

        await self.mesh.wait_for(enough, "traffic through the shop", _TRAFFIC_DEADLINE)

    async def _attack(self) -> tuple[attacks.Attack, ...]:
        await self.mesh.add(attacks.INTRUDER)
        await attacks.check_controls(self.mesh)
        domain = (await self.mesh.api.get("/status"))["trust_domain"]
        done = tuple(await attacks.carry_out(self.mesh, attacks.attempts(domain)))
        self._progress.note(f"{sum(attack.blocked for attack in done)} of {len(done)} refused")
        return done

    async def _override(self) -> OverrideTrial:
        pod = self.mesh.pods_of(_OPENED.source)[0]
        denied_before = not await self._reaches(pod)
        asked = time.monotonic()
        made = await self.mesh.api.post(
            "/overrides",
            {
                "effect": "allow",
                "from": str(_OPENED.source),
                "to": str(_OPENED.destination),
                "port": _OPENED.port,
                "protocol": str(_OPENED.protocol),
                "owner": _OWNER,
                "reason": "show that an override opens a connection, and for how long",
                "expires_in": _OVERRIDE_LASTS,
            },
        )
        push_ms = (time.monotonic() - asked) * 1000
        expires_at = float(made["override"]["expires_at"])
        allowed_after = bool(made["pushed"]) and await self._reaches(pod)
        cut = await self._is_cut(pod, expires_at)
        denied_after = not await self._reaches(pod)
        self._progress.note(f"in force after {push_ms:.0f} ms")
        return OverrideTrial(_OPENED, denied_before, allowed_after, push_ms, denied_after, cut)

    async def _reaches(self, pod: Pod) -> bool:
        return (await probe(pod, "database", "${service:database.data}", _OPENED.port)).bytes > 0

    async def _is_cut(self, pod: Pod, expires_at: float, patience: float = 10.0) -> bool:
        """Whether a connection that works while the override holds is ended by its expiry, and not before."""
        held = Process("a held connection", self.mesh.root / "held.log")
        seconds = str(max(expires_at - time.time(), 0) + patience)
        argv = ["-m", "hedgerow.local.probe", "database", "${service:database.data}", str(_OPENED.port)]
        await pod.spawn(held, [*python(), *argv, "--hold", seconds])
        try:
            await asyncio.wait_for(held.wait(), patience + _OVERRIDE_LASTS + 5)
            ended_at = time.time()
        except TimeoutError:
            return False
        finally:
            await held.stop()
        events = [json.loads(line)["event"] for line in held.log.read_text().splitlines()]
        return "alive" in events and events[-1] == "cut" and ended_at >= expires_at

    # --- what came of it

    @property
    def _shopper(self) -> Pod:
        return self.mesh.pods_of(SHOPPER.ref)[0]

    @property
    def _report(self) -> Pod:
        return self.mesh.pods_of(REPORT.ref)[0]

    @staticmethod
    def _tally(pod: Pod) -> Tally:
        """The last count that a client of the shop has printed."""
        for line in reversed(pod.application.tail(3).splitlines()):
            if (tally := Tally.read(line)) is not None:
                return tally
        return Tally()

    async def _measure(self, outcome: tuple[attacks.Attack, ...], trial: OverrideTrial) -> Result:
        edges = {_key(edge): edge for edge in (await self.mesh.api.get("/graph"))["edges"]}
        observed = frozenset(key for key, edge in edges.items() if edge["connections"]) - {trial.edge}
        meshed = {pod.spec.ref for pod in self.mesh.placed_pods() if pod.spec.meshed}
        between = [edge for key, edge in edges.items() if {key.source, key.destination} <= meshed]
        connections = sum(edge["connections"] for edge in between)
        refused = sum(edges[key]["denied"] for key in EXPECTED if key in edges) + await self._would_be_refused()
        policies = (await self.mesh.api.get("/policy/export", {"format": "json"}))["policies"]
        if self._given.out is not None:
            manifests.write_inventory(
                self._given.out / "inventory",
                [pod for pod in self.mesh.placed_pods() if pod.spec.listed],
                self.mesh.controller_address,
            )
            manifests.write_policies(self._given.out / "networkpolicies", policies)
        tallies = [self._tally(self._shopper), self._tally(self._report)]
        return Result(
            confinement=str(self._given.confinement),
            services=len(self.mesh.services),
            instances=sum(pod.spec.listed for pod in self.mesh.placed_pods()),
            edges_expected=EXPECTED,
            edges_observed=observed,
            mtls_ratio=sum(edge["verified"] for edge in between) / connections if connections else 0.0,
            mtls_connections=connections,
            false_denies=refused,
            attacks=outcome,
            override=trial,
            network_policies=len(policies),
            requests=sum(tally.requests for tally in tallies),
            failed_requests=sum(tally.failed for tally in tallies),
            errors=tuple(error for tally in tallies for error in tally.errors),
            seconds=time.monotonic() - self._started,
            cannot_show=self._cannot_show(),
        )

    async def _would_be_refused(self) -> int:
        """Connections on expected edges that audit let pass and enforcement would not have."""
        flows = (await self.mesh.api.get("/flows", {"since": self._audited_at, "limit": 1000}))["flows"]
        return sum(
            flow["connections"] for flow in flows if flow["reason"] == "audit" and _key(_as_edge(flow)) in EXPECTED
        )

    def _cannot_show(self) -> tuple[str, ...]:
        return _LIMITS.get(self._given.confinement, ())


def _key(edge: dict[str, Any]) -> EdgeKey:
    return EdgeKey.parse(f"{edge['from']}->{edge['to']}:{edge['port']}/{edge['protocol']}")


def _as_edge(flow: dict[str, Any]) -> dict[str, Any]:
    return {**flow, "from": flow["source"], "to": flow["destination"]}
