"""The API's GET calls: they read one immutable view each and change nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from aiohttp import web

from controller.cluster_state import ClusterState
from controller.compiler import Proof, compile_policy, rule_id
from controller.engine import Engine
from controller.errors import NotFound, UnknownWorkload
from controller.learner import EdgeState, Gate, readiness, rule_of, waiting_for
from controller.mesh_policy import policy_input
from controller.view import OverrideState, View
from controller.web import inputs
from controller.web.answers import answer
from controller.web.documents import (
    audit_document,
    cluster_document,
    decision_document,
    flow_document,
    override_document,
    sidecar_document,
    snapshot_document,
)
from controller.web.explain import explain
from controller.web.live import Live
from controller.web.picture import graph_of, peer
from graph.drift import Drift, Observation, asked_of, find_drift
from graph.export import CONTENT_TYPES, FORMATS, edge_document, graph_document, rule_document
from graph.fields import choice, namespace_name, word
from graph.flow import EdgeKey
from graph.model import Protocol, Rule, Verdict, WorkloadRef

#: Seconds over which the status says how much was refused.
_LATELY = 3600


@dataclass(frozen=True)
class Looking:
    """The handlers of everything that only looks.

    :param gate: what learning waits for, to say it
    :param version: of this program
    :param clock: seconds since the epoch
    :param cluster: how the controller fares on its cluster; None without one
    """

    engine: Engine
    gate: Gate
    live: Live
    version: str
    clock: Callable[[], float]
    cluster: Callable[[], ClusterState | None] = lambda: None

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/status", self.status, allow_head=False),
            web.get("/graph", self.graph, allow_head=False),
            web.get("/graph/live", self.graph_live, allow_head=False),
            web.get("/flows", self.flows, allow_head=False),
            web.get("/flows/live", self.flows_live, allow_head=False),
            web.get("/policy", self.policy, allow_head=False),
            web.get("/policy/diff", self.policy_diff, allow_head=False),
            web.get("/policy/export", self.policy_export, allow_head=False),
            web.get("/policy/{namespace}/{name}", self.policy_of, allow_head=False),
            web.get("/overrides", self.overrides, allow_head=False),
            web.get("/why", self.why, allow_head=False),
            web.get("/drift", self.drift, allow_head=False),
            web.get("/audit", self.audit, allow_head=False),
            web.get("/inventory", self.inventory, allow_head=False),
        ]

    # --- state

    async def status(self, request: web.Request) -> web.Response:
        inputs.query(request).finish()
        view, now = self.engine.view, self.clock()
        states = Counter(str(edge.state) for edge in view.edges.values())
        active = sum(1 for override in view.overrides.values() if override.state(now) is OverrideState.ACTIVE)
        return answer(
            {
                "version": self.version,
                "trust_domain": view.trust_domain,
                "started_at": view.started_at,
                "generation": view.generation,
                "inventory": {
                    "workloads": len(view.inventory.workloads),
                    "instances": len(view.inventory.instances),
                    "services": len(view.inventory.services),
                },
                "sidecars": [sidecar_document(sidecar) for _, sidecar in sorted(view.sidecars.items())],
                "workloads": [self._workload(view, ref, now) for ref in sorted(view.inventory.workloads)],
                "edges": {str(state): states[str(state)] for state in EdgeState},
                "overrides": active,
                "refused": self._refused(now, view.started_at),
                "audit_head": view.audit_head.hash if view.audit_head is not None else "",
                "cluster": cluster_document(self.cluster()),
            }
        )

    def _refused(self, now: float, began: float) -> Any:
        """Connections of before this process began are in the store, requests are not: theirs has a time of its own."""
        since = now - _LATELY
        connections, requests = self.engine.refused(since), self.engine.refused_requests(since)
        return {
            "seconds": _LATELY,
            "since": since,
            "connections": sum(connections.values()),
            "pairs": _pairs(connections),
            "requests": sum(requests.values()),
            "request_pairs": _pairs(requests),
            "requests_since": max(since, began),
        }

    def _workload(self, view: View, ref: WorkloadRef, now: float) -> Any:
        workload, mode = view.inventory.workloads[ref], view.modes.get(ref)
        ready = readiness((view.edges[key] for key in view.edges_of.get(ref, ())), view.gates.get(ref, self.gate), now)
        return {
            "workload": str(ref),
            "kind": workload.kind,
            "meshed": workload.meshed,
            "transport": str(workload.transport),
            "instances": len(view.inventory.instances_of(ref)),
            "inbound_mode": str(mode.inbound) if mode else "",
            "outbound_mode": str(mode.outbound) if mode else "",
            "inbound_tls": str(mode.inbound_tls) if mode else "",
            "ready_to_enforce": workload.has_sidecar and ready.ready,
            "waiting_for": list(ready.waiting_for) if workload.has_sidecar else [],
        }

    async def inventory(self, request: web.Request) -> web.Response:
        inputs.query(request).finish()
        document = self.engine.view.inventory.to_dict()
        return answer(
            {name: document[name] for name in ("clusterNetworks", "namespaces", "workloads", "instances", "services")}
        )

    # --- graph and flows

    async def graph(self, request: web.Request) -> web.Response:
        fields = inputs.query(request)
        form = fields.take("format", word(*FORMATS), "json")
        namespace = fields.take("namespace", inputs.blank_is_absent(namespace_name), None)
        fields.finish()
        whole = graph_of(self.engine.view, self.clock(), namespace or "")
        if form == "json":
            return answer(graph_document(whole))
        return web.Response(body=FORMATS[form](whole).encode("utf-8"), headers={"Content-Type": CONTENT_TYPES[form]})

    async def graph_live(self, request: web.Request) -> web.StreamResponse:
        inputs.query(request).finish()
        return await self.live.graph(request)

    async def flows(self, request: web.Request) -> web.Response:
        fields = inputs.query(request)
        limit = fields.take("limit", inputs.number(1, 10_000), 100)
        workload = fields.take("workload", inputs.blank_is_absent(inputs.workload), None)
        verdict = fields.take("verdict", inputs.blank_is_absent(choice(*Verdict)), None)
        namespace = fields.take("namespace", inputs.blank_is_absent(namespace_name), None) or ""
        since = fields.take("since", inputs.blank_is_absent(inputs.moment), None)
        fields.finish()
        found = self.engine.flows(limit, workload, verdict, since or 0.0, namespace)
        return answer({"flows": [flow_document(flow) for flow in found]})

    async def flows_live(self, request: web.Request) -> web.StreamResponse:
        fields = inputs.query(request)
        workload = fields.take("workload", inputs.blank_is_absent(inputs.workload), None)
        verdict = fields.take("verdict", inputs.blank_is_absent(choice(*Verdict)), None)
        namespace = fields.take("namespace", inputs.blank_is_absent(namespace_name), None) or ""
        fields.finish()
        return await self.live.flows(request, workload, verdict, namespace)

    # --- policy

    async def policy(self, request: web.Request) -> web.Response:
        inputs.query(request).finish()
        view = self.engine.view
        workloads = {}
        for ref, mode in sorted(view.modes.items()):
            snapshot = view.snapshots.get(ref)
            if snapshot is not None:
                workloads[str(ref)] = {
                    "inbound_mode": str(mode.inbound),
                    "outbound_mode": str(mode.outbound),
                    "inbound_tls": str(mode.inbound_tls),
                    "version": snapshot.version,
                }
        rules = [rule_document(rule) for _, rule in sorted(view.rules.items())]
        return answer({"generation": view.generation, "rules": rules, "workloads": workloads})

    async def policy_of(self, request: web.Request) -> web.Response:
        inputs.query(request).finish()
        ref = WorkloadRef.parse(f"{request.match_info['namespace']}/{request.match_info['name']}")
        view = self.engine.view
        snapshot = view.snapshots.get(ref)
        if snapshot is not None:
            return answer({"snapshot": snapshot_document(snapshot)})
        if ref in view.inventory.workloads:
            raise NotFound(f"{ref} has no sidecar, so it has no policy", field="workload", remedy="see GET /policy")
        near = ", ".join(view.inventory.closest(ref))
        raise NotFound(
            f"{ref} is not in the inventory",
            field="workload",
            remedy=f"did you mean {near}?" if near else "see GET /inventory",
            code="unknown-workload",
        )

    async def policy_diff(self, request: web.Request) -> web.Response:
        inputs.query(request).finish()
        view, now = self.engine.view, self.clock()
        waiting = [edge for _, edge in sorted(view.edges.items()) if not edge.allows]
        open_edges = [edge for edge in waiting if edge.state is not EdgeState.RETIRED]
        return answer(
            {
                "added": [rule_document(rule_of(edge)) for edge in open_edges],
                "removed": [],
                "edges": [
                    {
                        "edge": str(edge.key),
                        "state": str(edge.state),
                        "evidence": list(edge.evidence()),
                        "waiting_for": waiting_for(edge, gate_of(view, edge.key, self.gate), now),
                    }
                    for edge in open_edges
                ],
            }
        )

    async def policy_export(self, request: web.Request) -> web.Response:
        fields = inputs.query(request)
        form = fields.take("format", word("networkpolicy", "json"), "networkpolicy")
        fields.finish()
        view, now = self.engine.view, self.clock()
        # off the event loop: every policy of the mesh is compiled and proved
        compiled = await asyncio.to_thread(compile_policy, policy_input(view), now)
        cluster = self.cluster()
        left_alone = cluster.protected if cluster is not None else ()  # one for all may be applied as it is
        every: Sequence[Mapping[str, Any]] = compiled.network_policies
        policies = [each for each in every if each["metadata"]["namespace"] not in left_alone]
        proof = _proof(compiled.proof)
        if form == "json":
            return answer({"policies": policies, "proof": proof})
        notes = "".join(f"# {limit['workload']}: {limit['detail']}\n" for limit in proof["inexpressible"])
        text = notes + yaml.safe_dump_all(policies, sort_keys=False, explicit_start=True)
        return web.Response(text=text, content_type="application/yaml")

    async def overrides(self, request: web.Request) -> web.Response:
        inputs.query(request).finish()
        now = self.clock()
        kept = sorted(self.engine.view.overrides.values(), key=lambda each: (each.created_at, each.id))
        return answer({"overrides": [override_document(override, now) for override in kept]})

    # --- questions

    async def why(self, request: web.Request) -> web.Response:
        fields = inputs.query(request)
        key = EdgeKey(
            fields.take("from", inputs.workload),
            fields.take("to", inputs.workload),
            fields.take("port", inputs.number(1, 65535)),
            fields.take("protocol", choice(*Protocol), Protocol.TCP),
        )
        operation = fields.take("operation", inputs.blank_is_absent(inputs.operation), None)
        fields.finish()
        view = self.engine.view
        known(view, key.source, "from")
        known(view, key.destination, "to")
        said = explain(view, key, gate_of(view, key, self.gate), self.clock(), operation or "")
        return answer(
            {
                "verdict": str(said.verdict),
                "pending": str(said.pending),
                "inbound": decision_document(said.inbound, said.inbound_mode),
                "outbound": decision_document(said.outbound, said.outbound_mode),
                "edge": edge_document(said.edge) if said.edge is not None else None,
                "explanation": list(said.sentences),
            }
        )

    async def drift(self, request: web.Request) -> web.Response:
        inputs.query(request).finish()
        view, now = self.engine.view, self.clock()
        found = find_drift(view.snapshots, (_observation(view, key) for key in view.traffic), now)
        return answer(
            {
                "unexpected": [edge_document(view.traffic[each.key]) for each in found.unexpected if each.refused],
                "unexpected_operations": [
                    {"edge": str(each.key), "operation": operation}
                    for each in found.unexpected
                    for operation in each.operations
                ],
                "unused": [rule_document(rule) for rule in _unused(view, found)],
            }
        )

    async def audit(self, request: web.Request) -> web.Response:
        fields = inputs.query(request)
        limit = fields.take("limit", inputs.number(1, 10_000), 100)
        fields.finish()
        page = await self.engine.audit(limit)
        return answer(
            {
                "entries": [audit_document(entry) for entry in page.entries],
                "intact": page.intact,
                "problem": page.problem,
            }
        )


def gate_of(view: View, key: EdgeKey, standard: Gate) -> Gate:
    """What learning waits for at an edge: who is called decides; where that is outside, who calls."""
    return view.gates.get(key.source if key.destination.is_external else key.destination, standard)


def known(view: View, ref: WorkloadRef, field: str) -> None:
    """:raises UnknownWorkload: unless ``ref`` is outside the mesh or in the inventory"""
    if ref.is_external or ref in view.inventory.workloads:
        return
    near = ", ".join(view.inventory.closest(ref))
    raise UnknownWorkload(
        f"{ref} is not in the inventory",
        field=field,
        remedy=f"did you mean {near}?" if near else "see `hedgerow status` for the workloads there are",
    )


def _proof(proof: Proof) -> dict[str, Any]:
    return {
        "equal": proof.equal,
        "wider": [str(atom) for atom in proof.wider],
        "inexpressible": [
            {
                "workload": str(limit.workload),
                "limit": str(limit.limit),
                "rules": list(limit.rules),
                "detail": limit.detail,
                "widens": limit.widens,
            }
            for limit in proof.inexpressible
        ],
    }


def _unused(view: View, found: Drift) -> list[Rule]:
    """The rules as people know them: one that snapshots hold in several parts is used when one of its parts is."""
    used = {rule_id(name) for name in found.used}
    parts = {rule_id(rule.id): rule for rule in found.unused}
    return [view.rules.get(name, rule) for name, rule in sorted(parts.items()) if name not in used]


def _observation(view: View, key: EdgeKey) -> Observation:
    source, destination = peer(view, key.source), peer(view, key.destination)
    seen = view.traffic[key]
    return Observation(
        key,
        source_verified=seen.verified > 0 or (seen.denied > 0 and key.source in view.snapshots),
        source_account=source.service_account,
        destination_account=destination.service_account,
        source_address=source.address,
        destination_address=destination.address,
        operations=asked_of(seen),
    )


def _pairs(keys: Iterable[EdgeKey]) -> int:
    return len({(key.source, key.destination) for key in keys})
