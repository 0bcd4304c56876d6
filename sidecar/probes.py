"""Probes that the sidecar performs for the kubelet, which can not speak mutual TLS with the application's port.

The injector writes a pod's probes into ``probes:`` of ``sidecar.yaml`` and points the kubelet at Istio's paths,
``/app-health/<container>/{livez,readyz,startupz}`` on port 15020. Rules:

1. What the kubelet would have found is what it is told: the status of the answer, 500 when there was none. Redirects,
   body limit and TLS without verification are the kubelet's (kubernetes ``pkg/probe/http``, KEP-2727 for gRPC).
2. Nothing of the application's answer but its status is passed on: the port is open to everybody.
3. One probe of a kind at a time, whoever asks and how often: those who ask meanwhile share its result.
4. A redirect never leads to a port of the sidecar's own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from sidecar.admin.server import Answer, Refused, Request, text
from sidecar.fetch import Fetched, FetchFailed, fetch
from sidecar.observation import GrpcProbe, HttpProbe, Probe, TcpProbe

log = logging.getLogger(__name__)

#: Bytes of an answer's body that the kubelet reads.
MAX_BODY: Final = 10 << 10
MAX_REDIRECTS: Final = 10
#: ``grpc.health.v1.HealthCheckResponse.SERVING``.
_SERVING: Final = 1
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class Prober:
    """Answers ``/app-health/…``.

    :param address: where the application listens, for probes that name no address of their own
    :param closed_ports: that no redirect may lead to
    """

    def __init__(self, probes: Sequence[Probe], address: str, closed_ports: frozenset[int] = frozenset()) -> None:
        self._probes = {probe.path: probe for probe in probes}
        self._address = address
        self._closed_ports = closed_ports
        self._running: dict[str, asyncio.Task[Answer]] = {}
        #: Probes by container, kind and whether they passed.
        self.results: dict[tuple[str, ...], int] = {}

    async def answer(self, request: Request) -> Answer:
        """Perform the probe that ``request`` asks for.

        :raises Refused: when there is none of that path
        """
        probe = self._probes.get(request.target)
        if probe is None:
            raise Refused(HTTPStatus.NOT_FOUND, "no such probe; it has to be among `probes:` of the settings")
        running = self._running.get(probe.path)
        if running is None:
            agent = request.fields.get("user-agent", "")[:256]
            running = self._running[probe.path] = asyncio.create_task(self._perform(probe, agent))
            running.add_done_callback(lambda _: self._running.pop(probe.path, None))
        return await asyncio.shield(running)  # shielded: others may share it

    async def stop(self) -> None:
        """Give up what runs."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _perform(self, probe: Probe, agent: str) -> Answer:
        address = probe.address or self._address
        try:
            async with asyncio.timeout(probe.timeout):
                match probe.action:
                    case HttpProbe():
                        status = await self._http(address, probe.action, agent)
                    case TcpProbe(port):
                        status = await _tcp(address, port)
                    case GrpcProbe():
                        status = await _grpc(address, probe.action, probe.timeout, agent)
        except TimeoutError:
            answer = self._failed(probe, f"no answer within {probe.timeout:g} s")
        except FetchFailed as error:
            answer = self._failed(probe, str(error))
        else:
            answer = text(status, f"the application answered {status}")
        result = "success" if 200 <= int(answer.status) < 400 else "failure"
        key = (probe.container, probe.kind, result)
        self.results[key] = self.results.get(key, 0) + 1
        return answer

    def _failed(self, probe: Probe, why: str) -> Answer:
        log.info("probe %s of %s failed: %s", probe.kind, probe.container, why)
        return text(HTTPStatus.INTERNAL_SERVER_ERROR, why)

    async def _http(self, address: str, action: HttpProbe, agent: str) -> int:
        host = f"[{address}]" if ":" in address else address
        own = {name.lower() for name, _ in action.headers}
        named = next((value for name, value in action.headers if name.lower() == "host"), "")
        headers = [(name, value) for name, value in action.headers if name.lower() != "host"]
        if agent and "user-agent" not in own:
            headers.append(("User-Agent", agent))
        if "accept" not in own:
            headers.append(("Accept", "*/*"))
        port, target, tls = action.port, action.path, action.scheme == "https"
        for _ in range(MAX_REDIRECTS):
            fields = [("Host", named or f"{host}:{port}"), *headers]
            fetched = await fetch(address, port, target, fields, tls=tls, limit=MAX_BODY)
            if fetched.status not in _REDIRECTS:
                # a status that is no status of HTTP can not be written; the kubelet would fail on it too
                return fetched.status if fetched.status in _KNOWN else 200 if fetched.status < 400 else 500
            onward = self._onward(fetched, f"{'https' if tls else 'http'}://{host}:{port}{target}")
            if onward is None:
                return 200  # to another host: the kubelet does not follow, and calls it healthy
            port, target, tls = onward
        raise FetchFailed(f"more than {MAX_REDIRECTS} redirects")

    def _onward(self, fetched: Fetched, here: str) -> tuple[int, str, bool] | None:
        """Where a redirect leads; None when that is another host.

        :raises FetchFailed: when it leads nowhere, or to a port of ours
        """
        from urllib.parse import urljoin, urlsplit  # on first use: few applications redirect their probes

        location = fetched.fields.get("location", "")
        if not location or not location.isascii() or not location.isprintable() or " " in location:
            raise FetchFailed("a redirect without a usable Location")
        try:
            there, was = urlsplit(urljoin(here, location)), urlsplit(here)
            port = there.port or (443 if there.scheme == "https" else 80)
        except ValueError:
            raise FetchFailed("a redirect without a usable Location") from None
        if there.scheme not in ("http", "https"):
            raise FetchFailed("a redirect to something that is not HTTP")
        if there.hostname != was.hostname:
            return None
        if port in self._closed_ports:
            raise FetchFailed(f"a redirect to port {port}, which is the sidecar's own")
        target = there.path or "/"
        return port, f"{target}?{there.query}" if there.query else target, there.scheme == "https"


