"""What a kubelet and people do in one namespace, so that its pods can prove who they are, and what is answered."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest

from certs.keys import make_csr, new_key
from e2e.harness.apiserver import ApiServer
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from tests.controller.running import Running

AUDIENCE = "hedgerow-controller"
MESHED = {"hedgerow.dev/injection": "enabled"}
SIDECAR = {"name": "hedgerow-sidecar", "image": "none.example/sidecar:1", "restartPolicy": "Always"}

_hosts = itertools.count(10)


def pod_spec(*, injected: bool = True, **changes: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {"containers": [{"name": "app", "image": "none.example/none:1"}]}
    return spec | ({"initContainers": [SIDECAR]} if injected else {}) | changes


@dataclass(frozen=True)
class Cluster:
    """What a kubelet and people do, in one namespace."""

    api: ApiServer
    namespace: str

    def path(self, name: str = "") -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods" + (f"/{name}" if name else "")

    def pod(self, name: str, spec: dict[str, Any] | None = None, **metadata: Any) -> str:
        """A new pod, running at an address of its own; its uid."""
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, **metadata},
            "spec": spec or pod_spec(),
        }
        uid = str(self.api.request("POST", self.path(), body)["metadata"]["uid"])
        self.runs(name)
        return uid

    def runs(self, name: str) -> None:
        """Say what a kubelet would say of it."""
        number = next(_hosts)
        address = f"10.244.{number // 250}.{number % 250}"
        ready = [{"type": "Ready", "status": "True"}]
        self.report(name, {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": ready})

    def report(self, name: str, status: dict[str, Any]) -> None:
        content_type = "application/strategic-merge-patch+json"
        self.api.request("PATCH", f"{self.path(name)}/status", {"status": status}, content_type=content_type)

    def token(self, pod: str, audience: str = AUDIENCE, account: str = "default") -> str:
        return self.api.token(self.namespace, account, audience, pod=pod)

    def delete(self, name: str) -> None:
        self.api.request("DELETE", self.path(name), {"gracePeriodSeconds": 0})


async def sign(run: Running, token: str, instance: str) -> pb.SignResponse:
    request = pb.SignRequest(csr_der=make_csr(new_key()), service_account_token=token, instance=instance)
    answer: pb.SignResponse = await rpc.IssuerStub(run.attesting()).Sign(request, timeout=120)
    return answer


async def refused(run: Running, token: str, instance: str) -> str:
    """The code of the refusal; its message has a remedy, and no token."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sign(run, token, instance)
    message = caught.value.details() or ""
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, message
    assert message.startswith("service_account_token: ")
    assert "; " in message, "a remedy"
    parts = [token, *token.split(".")]
    assert not [each for each in parts if len(each) > 10 and each in message]
    return message.rpartition("[")[2].rstrip("]")


async def audited(run: Running, pod: str) -> list[dict[str, Any]]:
    page = await run.get("/audit", limit=1000)
    assert page["intact"] is True
    return [entry for entry in page["entries"] if entry["actor"] == f"sidecar:{pod}"]
