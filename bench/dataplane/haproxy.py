"""Pairs of HAProxies, one thread each: TCP, and HTTP with connections kept and shared. Both ends verify certificates.

HAProxy checks the chain; it has no check of a SPIFFE ID, so that it does a little less than the others.
"""

from __future__ import annotations

from pathlib import Path

from bench.dataplane.identity import SUITE, Identities
from bench.dataplane.launch import Program, until
from bench.dataplane.load import PATH
from bench.dataplane.measures import HAPROXY_HTTP, HAPROXY_TCP, Lane
from bench.dataplane.network import IMPOSTOR_ADDRESS, STREAM_PORT, Bed, Namespace
from bench.dataplane.pairs import Pair

_COMMON = """
global
  nbthread 1
  maxconn 4096
  ssl-default-bind-ciphersuites {suite}
  ssl-default-server-ciphersuites {suite}
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  mode {mode}
  maxconn 4096
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  {reuse}
"""

_CLIENT = """
listen front
  bind 127.0.0.1:{front} backlog 4096
  server server {host}:{port} ssl verify required ca-file {roots} crt {mine} {alpn}
listen impostor
  bind 127.0.0.1:{impostor}
  server impostor {impostor_host}:8443 ssl verify required ca-file {roots} crt {mine} {alpn}
"""

_SERVER = """
listen tls
  bind 0.0.0.0:{tls} backlog 4096 ssl crt {mine} ca-file {roots} verify required
  {rule}
  server app 127.0.0.1:{app}
"""


def program(name: str, namespace: Namespace, config: str, folder: Path) -> Program:
    path = folder / f"{name}.cfg"
    path.write_text(config)
    return Program(name, [*namespace.enter(), "haproxy", "-db", "-f", str(path)], folder / f"{name}.log")


def pair(kind: str, bed: Bed, identities: Identities, folder: Path, base: int) -> Pair:
    """A pair of one kind; its ports are ``base`` + 20,000 (front), 20,100 (to the impostor) and 21,000 (TLS)."""
    http = kind == HAPROXY_HTTP
    client = client_end(f"{kind}-client", bed, identities, folder, base, http=http)
    config = _common(http=http) + _SERVER.format(
        tls=21_000 + base,
        mine=identities.server.both,
        roots=identities.roots,
        rule=f"http-request deny unless METH_GET {{ path {PATH} }}" if http else "",
        app=STREAM_PORT,
    )
    server = program(f"{kind}-server", bed.server, config, folder)
    until(lambda: bed.server.accepts(("127.0.0.1", 21_000 + base)), f"{server.name} to listen", server)
    assert kind in (HAPROXY_TCP, HAPROXY_HTTP)
    return Pair(
        kind,
        bed,
        dict.fromkeys((Lane.HTTP, Lane.STREAM) if http else (Lane.STREAM,), bed.front(20_000 + base)),
        (client,),
        (server,),
        tls=bed.end(21_000 + base),
        impostor=("127.0.0.1", 20_100 + base),
        denied=frozenset({Lane.HTTP}) if http else frozenset(),
    )


def client_end(
    name: str, bed: Bed, identities: Identities, folder: Path, base: int, *, http: bool = False, alpn: str = ""
) -> Program:
    """A client's end alone; mitmdump has one in front of it too.

    :param alpn: what it offers
    """
    host, port = bed.end(21_000 + base)
    config = _common(http=http) + _CLIENT.format(
        front=20_000 + base,
        impostor=20_100 + base,
        host=host,
        port=port,
        impostor_host=IMPOSTOR_ADDRESS,
        roots=identities.roots,
        mine=identities.client.both,
        alpn=f"alpn {alpn}" if alpn else "",
    )
    started = program(name, bed.client, config, folder)
    until(lambda: bed.client.accepts(("127.0.0.1", 20_100 + base)), f"{name} to listen", started)
    return started


def _common(*, http: bool) -> str:
    return _COMMON.format(suite=SUITE, mode="http" if http else "tcp", reuse="http-reuse always" if http else "")
