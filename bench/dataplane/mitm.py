"""Stock mitmdump as the server's end, in reverse mode, with the work that our inspect lane does.

mitmproxy takes any client certificate when it asks for one, so an addon gives it a TLS context that verifies; another
hook of the same addon holds the rule. The client's end is HAProxy's, which is nowhere near its limit here.

The load is HTTP/2. In front of a server that speaks HTTP/1 mitmproxy opens a connection for every request, and it
speaks HTTP/2 to a server over TLS alone; with an nginx over TLS behind it, it is half as fast again, so it gets one.
"""

from __future__ import annotations

from pathlib import Path

from bench.dataplane import haproxy
from bench.dataplane.identity import Identities
from bench.dataplane.interpreter import Interpreter
from bench.dataplane.launch import Program, until
from bench.dataplane.load import PATH
from bench.dataplane.measures import MITMDUMP, Lane
from bench.dataplane.network import BODY_BYTES, Bed
from bench.dataplane.pairs import Pair

_BEHIND = 8443


def pair(bed: Bed, identities: Identities, folder: Path, base: int, *, interpreter: Interpreter, view: str) -> Pair:
    """The pair; ports as in :func:`bench.dataplane.haproxy.pair`.

    :param interpreter: what our sidecars run with, and mitmdump too
    :param view: the mount namespace in which that is in its place
    """
    behind = _nginx(bed, identities, folder / "mitm-nginx")
    mode = f"reverse:https://127.0.0.1:{_BEHIND}@0.0.0.0:{21_000 + base}"
    settings = ("flow_detail=0", "termlog_verbosity=error", "ssl_insecure=true", f"confdir={folder / 'mitm'}")
    options = [word for setting in settings for word in ("--set", setting)]
    server = Program(
        f"{MITMDUMP}-server",
        [
            *bed.server.enter(mount=view),
            *interpreter.mitmdump,
            "--mode",
            mode,
            *options,
            "-s",
            str(Path(__file__).with_name("mitm_rules.py")),
        ],
        folder / f"{MITMDUMP}-server.log",
        {
            "BENCH_CHAIN": str(identities.server.both),
            "BENCH_ROOTS": str(identities.roots),
            "BENCH_CLIENT": identities.client.identity,
        },
    )
    client = haproxy.client_end(f"{MITMDUMP}-client", bed, identities, folder, base, alpn="h2")
    until(lambda: bed.server.accepts(("127.0.0.1", 21_000 + base)), "mitmdump to listen", server, seconds=60)
    return Pair(
        MITMDUMP,
        bed,
        {Lane.INSPECT: bed.front(20_000 + base)},
        (client,),
        (server,),
        tls=bed.end(21_000 + base),
        alpn=("h2",),
        impostor=("127.0.0.1", 20_100 + base),
        denied=frozenset({Lane.INSPECT}),
        beside=(behind,),
    )


def _nginx(bed: Bed, identities: Identities, folder: Path) -> Program:
    folder.mkdir()
    config = folder / "nginx.conf"
    own = {"chain": identities.server.chain, "key": identities.server.key}
    config.write_text(_NGINX.format(folder=folder, port=_BEHIND, path=PATH, body="x" * BODY_BYTES, **own))
    argv = [*bed.server.enter(), "nginx", "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(config)]
    program = Program("nginx behind mitmdump", argv, folder / "nginx.log")
    until(lambda: bed.server.accepts(("127.0.0.1", _BEHIND)), "nginx behind mitmdump to listen", program)
    return program


_NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600; tcp_nodelay on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl http2 backlog=4096; ssl_certificate {chain}; ssl_certificate_key {key};
    location = {path} {{ return 200 "{body}"; }}
  }}
}}
"""
