"""The readiness port: ``GET /healthz/ready`` for kubelets and people, ``GET /stats`` for people on this pod.

Ready means that a workload behind this sidecar would be served: a certificate, a policy, listeners. What is missing is
said as text. The server itself is :mod:`sidecar.admin.server`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus

from sidecar.admin.server import Answer, HttpServer, Refused, Request, document, is_loopback, text
from sidecar.settings import Address


def readiness(missing: Callable[[], list[str]]) -> Answer:
    """The page ``/healthz/ready``.

    :param missing: what is not there yet, one short sentence each; empty when ready
    """
    problems = missing()
    return text(HTTPStatus.SERVICE_UNAVAILABLE, "\n".join(problems)) if problems else text(HTTPStatus.OK, "ready")


class ReadinessServer(HttpServer):
    """Serves the readiness port.

    :param missing: as for :func:`readiness`
    :param stats: what ``/stats`` shows; only numbers, texts, and mappings and lists of them
    """

    def __init__(
        self, listen: Address, missing: Callable[[], list[str]], stats: Callable[[], Mapping[str, object]]
    ) -> None:
        super().__init__(listen, "ready_listen", self._page)
        self._missing = missing
        self._stats = stats

    def _page(self, request: Request) -> Answer:
        match request.target:
            case "/healthz/ready":
                return readiness(self._missing)
            case "/stats" if not is_loopback(request.peer):
                raise Refused(HTTPStatus.FORBIDDEN, "only from this pod's loopback")
            case "/stats":
                return document(self._stats())
        raise Refused(HTTPStatus.NOT_FOUND, "try /healthz/ready or /stats")
