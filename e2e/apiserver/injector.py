"""The injector as API servers meet it: behind a Service, with the certificate that the controller keeps.

Nobody runs kube-proxy here, so the Service's address is put on the loopback device of the session's own network
namespace, and the program listens there. API servers resolve the Service, verify its name and dial that address.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from controller.injection.webhook_configuration import NAME, webhook_configuration
from controller.kube.client import Client
from controller.kube.settings import KubernetesSettings
from controller.kube.webhook_certificate import SECRET, WebhookCertificate
from controller.kube.webhook_keys import Times
from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError, HarnessError
from e2e.harness.programs import Program, free_ports, until

IMAGE = "registry.example/hedgerow-sidecar:1.0"
HOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
#: What API servers wait for an answer at most, seconds: the most that there is. A machine that does ten other things
#: shows nothing by being slow; tests for which it matters say so.
PATIENT = 30
ENABLED = {"hedgerow.dev/injection": "enabled"}


class RunningInjector:
    """The program, its Service, its Secret and its webhook configuration.

    :param directory: for its files; must exist
    :param namespace: where the chart has put Service and webhook configuration; without one they are made, and go with
        this
    """

    def __init__(self, apiserver: ApiServer, directory: Path, *, namespace: str = "") -> None:
        self.apiserver = apiserver
        self.directory = directory
        self._installed = bool(namespace)
        self.namespace = namespace or apiserver.create_namespace()
        self.address = self._service()
        subprocess.run(["ip", "address", "add", f"{self.address}/32", "dev", "lo"], check=True)
        #: Seconds that the clock of the part which keeps the certificate is ahead.
        self.offset = 0.0
        self.health = f"127.0.0.1:{free_ports(1)[0]}"
        #: Of the section ``injection:``.
        self.settings: dict[str, Any] = {"image": IMAGE, "namespace": self.namespace}
        self.program = Program(
            "injector",
            [sys.executable, "-m", "controller.injection", "--config", directory / "injector.yaml"],
            directory / "injector.log",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _service(self) -> str:
        path = f"/api/v1/namespaces/{self.namespace}/services"
        if self._installed:
            return str(self.apiserver.request("GET", f"{path}/{NAME}")["spec"]["clusterIP"])
        spec = {"ports": [{"port": 443, "targetPort": 443}]}
        body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}, "spec": spec}
        made = self.apiserver.request("POST", path, body)
        return str(made["spec"]["clusterIP"])

    # --- the program

    def start(self) -> None:
        """Start it with the certificate of its Secret, and wait until API servers are let in."""
        (self.directory / "injector.yaml").write_text(
            json.dumps(
                {
                    "listen": f"{self.address}:443",
                    "health_listen": self.health,
                    "certificate": "current/tls.crt",
                    "key": "current/tls.key",
                    "certificate_interval": 0.1,
                    "drain_seconds": 0,
                    "deadline": PATIENT,
                    "injection": self.settings,
                }
            )
        )
        self.program.start()
        self.program.until(lambda: self._health("/healthz"), "listening")

    def stop(self) -> None:
        self.program.stop()

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        """Take everything away again that was made here."""
        self.program.stop()
        if not self._installed:
            self.remove_hooks()
        subprocess.run(["ip", "address", "del", f"{self.address}/32", "dev", "lo"], check=False)
        if not self._installed:
            self.apiserver.delete_namespace(self.namespace)

    def _health(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://{self.health}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def metric(self, name: str) -> float:
        """The sum of every series whose line begins with ``name``."""
        lines = [line for line in self._health("/metrics").splitlines() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def quantile(self, part: float, since: dict[str, float] | None = None) -> float:
        """The upper bound, in seconds, of the bucket in which a quantile of the reviews lies."""
        before = since or {}
        buckets = {bound: count - before.get(bound, 0.0) for bound, count in self.buckets().items()}
        wanted = part * max(buckets.values())
        return min(float(bound) for bound, count in buckets.items() if count >= wanted)

    def buckets(self) -> dict[str, float]:
        found = {}
        for line in self._health("/metrics").splitlines():
            if line.startswith("hedgerow_injector_review_seconds_bucket"):
                found[line.partition('le="')[2].partition('"')[0]] = float(line.rpartition(" ")[2])
        return found

    # --- its certificate

    def part(self, client: Client, times: Times | None = None) -> WebhookCertificate:
        """The part of the controller that keeps it; its clock goes ahead by :attr:`offset`."""
        return WebhookCertificate(client, self.namespace, lambda: time.time() + self.offset, times)

    def keep_certificate(self, times: Times | None = None) -> None:
        """One round of that part."""

        async def once() -> None:
            async with Client(KubernetesSettings(kubeconfig=self.apiserver.kubeconfig)) as client:
                await self.part(client, times).reconcile()

        asyncio.run(once())

    def secret(self) -> dict[str, Any]:
        return self.apiserver.request("GET", f"/api/v1/namespaces/{self.namespace}/secrets/{SECRET}")

    def mount(self) -> None:
        """What the kubelet does with the Secret: its files change places all at once."""
        data = self.secret()["data"]
        self.write(base64.b64decode(data["tls.crt"]), base64.b64decode(data["tls.key"]))

    def write(self, certificate: bytes, key: bytes) -> None:
        """Let the program's files hold these; a running one has taken them when this returns."""
        before = self.metric("hedgerow_injector_certificate_loads")
        fresh = self.directory / f"data-{time.monotonic_ns()}"
        fresh.mkdir()
        (fresh / "tls.crt").write_bytes(certificate)
        (fresh / "tls.key").write_bytes(key)
        (self.directory / "new").symlink_to(fresh)
        os.replace(self.directory / "new", self.directory / "current")
        if self.program.running:
            until(lambda: self.metric("hedgerow_injector_certificate_loads") > before, "the new certificate taken")

    # --- its webhook configuration

    def install_hooks(self, failure_policy: str = "Fail", patience: int = PATIENT) -> None:
        """Put the webhook configuration there, known to the API server and with ``caBundle``.

        :param patience: of the API server, seconds
        """
        self.remove_hooks()
        body = webhook_configuration(self.namespace, failure_policy)
        for hook in body["webhooks"]:
            hook["timeoutSeconds"] = patience
        self.apiserver.request("POST", HOOKS, body)
        self.keep_certificate()

    def remove_hooks(self) -> None:
        try:
            self.apiserver.request("DELETE", f"{HOOKS}/{NAME}")
        except ApiError as error:
            if error.status != 404:
                raise

    def until_asked(self, namespace: str) -> None:
        """Wait until the API server has heard of the configuration: it reads it by a watch of its own."""

        def asked() -> bool:
            try:
                made = create(self.apiserver, namespace, pod("first"), dry_run=True)
            except HarnessError:
                return False  # heard of it before its caBundle
            return is_injected(made)

        until(asked, "pods injected")


# --- pods


def pod(
    name: str, *containers: dict[str, Any], annotations: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": {"app": name}}
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": list(containers) or [{"name": "app", "image": "none.example/app:1"}], **spec},
    }


def create(apiserver: ApiServer, namespace: str, given: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
    """As the API server has made it."""
    query = "?dryRun=All" if dry_run else ""
    return apiserver.request("POST", f"/api/v1/namespaces/{namespace}/pods{query}", given)


def stored(apiserver: ApiServer, namespace: str, name: str) -> dict[str, Any]:
    return apiserver.request("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")


def names_of(given: dict[str, Any], part: str = "initContainers") -> list[str]:
    return [one["name"] for one in given["spec"].get(part, ())]


def is_injected(given: dict[str, Any]) -> bool:
    return names_of(given)[:3] == ["hedgerow-capture", "hedgerow-validation", "hedgerow-sidecar"]
