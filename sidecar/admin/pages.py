"""The administration pages, on a loopback port of this pod: look inside, log more, find what is slow, drain.

Rules:

1. Only a program of this pod that means it: loopback address, loopback ``Host``, no trace of a web page
   (:func:`sidecar.admin.server.from_this_pod`). Everybody in the pod shares its network, so a page shows nothing that
   the application must not know, and changes nothing of identity or policy.
2. What changes something takes POST.
3. A page that needs a certificate says 503 until there is one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

from sidecar import logs
from sidecar.access_log import AccessLog, Mode
from sidecar.admin.profile import MAX_SECONDS, Sampler
from sidecar.admin.server import TEXT, Answer, Refused, Request, document, from_this_pod, text
from sidecar.readiness import readiness

log = logging.getLogger(__name__)

type View = Callable[[], object]

_USE: Final = """\
GET  /config                          the settings in force
GET  /certs                           our certificate chain and the roots that we trust
GET  /tunnels                         tunnels, by direction
GET  /snapshot                        the policy in force
GET  /connections                     open connections
GET  /stats                           counters
GET  /memory                          what our process takes
GET  /logging                         levels of loggers
POST /logging?level=debug&logger=NAME log more or less; without a logger: all of them
GET  /access-log                      what is logged of connections and requests
POST /access-log?mode=off|errors|all
GET  /profile?seconds=N               where our time goes, as folded stacks; at most 60 seconds
GET  /healthz/ready                   whether a workload behind us would be served
POST /quitquitquit                    drain and end, for Jobs whose work is done"""


class NotYet(Exception):
    """There is no certificate yet, so there is nothing to show."""


class AdminPages:
    """Answers every request to the administration port.

    :param views: what the pages show that only show something, by path; may raise :class:`NotYet`, and may have to be
        awaited
    :param missing: as for :func:`sidecar.readiness.readiness`
    :param quit: begins the orderly end
    :param relogged: is told the level and the name of a logger that was changed; ``access_logged`` the mode of the
        access log: other processes of this sidecar log too
    """

    def __init__(
        self,
        views: Mapping[str, View],
        missing: Callable[[], list[str]],
        access_log: AccessLog,
        quit: Callable[[], None],
        relogged: Callable[[str, str], None] = lambda level, logger: None,
        access_logged: Callable[[str], None] = lambda mode: None,
    ) -> None:
        self._views = views
        self._missing = missing
        self._access_log = access_log
        self._quit = quit
        self._relogged = relogged
        self._access_logged = access_logged
        self._sampler = Sampler()

    async def answer(self, request: Request) -> Answer:
        """:raises Refused: for whom, what or how it does not answer"""
        if not from_this_pod(request):
            raise Refused(HTTPStatus.FORBIDDEN, "only for programs of this pod, at http://localhost")
        view = self._views.get(request.path)
        if view is not None:
            self._reading(request)
            request.parameters()
            try:
                shown = view()
                return document(await shown if isinstance(shown, Awaitable) else shown)
            except NotYet:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "\n".join(self._missing()) or "not yet") from None
        match request.path:
            case "/":
                self._reading(request)
                return text(HTTPStatus.OK, _USE)
            case "/healthz/ready":
                self._reading(request)
                return readiness(self._missing)
            case "/logging":
                return self._logging(request)
            case "/access-log":
                return self._access(request)
            case "/profile":
                return await self._profile(request)
            case "/quitquitquit":
                self._changing(request)
                request.parameters()
                log.info("told to end at the administration port")
                self._quit()
                return text(HTTPStatus.OK, "draining")
        raise Refused(HTTPStatus.NOT_FOUND, f"no such page; there are:\n{_USE}")

    def _reading(self, request: Request) -> None:
        if request.method == "POST":
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"GET shows {request.path}; there is nothing to change")

    def _changing(self, request: Request) -> None:
        if request.method != "POST":
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.path} changes something, so it takes POST")

    def _logging(self, request: Request) -> Answer:
        given = request.parameters("level", "logger")
        if request.method == "POST":
            if given.get("level") not in logs.LEVELS:
                raise Refused(HTTPStatus.BAD_REQUEST, f"level: write one of {', '.join(logs.LEVELS)}")
            try:
                logs.set_level(given["level"], given.get("logger", ""))
            except KeyError:
                raise Refused(HTTPStatus.NOT_FOUND, "logger: none of that name; sidecar is the one of all") from None
            self._relogged(given["level"], given.get("logger", ""))
            log.info("log level of %s is %s now", given.get("logger") or "all", given["level"])
        elif given:
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "a change takes POST")
        return document(logs.levels())

    def _access(self, request: Request) -> Answer:
        given = request.parameters("mode")
        if request.method == "POST":
            try:
                self._access_log.mode = Mode(given.get("mode", ""))
            except ValueError:
                raise Refused(HTTPStatus.BAD_REQUEST, f"mode: write one of {', '.join(Mode)}") from None
            self._access_logged(self._access_log.mode.value)
            log.info("access log: %s", self._access_log.mode)
        elif given:
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "a change takes POST")
        log_ = self._access_log
        return document({"mode": log_.mode.value, "lines": log_.lines, "shed": log_.shed})

    async def _profile(self, request: Request) -> Answer:
        written = request.parameters("seconds").get("seconds", "5")
        seconds = float(written) if written.replace(".", "", 1).isdecimal() else 0.0
        if not 0 < seconds <= MAX_SECONDS:
            raise Refused(HTTPStatus.BAD_REQUEST, f"seconds: write a number up to {MAX_SECONDS:g}")
        if request.method == "HEAD":
            return Answer(HTTPStatus.OK, TEXT, ())
        if self._sampler.running:
            raise Refused(HTTPStatus.CONFLICT, "a profile is being taken already; wait for its end")
        stacks = await self._sampler.run(seconds)
        return Answer(HTTPStatus.OK, TEXT, (stacks.encode("utf-8", "replace"),))
