"""The API's calls about the NetworkPolicies of a cluster: what is applied and what would change, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from controller.authoring import NetworkPolicies, no_cluster
from controller.engine import Engine
from controller.engine.fencing import NEWEST, PREVIOUS
from controller.fences import Fence
from controller.web import inputs
from controller.web.answers import answer
from controller.web.changing import OWNER, REASON
from graph.fields import Unfit, namespace_name


@dataclass(frozen=True)
class Fencing:
    """:param cluster: None where there is none"""

    engine: Engine
    cluster: NetworkPolicies | None

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/network-policies", self.report, allow_head=False),
            web.post("/network-policies/{namespace}/rollback", self.roll_back),
        ]

    async def report(self, request: web.Request) -> web.Response:
        fields = inputs.query(request)
        namespace = fields.take("namespace", inputs.blank_is_absent(namespace_name), None)
        fields.finish()
        if self.cluster is None:
            raise no_cluster()
        return answer({"namespaces": await self.cluster.report(namespace)})

    async def roll_back(self, request: web.Request) -> web.Response:
        namespace = namespace_name(request.match_info["namespace"])
        fields = await inputs.body(request)
        to = fields.take("to", _where_to, PREVIOUS)
        owner, reason = fields.take("owner", OWNER), fields.take("reason", REASON)
        fields.finish()
        if self.cluster is None:
            raise no_cluster()
        fence = await self.engine.pin_network_policies(namespace, to, owner, reason)
        return answer({"namespace": namespace} | fence_document(fence))


def fence_document(fence: Fence) -> dict[str, object]:
    """What is kept about a namespace, as JSON."""
    return {
        "pinned": fence.pinned,
        "pinned_by": fence.pinned_by,
        "reason": fence.reason,
        "revisions": [
            {"revision": each.revision, "at": each.at, "digest": each.digest, "policies": list(each.policies)}
            for each in fence.sets
        ],
    }


def _where_to(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**53:
        return value
    if value in (PREVIOUS, NEWEST):
        return str(value)
    raise Unfit(f"{str(value)[:40]!r} is no revision", f"write its number, {PREVIOUS!r} or {NEWEST!r}")