_KNOWN: Final = frozenset(status.value for status in HTTPStatus)


async def _tcp(address: str, port: int) -> int:
    try:
        _, writer = await asyncio.open_connection(address, port)
    except OSError as error:
        raise FetchFailed(f"no connection to port {port}: {error.strerror or error}") from None
    writer.close()
    return 200


async def _grpc(address: str, action: GrpcProbe, timeout: float, agent: str) -> int:
    """``grpc.health.v1.Health/Check`` (https://github.com/grpc/grpc/blob/master/doc/health-checking.md).

    :raises FetchFailed: when the service does not serve
    """
    import grpc
    import grpc.aio

    host = f"[{address}]" if ":" in address else address
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", MAX_BODY),
        ("grpc.primary_user_agent", agent),
    ]
    async with grpc.aio.insecure_channel(f"{host}:{action.port}", options=options) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            answer: bytes = await check(health_request(action.service), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise FetchFailed("the application has no grpc.health.v1.Health") from None
            raise FetchFailed(f"the health check ended with {error.code().name}") from None
    status = health_status(answer)
    if status != _SERVING:
        raise FetchFailed(f"the application says that it does not serve (status {status})")
    return 200


def health_request(service: str) -> bytes:
    """``HealthCheckRequest{service}`` on the wire: field 1, a text. Too little to load a protobuf module for."""
    data = service.encode()
    return b"" if not data else b"\x0a" + _varint(len(data)) + data


def health_status(message: bytes) -> int:
    """``HealthCheckResponse.status``: field 1, a number; 0 when it is not there, as protobuf has it.

    :raises FetchFailed: when the message is no such answer
    """
    status, at = 0, 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        if tag & 7 == 0:
            value, at = _read_varint(message, at)
            status = value if tag >> 3 == 1 else status
        elif tag & 7 == 2:
            length, at = _read_varint(message, at)
            at += length
        else:
            at += 8 if tag & 7 == 1 else 4 if tag & 7 == 5 else len(message) + 1
    if at != len(message):
        raise FetchFailed("the answer to the health check is none")
    return status


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if at + index >= len(message):
            break
        byte = message[at + index]
        value |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return value, at + index + 1
    raise FetchFailed("the answer to the health check is none")
