"""The shop as a table: its workloads and the calls they are meant to make.

``EXPECTED`` is never given to the mesh. It is what the demo compares the learned edges with.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from graph.flow import EdgeKey
from graph.model import Port, WorkloadRef
from hedgerow.local.description import Program, ServedAs, WorkloadSpec

_HTTP = 8080
_GRPC = 50051
_CACHE = 6379
_DATABASE = 5432

#: Seconds between two runs of the periodic job.
REPORT_EVERY = 2.0


def _program(name: str, port: int = 0, **env: str) -> Program:
    settings = {variable.upper(): value for variable, value in env.items()}
    if port:
        settings |= {"LISTEN": "${listen}", "PORT": str(port)}
    return Program((sys.executable, "-P", "-m", f"hedgerow.local.shop.{name}"), settings)


def _workload(
    name: str,
    port: int = 0,
    app_protocol: str = "",
    *,
    namespace: str = "shop",
    service_port: int = 0,
    replicas: int = 1,
    kind: str = "Deployment",
    schedule: str = "",
    env: Mapping[str, str] | None = None,
) -> WorkloadSpec:
    return WorkloadSpec(
        WorkloadRef(namespace, name),
        _program(name, port, **(env or {})),
        replicas=replicas,
        ports=(Port(port, name=app_protocol, app_protocol=app_protocol),) if port else (),
        services=(ServedAs(name, ((service_port or port, port),)),) if port else (),
        kind=kind,
        schedule=schedule,
        service_account=name,
        labels={"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "shop"},
    )


SHOP: tuple[WorkloadSpec, ...] = (
    _workload("database", _DATABASE, "tcp", namespace="data", kind="StatefulSet"),
    _workload("cache", _CACHE, "tcp", namespace="data", kind="StatefulSet"),
    _workload(
        "catalogue", _HTTP, "http", service_port=8000, replicas=3, env={"database": "${service:database.data}:5432"}
    ),
    _workload("cart", _HTTP, "http", service_port=8000, env={"cache": "${service:cache.data}:6379"}),
    _workload("payment", _GRPC, "grpc"),
    _workload("shipping", _GRPC, "grpc"),
    _workload("recommendation", _GRPC, "grpc", env={"catalogue": "http://${service:catalogue}:8000"}),
    _workload(
        "checkout",
        _HTTP,
        "http",
        service_port=8000,
        env={
            "cart": "http://${service:cart}:8000",
            "payment": "${service:payment}:50051",
            "shipping": "${service:shipping}:50051",
        },
    ),
    _workload(
        "front",
        _HTTP,
        "http",
        service_port=8000,
        env={
            "catalogue": "http://${service:catalogue}:8000",
            "cart": "http://${service:cart}:8000",
            "checkout": "http://${service:checkout}:8000",
            "recommendation": "${service:recommendation}:50051",
        },
    ),
)

#: The periodic job.
REPORT = _workload(
    "report",
    kind="CronJob",
    schedule="* * * * *",
    env={"database": "${service:database.data}:5432", "every": str(REPORT_EVERY)},
)

#: Drives the shop.
SHOPPER = _workload(
    "shopper", env={"front": "http://${service:front}:8000", "rate": "12", "shoppers": "3", "reconnect": "10"}
)

#: Who calls the shop; they start when it is ready.
CLIENTS = (REPORT, SHOPPER)

EXPECTED: frozenset[EdgeKey] = frozenset(
    EdgeKey(WorkloadRef.parse(source), WorkloadRef.parse(destination), port)
    for source, destination, port in (
        ("shop/shopper", "shop/front", _HTTP),
        ("shop/front", "shop/catalogue", _HTTP),
        ("shop/front", "shop/cart", _HTTP),
        ("shop/front", "shop/checkout", _HTTP),
        ("shop/front", "shop/recommendation", _GRPC),
        ("shop/recommendation", "shop/catalogue", _HTTP),
        ("shop/catalogue", "data/database", _DATABASE),
        ("shop/cart", "data/cache", _CACHE),
        ("shop/checkout", "shop/cart", _HTTP),
        ("shop/checkout", "shop/payment", _GRPC),
        ("shop/checkout", "shop/shipping", _GRPC),
        ("shop/report", "data/database", _DATABASE),
    )
)
