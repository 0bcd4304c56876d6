"""The API's calls that change something. Each answers when the change is on disk, and with whether it has arrived.

Everything here wants the role ``operator`` (:mod:`controller.web.answers`), names a person and goes into the audit log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from aiohttp import web

from controller.authoring import Author, ModeRequest
from controller.declarations import NetworkPolicyMode
from controller.engine import Engine
from controller.errors import InvalidRequest
from controller.overrides import MAX_OPERATIONS, OverrideRequest, note_beside, note_of
from controller.view import Override
from controller.web import inputs
from controller.web.answers import answer
from controller.web.documents import override_document
from graph.fields import Unfit, choice, integer, items, namespace_name, optional, seconds, text
from graph.flow import EdgeKey
from graph.model import Direction, InboundTls, Mode, Protocol, Verdict, WorkloadRef

#: Seconds that a change waits for the sidecars' acknowledgement where the caller does not say.
WAIT = 5.0
MAX_WAIT = 60.0

OWNER = text(200)
REASON = text(1000)


class Both(StrEnum):
    """The third value of ``direction``."""

    BOTH = "both"


@dataclass(frozen=True)
class Changing:
    """The handlers of everything that changes something.

    :param author: writes overrides and modes down
    :param clock: seconds since the epoch
    """

    engine: Engine
    author: Author
    clock: Callable[[], float]

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/policy/approve", self.approve),
            web.post("/overrides", self.create_override),
            web.delete("/overrides/{id:.+}", self.revoke_override),
            web.post("/modes", self.set_mode),
            web.post("/join-tokens", self.create_join_token),
        ]

    async def approve(self, request: web.Request) -> web.Response:
        fields = await inputs.body(request)
        edges = fields.take("edges", _edges)
        owner, reason = fields.take("owner", OWNER), fields.take("reason", REASON)
        fields.finish()
        approved = await self.engine.approve(edges, owner, reason)
        return answer({"approved": [str(key) for key in approved]})

    async def create_override(self, request: web.Request) -> web.Response:
        fields = await inputs.body(request)
        effect = fields.take("effect", choice(*Verdict))
        source, destination = fields.take("from", inputs.end), fields.take("to", inputs.end)
        port = fields.take("port", optional(integer(1, 65535)))
        protocol = fields.take("protocol", choice(*Protocol), Protocol.TCP)
        owner, reason = fields.take("owner", OWNER), fields.take("reason", REASON)
        expires_in = fields.take("expires_in", optional(seconds(0.001, 1e10)))
        operations = fields.take("operations", items(inputs.operation, at_most=MAX_OPERATIONS), ())
        wait = fields.take("wait", seconds(0, MAX_WAIT), WAIT)
        fields.finish()
        made = await self.author.create_override(
            OverrideRequest(effect, source, destination, port, protocol, owner, reason, expires_in, operations)
        )
        pushed = await self._arrived((source, destination), wait)
        notes = note_of(made, self.engine.view.inventory), note_beside(made, self.engine.view.rules)
        note = "; ".join(filter(None, notes))
        said = {"generation": self.engine.view.generation, "pushed": pushed, "note": note}
        return answer(self._override(made) | said, 201)

    async def revoke_override(self, request: web.Request) -> web.Response:
        fields = inputs.query(request)
        owner, reason = fields.take("owner", OWNER), fields.take("reason", REASON)
        wait = fields.take("wait", _wait_text, WAIT)
        fields.finish()
        revoked = await self.author.revoke_override(request.match_info["id"], owner, reason)
        ended = revoked.override
        pushed = await self._arrived((ended.source, ended.destination), wait)
        said = {"generation": self.engine.view.generation, "pushed": pushed, "note": revoked.note}
        return answer(self._override(ended) | said)

    async def set_mode(self, request: web.Request) -> web.Response:
        fields = await inputs.body(request)
        workload = fields.take("workload", optional(inputs.workload), None)
        namespace = fields.take("namespace", optional(namespace_name), None)
        given = fields.take("direction", choice(*Direction, Both.BOTH), Both.BOTH)
        mode = fields.take("mode", optional(choice(*Mode)), None)
        inbound_tls = fields.take("inbound_tls", optional(choice(*InboundTls)), None)
        network_policy = fields.take("network_policy", optional(choice(*NetworkPolicyMode)), None)
        owner, reason = fields.take("owner", OWNER), fields.take("reason", REASON)
        wait = fields.take("wait", seconds(0, MAX_WAIT), WAIT)
        fields.finish()
        target = workload if workload is not None else namespace
        if target is None or (workload is not None and namespace is not None):
            fields.fail("workload", "give workload or namespace, and not both", "name one workload, or one namespace")
        if mode is None and inbound_tls is None and network_policy is None:
            fields.fail("mode", "neither mode nor inbound_tls nor network_policy is given", "give one of them")
        if workload is not None and network_policy is not None:
            fields.fail("network_policy", "set for one workload", "it is for a whole namespace: give namespace instead")
        direction = given if isinstance(given, Direction) else None
        done = await self.author.set_mode(
            ModeRequest(target, direction, mode, inbound_tls, network_policy, owner, reason)
        )
        return answer(
            {
                "workloads": [str(ref) for ref in done.workloads],
                "kept": [str(ref) for ref in done.kept],
                "generation": self.engine.view.generation,
                "pushed": await self._arrived(done.workloads, wait),
            }
        )

    async def create_join_token(self, request: web.Request) -> web.Response:
        fields = await inputs.body(request)
        workload = fields.take("workload", inputs.workload)
        instance = fields.take("instance", text(253))
        expires_in = fields.take("expires_in", seconds(1, 30 * 86400))
        owner = fields.take("owner", OWNER, "operator")
        fields.finish()
        if workload.is_external:
            raise InvalidRequest(
                f"{workload} is outside the mesh", field="workload", remedy="name a workload of the inventory"
            )
        now = self.clock()
        token = await self.engine.create_join_token(workload, instance, expires_in, owner)
        return answer(
            {
                "token": token,
                "workload": str(workload),
                "instance": instance,
                "expires_at": now + expires_in,
            },
            201,
        )

    def _override(self, override: Override) -> dict[str, object]:
        return {"override": override_document(override, self.clock())}

    async def _arrived(self, ends: Iterable[WorkloadRef], wait: float) -> bool:
        """Whether every connected sidecar of ``ends`` has taken the policy that is in force now."""
        return await self.engine.wait_pushed([ref for ref in ends if not ref.is_external], wait)


def _edges(value: object) -> tuple[EdgeKey, ...] | None:
    """``"all"``, which is None to the engine, or a list of edges."""
    if value == "all":
        return None
    if not isinstance(value, list):
        raise Unfit('neither a list of edges nor "all"', "write edges as `GET /policy/diff` names them")
    return items(inputs.edge, at_least=1, at_most=10_000)(value)


def _wait_text(value: object) -> float:
    try:
        return seconds(0, MAX_WAIT)(float(str(value)))
    except ValueError:
        raise Unfit(f"{str(value)[:40]!r} is not a duration", f"write seconds from 0 to {MAX_WAIT:g}") from None
