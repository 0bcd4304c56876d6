"""Pods that have no business in the shop, with as much of another's as can be stolen."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from e2e.cluster import attempts, shop
from e2e.harness.cluster import Cluster
from e2e.harness.pods import IDLE, apply, execute, python_pod, wait_ready

#: Whose ServiceAccount is stolen: it may call more than any other.
STOLEN = "front"
_NO_SIDECAR = {"hedgerow.dev/injection": "disabled"}
_TOKEN, _TRUST = "/stolen/token", "/stolen/trust"
#: Asks for a certificate with the pod's own token for the controller, as each of some instances.
_ASK = """
import grpc, json, sys
from certs.keys import make_csr, new_key
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
roots = open("/stolen/trust/trust-bundle.pem", "rb").read()
token = open("/stolen/token/token").read()
said = {}
place = "hedgerow-controller.hedgerow-system.svc:15013"
with grpc.secure_channel(place, grpc.ssl_channel_credentials(roots)) as channel:
    for instance in sys.argv[1:]:
        request = pb.SignRequest(csr_der=make_csr(new_key()), service_account_token=token, instance=instance)
        try:
            rpc.IssuerStub(channel).Sign(request, timeout=120)
            said[instance] = "signed"
        except grpc.RpcError as error:
            said[instance] = error.code().name
print(json.dumps(said))
"""
#: Who its own sidecar says that it is.
_WHO = """
import json, urllib.request
with urllib.request.urlopen("http://127.0.0.1:15021/stats", timeout=30) as answer:
    print(json.load(answer)["identity"])
"""


@dataclass(frozen=True, slots=True)
class Stranger:
    """:param injected: whether it has our sidecar"""

    name: str
    namespace: str
    injected: bool
    spec: dict[str, Any]
    labels: dict[str, str]


def _stolen() -> dict[str, Any]:
    """The account of another, with a token of it for the controller and the mesh's roots, where no sidecar is."""
    token = {"serviceAccountToken": {"audience": "hedgerow-controller", "expirationSeconds": 600, "path": "token"}}
    volumes = [
        {"name": "token", "projected": {"sources": [token]}},
        {"name": "trust", "configMap": {"name": "hedgerow-trust"}},
    ]
    return {"serviceAccountName": STOLEN, "volumes": volumes}


STRANGERS = (
    Stranger("intruder", "outside", False, {}, {}),
    Stranger("compromised", "shop", True, {}, {}),
    Stranger("thief", "shop", True, {"serviceAccountName": STOLEN}, {}),
    Stranger("bare-thief", "shop", False, _stolen(), _NO_SIDECAR),
)


@contextlib.contextmanager
def strangers(cluster: Cluster) -> Iterator[None]:
    """They are there, and Ready."""
    cluster.create_namespace(name="outside")
    try:
        for each in STRANGERS:
            labels = {"app": each.name, **each.labels}
            pod = python_pod(each.name, IDLE, cluster.controller_image, labels=labels, **each.spec)
            if "volumes" in each.spec:
                mounts = [{"name": "token", "mountPath": _TOKEN}, {"name": "trust", "mountPath": _TRUST}]
                pod["spec"]["containers"][0]["volumeMounts"] = mounts
            apply(cluster, each.namespace, pod)
        for each in STRANGERS:
            wait_ready(cluster, each.namespace, each.name)
            pod = cluster.request("GET", f"/api/v1/namespaces/{each.namespace}/pods/{each.name}")
            inits = [init["name"] for init in pod["spec"].get("initContainers", ())]
            assert ("hedgerow-sidecar" in inits) is each.injected, each
        yield
    finally:
        for each in STRANGERS:
            command = ["delete", "pod", each.name, "--wait=true", "--ignore-not-found"]
            cluster.kubectl("-n", each.namespace, *command, check=False, seconds=60)
        cluster.delete_namespace("outside")


def tried(cluster: Cluster) -> list[attempts.Target]:
    """Everything that listens in the shop: by its service, and each pod at its own address."""
    found = attempts.targets()
    by_name = {each.workload: each for each in found}
    for namespace in shop.NAMESPACES:
        for pod in cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]:
            name = pod["metadata"].get("labels", {}).get("app.kubernetes.io/name", "")
            target = by_name.get(f"{namespace}/{name}")
            if target is not None:
                address = pod["status"]["podIP"]
                alone = replace(target, workload=f"{target.workload} {address}", host=address, port=target.edge_port)
                found.append(alone)
    return found


def reached(cluster: Cluster) -> dict[str, list[str]]:
    """What strangers get an answer from; nothing for those who get nowhere."""
    goals = tried(cluster)
    assert len(goals) > len(attempts.targets())
    all_reached = {}
    for each in STRANGERS:
        found = attempts.reached(cluster, each.namespace, each.name, "app", goals)
        if got := [goal for goal, why in found.items() if not why]:
            all_reached[each.name] = got
    return all_reached


def certificates(cluster: Cluster) -> dict[str, str]:
    """What the controller answers to a stolen token: as its own pod, and as each pod of whom it was stolen from."""
    pods = cluster.request("GET", "/api/v1/namespaces/shop/pods")["items"]
    named = [pod["metadata"]["name"] for pod in pods if pod["spec"]["serviceAccountName"] == STOLEN]
    said: dict[str, str] = json.loads(execute(cluster, "shop", "bare-thief", "python", "-c", _ASK, *named))
    assert set(said) >= {"thief", "bare-thief"}
    assert len(said) >= 3, "at least one pod has it by right"
    return said


def identity(cluster: Cluster, name: str) -> str:
    """Whose certificate a stranger with a sidecar has."""
    return execute(cluster, "shop", name, "python", "-c", _WHO).strip()
