"""``POST /tap``: requests of one workload, live, as server-sent events (``docs/api.md``).

It changes nothing and still is an operator's: what is shown may be somebody's secret. Who watched whom, since when and
why, is in the audit log before the first event.

Events: ``started`` once, ``request`` for each one, ``shed`` with how many were left out so far, ``problem`` when a
sidecar refuses, ``ended`` at the end. It ends, too, when its token opens nothing any more: what comes after is not
shown.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiohttp import web

from controller.errors import InvalidRequest
from controller.rpc.tap import Left, TapDesk, Viewing
from controller.view import View
from controller.web import inputs
from controller.web.answers import PERMITTED
from controller.web.changing import OWNER, REASON
from controller.web.live import KEEP_ALIVE, WRITE_SECONDS, event
from graph.errors import InvalidValue
from graph.fields import Unfit, integer, items, optional, seconds, text
from graph.tap import (
    MAX_BODY,
    MAX_COUNT,
    MAX_EVENTS,
    MAX_PORTS,
    MAX_SECONDS,
    Fields,
    Message,
    Shown,
    TapSpec,
    read_status,
)

#: Seconds without an event before a comment keeps the connection open.
_COMMENT: Final = 15.0
_LASTING: Final = 300.0


class Audited(Protocol):
    """What is asked of the engine."""

    @property
    def view(self) -> View: ...

    async def note(self, owner: str, action: str, subject: str, reason: str, detail: dict[str, object]) -> None: ...


@dataclass(frozen=True)
class Tapping:
    """The handler."""

    engine: Audited
    desk: TapDesk

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/tap", self.tap)]

    async def tap(self, request: web.Request) -> web.StreamResponse:
        fields = await inputs.body(request)
        workload = fields.take("workload", inputs.workload)
        source = fields.take("from", optional(inputs.workload), None)
        ports = fields.take("ports", items(integer(1, 65535), at_most=MAX_PORTS), ())
        operation = fields.take("operation", optional(text(512)), None)
        status = fields.take("status", optional(_status), None)
        bodies = fields.take("bodies", _yes_or_no, False)
        body_bytes = fields.take("body_bytes", integer(1, MAX_BODY), 8192)
        rate = fields.take("rate", integer(1, MAX_EVENTS), 100)
        count = fields.take("count", integer(0, MAX_COUNT), 0)
        lasting = fields.take("for", seconds(0.1, MAX_SECONDS), _LASTING)
        owner, reason = fields.take("owner", OWNER), fields.take("reason", REASON)
        fields.finish()
        if workload not in self.engine.view.inventory.workloads:
            near = self.engine.view.inventory.closest(workload)
            remedy = f"did you mean {' or '.join(near)}?" if near else "see `hedgerow status` for the names"
            raise InvalidRequest(f"there is no workload {workload}", field="workload", remedy=remedy)
        try:
            spec = TapSpec(
                "new", lasting, source, tuple(ports), operation or "", status, bodies, body_bytes, rate, count
            )
        except InvalidValue as error:
            raise InvalidRequest(error.problem, field=error.field.removeprefix("tap."), remedy=error.remedy) from None
        with self.desk.watching(workload, spec) as viewing:
            await self.engine.note(owner, "tap.start", str(workload), reason, _audited(spec))
            return await self._stream(request, viewing)

    async def _stream(self, request: web.Request, viewing: Viewing) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        )
        try:
            await response.prepare(request)
            async for data in _events(viewing, PERMITTED.get()):
                async with asyncio.timeout(WRITE_SECONDS):
                    await response.write(data)
        except (ConnectionError, TimeoutError):
            pass  # the person is gone, or takes nothing
        return response


async def _events(viewing: Viewing, permitted: Callable[[], bool]) -> Any:
    started = {
        "workload": str(viewing.workload),
        "sidecars": sorted(viewing.sidecars),
        "seconds": viewing.spec.seconds,
        "ends_at": time.time() + viewing.spec.seconds,
    }
    yield event("started", started)
    ends = time.monotonic() + viewing.spec.seconds
    told = shown = 0
    running = set(viewing.sidecars)
    while not viewing.closed and (left := ends - time.monotonic()) > 0:
        found = await viewing.next(min(left, _COMMENT))
        if not permitted():
            error = "the token was replaced; begin again with the new one"
            yield event("problem", {"instance": "the controller", "error": error})
            break
        if found is None:
            yield KEEP_ALIVE
        elif isinstance(found, Left):
            running.discard(found.instance)
            if found.error:
                yield event("problem", {"instance": found.instance, "error": found.error})
            if not running and not viewing.sidecars - {found.instance}:
                break
        else:
            yield event("request", exchange_document(*found))
            shown += 1
            if viewing.spec.count and shown >= viewing.spec.count:
                break
        if viewing.shed != told:
            told = viewing.shed
            yield event("shed", {"total": told})
    yield event("ended", {"shown": shown, "shed": viewing.shed})


def exchange_document(instance: str, shown: Shown) -> dict[str, Any]:
    """A request as JSON; bodies in base 64, as they may be anything."""
    return {
        "at": shown.at,
        "instance": instance,
        "from": shown.source,
        "from_address": shown.source_address,
        "to": shown.destination,
        "port": shown.port,
        "operation": shown.operation,
        "protocol": shown.protocol,
        "method": shown.method,
        "path": shown.path,
        "host": shown.host,
        "status": shown.status,
        "grpc_status": shown.grpc_status if shown.grpc_status >= 0 else None,
        "verdict": str(shown.verdict),
        "pending": str(shown.pending),
        "reason": shown.reason,
        "rule": shown.rule_id or None,
        "seconds": shown.seconds,
        "request": _message(shown.request),
        "response": _message(shown.response) if shown.response is not None else None,
    }


def _message(message: Message) -> dict[str, Any]:
    return {
        "headers": _fields(message.fields),
        "trailers": _fields(message.trailers),
        "bytes": message.size,
        "body": base64.b64encode(message.body).decode("ascii"),
        "withheld": message.withheld or None,
    }


def _fields(fields: Fields) -> list[list[str]]:
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in fields]


def _audited(spec: TapSpec) -> dict[str, object]:
    return {
        "from": str(spec.source) if spec.source is not None else "",
        "ports": list(spec.ports),
        "operation": spec.operation,
        "status": "-".join(map(str, spec.status)) if spec.status is not None else "",
        "bodies": spec.bodies,
        "seconds": spec.seconds,
    }


def _status(value: object) -> tuple[int, int]:
    try:
        return read_status(str(value))
    except InvalidValue as error:
        raise Unfit(error.problem, error.remedy) from None


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise Unfit("neither true nor false", "write true or false")
    return value
