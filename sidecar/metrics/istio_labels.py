"""How a series of Istio's metrics is named: its labels, and what each of them falls back to.

All of it is as https://istio.io/latest/docs/reference/config/metrics/ and istio/proxy's ``istio_stats.cc`` have it.
Where Istio's two data planes differ, or a label asks for what a sidecar of ours does not know:

* ``connection_security_policy`` is ``mutual_tls`` at both reporters (ztunnel's way), else ``none`` at the destination
  and ``unknown`` at the source.
* ``response_flags``: Envoy's ``UF`` for what did not reach the application and ``NR`` for what nobody resolved;
  ``DENY``, ztunnel's word, for a connection that the policy refused. A refused request is a 403 with ``-``, as
  Istio's own RBAC reports it.
* ``app``, ``version`` and ``cluster`` are known of our own pod alone, from the settings. So that both reporters of an
  edge name its ends alike, ``canonical_service`` is always the workload's name and ``canonical_revision`` always
  ``latest``, which is what Istio falls back to.
* ``destination_service`` is the service that was asked for where that is known, else the workload under that form of
  name. The ``Host`` field of a request is never believed for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from graph.model import EXTERNAL_NAMESPACE, Direction
from sidecar.dataplane.contracts import Record
from sidecar.metrics.exposition import labels_text
from sidecar.metrics.registry import OVERFLOW

_PEERS: Final = tuple(
    f"{end}_{what}"
    for end in ("source", "destination")
    for what in (
        "workload",
        "canonical_service",
        "canonical_revision",
        "workload_namespace",
        "principal",
        "app",
        "version",
        "cluster",
    )
)
#: Labels of the TCP metrics, in the order in which they are written.
TCP_LABELS: Final = (
    "reporter",
    *_PEERS,
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
)
#: Labels of the metrics of gRPC messages: the others say how a call ended, which nobody knows while it runs. Istio's
#: sidecars report messages before they add those (``reportHelper()`` and ``log()`` of ``istio_stats.cc``, and what its
#: tests expect: ``testdata/metric/server_request_messages.yaml.tmpl``).
MESSAGE_LABELS: Final = TCP_LABELS[: TCP_LABELS.index("request_protocol")]
#: Labels of the request metrics.
REQUEST_LABELS: Final = (*TCP_LABELS, "response_code", "grpc_response_status")

_UNKNOWN: Final = "unknown"
#: gRPC's own codes end at 16; what a peer makes up beyond them is UNKNOWN (https://grpc.io/docs/guides/status-codes/).
GRPC_CODES: Final = tuple(str(code) for code in range(17))


@dataclass(frozen=True, slots=True)
class Labels:
    """What a person told us of our own pod; empty: unknown.

    :param app: the pod's label ``app``; ``version`` likewise
    :param cluster: the name of the cluster
    """

    app: str = ""
    version: str = ""
    cluster: str = ""


NOTHING_TOLD: Final = Labels()


class _Key(NamedTuple):
    """What two connections must share to be one series. Made of texts alone: they know their hash already."""

    inbound: bool
    source: str
    source_namespace: str
    source_identity: str
    destination: str
    destination_namespace: str
    destination_identity: str
    service: str
    host: str
    secured: bool
    flags: str
    protocol: str
    code: int
    grpc: int


type SeriesKey = tuple[bool, str, str, str, str, str, str, str, str, bool, str, str, int, int]


def key_of(record: Record, flags: str, protocol: str, code: int, grpc: int) -> SeriesKey:
    """:param code: of the response, 0 for a connection
    :param grpc: gRPC's code, -1 where there is none
    """
    source, destination = record.source, record.destination
    inbound = record.direction is Direction.INBOUND
    one, other = source.workload, destination.workload
    return (
        inbound,
        one.name if one is not None and not one.is_external else "",
        source.namespace,
        record.source_identity,
        other.name if other is not None and not other.is_external else "",
        destination.namespace,
        record.destination_identity,
        record.service,
        destination.host,
        source.verified if inbound else destination.verified,
        flags,
        protocol,
        code,
        grpc,
    )


def message_key_of(record: Record) -> SeriesKey:
    """The key of a connection's messages of gRPC, in which there is nothing but what :data:`MESSAGE_LABELS` tells: two
    keys are two series."""
    key = key_of(record, "", "", 0, -1)
    return (*key[:9], False, *key[10:])


def folded(key: SeriesKey) -> SeriesKey:
    """The one series into which those go that there is no room for."""
    return (key[0], "", "", "", "", "", "", "", "", False, OVERFLOW, "", 0, -1)


def text_of(key: SeriesKey, names: tuple[str, ...], own: Labels) -> str:
    """The labels ``names`` of a series, as a page writes them; ``own`` are those of our own pod."""
    made = _Key(*key)
    reporter = "destination" if made.inbound else "source"
    if made.flags == OVERFLOW:
        return labels_text(names, [reporter if name == "reporter" else OVERFLOW for name in names])
    mine, peer = own, NOTHING_TOLD
    source, destination = (peer, mine) if made.inbound else (mine, peer)
    made = made._replace(  # what is outside the mesh is in no namespace
        source_namespace=made.source_namespace.removeprefix(EXTERNAL_NAMESPACE),
        destination_namespace=made.destination_namespace.removeprefix(EXTERNAL_NAMESPACE),
    )
    values = {"reporter": reporter, "request_protocol": made.protocol, "response_flags": made.flags}
    values |= _end("source", made.source, made.source_namespace, made.source_identity, source)
    values |= _end("destination", made.destination, made.destination_namespace, made.destination_identity, destination)
    values |= _service(made)
    unsecured = "none" if made.inbound else _UNKNOWN
    values["connection_security_policy"] = "mutual_tls" if made.secured else unsecured
    values["response_code"] = str(made.code)
    values["grpc_response_status"] = GRPC_CODES[made.grpc] if made.grpc >= 0 else ""
    return labels_text(names, [values[name] for name in names])


def _end(end: str, workload: str, namespace: str, identity: str, labels: Labels) -> dict[str, str]:
    values = {
        "workload": workload,
        "canonical_service": workload,
        "canonical_revision": "latest",
        "workload_namespace": namespace,
        "principal": identity,
        "app": labels.app,
        "version": labels.version,
        "cluster": labels.cluster,
    }
    return {f"{end}_{name}": value or _UNKNOWN for name, value in values.items()}


def _service(key: _Key) -> dict[str, str]:
    namespace, _, name = key.service.rpartition("/")
    if key.host and not key.destination:
        host, name, namespace = key.host, key.host, _UNKNOWN
    elif not key.destination and not name:
        # what Istio calls a connection to something that is in no inventory, and lets through
        host = name = _UNKNOWN if key.inbound else "PassthroughCluster"
        namespace = _UNKNOWN
    else:
        name = name or key.destination
        namespace = namespace or key.destination_namespace or _UNKNOWN
        host = f"{name}.{namespace}.svc.cluster.local"
    return {
        "destination_service": host,
        "destination_service_name": name,
        "destination_service_namespace": namespace,
    }
