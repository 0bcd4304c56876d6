"""What every answer of the API has in common: how errors look, which headers it carries, who gets one at all."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final

from aiohttp import hdrs, web

from controller.errors import Conflict, ControllerError, InvalidRequest, NotFound, NotReady, StoreError
from controller.web.access import Hosts, Role, Tokens
from graph.errors import InvalidValue

log = logging.getLogger("hedgerow.web")

API = "/api/v1"

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Nothing inline, nothing from elsewhere, in nobody's frame. The page is built so that it needs no exception.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "hedgerow",
}

#: Paths that probes ask for, by address and without a token. They say nothing but whether we are there.
PROBES = frozenset({"/healthz", "/readyz"})


def answer(body: Any, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(text=json.dumps(body, ensure_ascii=False), status=status, content_type="application/json")


def refusal(status: int, code: str, message: str, *, field: str = "", remedy: str = "") -> web.Response:
    """An error answer (``docs/api.md``)."""
    return answer({"error": {"code": code, "field": field, "message": message, "remedy": remedy}}, status)


def refusal_of(error: ControllerError | InvalidValue) -> web.Response:
    """The answer that a refusal of the engine becomes."""
    if isinstance(error, InvalidValue):
        return refusal(400, "invalid", error.problem, field=error.field, remedy=error.remedy)
    response = refusal(_status(error), error.code, error.problem, field=error.field, remedy=error.remedy)
    if response.status == 503:
        response.headers[hdrs.RETRY_AFTER] = "1"
    return response


def _status(error: ControllerError) -> int:
    match error:
        case InvalidRequest():
            return 400
        case NotFound():
            return 404
        case Conflict():
            return 409
        case NotReady() | StoreError():
            return 503
        case _:
            return 500


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever is raised into an error answer. What nobody expected is a bug: logged here, and not told."""
    try:
        return await handler(request)
    except (ControllerError, InvalidValue) as error:
        return refusal_of(error)
    except web.HTTPNotFound:
        return refusal(404, "not-found", f"there is no {request.path}", remedy="docs/api.md lists what there is")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        response = refusal(405, "method-not-allowed", f"{request.method} is not for this path", remedy=f"use {allowed}")
        response.headers[hdrs.ALLOW] = allowed
        return response
    except web.HTTPRequestEntityTooLarge:
        return refusal(413, "too-large", "the body is too large", remedy="send less in one request")
    except web.HTTPException as error:
        return refusal(error.status, "invalid", error.reason)
    except Exception:
        log.exception("a request to %s %s failed", request.method, request.rel_url.path)
        return refusal(500, "internal", "the controller failed", remedy="its log says why; please report it")


#: Of the request that is served: says whether it would still be let through. What lasts asks before it says more.
PERMITTED: Final[ContextVar[Callable[[], bool]]] = ContextVar("permitted")


def guard(tokens: Callable[[], Tokens], hosts: Hosts) -> Any:
    """The middleware that lets nobody through who is not meant: host, origin, then token and role.

    :param tokens: gives those in force now; they can be replaced while the controller runs
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in PROBES:
            return await handler(request)
        named = request.headers.getall(hdrs.HOST, [])
        if len(named) != 1 or not hosts.serves(named[0]):
            return refusal(
                403, "foreign-host", "this name is not served here", field="Host", remedy="add it to web_hosts"
            )
        origins = request.headers.getall(hdrs.ORIGIN, [])
        site = request.headers.get("Sec-Fetch-Site", "none")
        if any(not hosts.same_origin(origin, named[0]) for origin in origins) or (
            site not in ("none", "same-origin") and request.path.startswith("/api/")
        ):
            return refusal(
                403,
                "foreign-origin",
                "a page of another origin asks",
                field="Origin",
                remedy="use the page served here",
            )
        if not request.path.startswith("/api/"):
            return await handler(request)
        role = tokens().role(request.headers.get(hdrs.AUTHORIZATION))
        if role is None:
            response = refusal(
                401,
                "unauthorised",
                "no token, or one that opens nothing",
                field="Authorization",
                remedy="send `Authorization: Bearer TOKEN` with the token in STATE_DIR/operator.token",
            )
            response.headers[hdrs.WWW_AUTHENTICATE] = 'Bearer realm="hedgerow"'
            return response
        if role is not Role.OPERATOR and request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            return refusal(
                403,
                "forbidden",
                f"the role {role} may look and change nothing",
                field="Authorization",
                remedy="use the token in STATE_DIR/operator.token",
            )
        authorization = request.headers.get(hdrs.AUTHORIZATION)
        PERMITTED.set(lambda: tokens().role(authorization) is role)
        return await handler(request)

    return check


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Called before any response starts, streams included."""
    response.headers.update(SECURITY_HEADERS)
    if request.path.startswith("/api/") or request.path in PROBES or response.status >= 400:
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
