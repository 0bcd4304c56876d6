"""NetworkPolicies of Hedgerow's own pods, as the cluster enforces them: who reaches which of the controller's ports."""

from __future__ import annotations

import json

from e2e.cluster.installed import INJECTION, SYSTEM, Hedgerow
from e2e.harness.cluster import Cluster
from e2e.harness.pods import IDLE, apply, execute, python_pod, wait_ready
from e2e.harness.programs import until

#: Of the controller's pod: sidecars, first certificates, monitoring; the page, which is on loopback.
GRPC, ISSUER, MONITORING, PAGE = 15012, 15013, 15014, 8080
_TRY = """
import json, socket, sys
said = {}
for port in sys.argv[2:]:
    try:
        socket.create_connection((sys.argv[1], int(port)), timeout=5).close()
        said[port] = "open"
    except OSError as error:
        said[port] = type(error).__name__
print(json.dumps(said))
"""


def test_only_namespaces_of_the_mesh_reach_the_port_of_first_certificates(
    cluster: Cluster, namespace: str, installed: Hedgerow
) -> None:
    pods = f"/api/v1/namespaces/{SYSTEM}/pods?labelSelector=app.kubernetes.io/name%3Dhedgerow-controller"
    (controller,) = cluster.request("GET", pods)["items"]
    apply(cluster, namespace, python_pod("caller", IDLE, cluster.controller_image))
    wait_ready(cluster, namespace, "caller")

    def reached() -> set[int]:
        ports = [str(port) for port in (GRPC, ISSUER, MONITORING, PAGE)]
        said = execute(cluster, namespace, "caller", "python", "-c", _TRY, controller["status"]["podIP"], *ports)
        return {int(port) for port, how in json.loads(said).items() if how == "open"}

    until(lambda: reached() == {GRPC, MONITORING}, "a pod of any namespace reaching what is for everybody, and no more")
    cluster.kubectl("label", "namespace", namespace, f"{INJECTION}=enabled")
    until(lambda: reached() == {GRPC, ISSUER, MONITORING}, "a pod of the mesh reaching first certificates too")
    cluster.kubectl("label", "namespace", namespace, f"{INJECTION}-")
    until(lambda: reached() == {GRPC, MONITORING}, "the same pod kept from them again")
