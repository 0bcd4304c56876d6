"""A real cert-manager makes, renews and announces the injector's certificate; Hedgerow's controller leaves it alone.

cert-manager's own chart and programs, our chart with its values for cert-manager, the real injector, a real API server.
The kubelet's part, which brings the Secret's files to the injector some time later, is a test's.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from controller.injection.webhook_configuration import NAME
from controller.kube import rbac
from controller.kube.client import Client
from controller.kube.settings import KubernetesSettings
from controller.kube.webhook_certificate import SECRET
from e2e.apiserver.auditing import refused
from e2e.apiserver.cert_manager import API, INTERNAL, SELF_SIGNED, CertManager, is_ready
from e2e.apiserver.injector import ENABLED, HOOKS, PATIENT, RunningInjector, create, names_of, pod
from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError, HarnessError
from e2e.harness.programs import until
from hedgerow.checking.finding import Outcome
from hedgerow.checking.health import webhook
from tests.controller.running import eventually, running

CHART = Path(__file__).parents[2] / "charts" / "hedgerow"
#: cert-manager has six programs' work to do on a busy machine.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def cert_manager(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CertManager]:
    with CertManager(apiserver, tmp_path_factory.mktemp("cert-manager")) as made:
        yield made


class Installed:
    """Hedgerow's chart with a certificate of cert-manager's, and the injector that serves it."""

    def __init__(self, apiserver: ApiServer, cert_manager: CertManager, directory: Path) -> None:
        self.api = apiserver
        self.cert_manager = cert_manager
        self._directory = directory
        self._injector: RunningInjector | None = None
        self.namespace = apiserver.create_namespace(name="hedgerow-system")

    def install(self, issuer: str) -> None:
        """With a certificate of this ClusterIssuer."""
        apiserver = self.api
        there = "accessoverrides.hedgerow.dev" in apiserver.kubectl("get", "crd", "-o", "name")
        issuer_of = {"kind": "ClusterIssuer", "name": issuer}
        values = {
            "controller": {"persistence": {"enabled": False}},
            "injector": {"certificate": "external", "certManager": {"enabled": True, "issuerRef": issuer_of}},
            "crds": {"install": not there},
        }
        self._helm("install", str(CHART), "--values", "-", stdin=yaml.safe_dump(values))
        operations = [
            {"op": "replace", "path": f"/webhooks/{number}/timeoutSeconds", "value": PATIENT} for number in range(4)
        ]
        apiserver.request("PATCH", f"{HOOKS}/{NAME}", operations, content_type="application/json-patch+json")
        self._injector = RunningInjector(apiserver, self._directory, namespace=self.namespace)
        self._injector.settings = self.settings("hedgerow-injector", "injector.yaml")["injection"]

    @property
    def injector(self) -> RunningInjector:
        assert self._injector is not None, "not installed yet"
        return self._injector

    def _helm(self, action: str, *arguments: str, stdin: str = "") -> str:
        return self.api.helm(action, "hedgerow", *arguments, "--namespace", self.namespace, stdin=stdin)

    def close(self) -> None:
        if self._injector is not None:
            self._injector.close()
        self._helm("uninstall", "--ignore-not-found")
        self.api.kubectl("delete", "namespace", self.namespace, "--wait=true")

    def settings(self, name: str, key: str) -> dict[str, Any]:
        """What the chart gives a program."""
        found = self.api.request("GET", f"/api/v1/namespaces/{self.namespace}/configmaps/{name}")
        return dict(yaml.safe_load(found["data"][key]))

    @property
    def certificate_path(self) -> str:
        return f"{API}/namespaces/{self.namespace}/certificates/{NAME}"

    @property
    def certificate(self) -> dict[str, Any]:
        return self.api.request("GET", self.certificate_path)

    @property
    def secret(self) -> dict[str, bytes]:
        """Decoded; empty when it is not there."""
        try:
            data = self.injector.secret().get("data", {})
        except ApiError as error:
            if error.status != 404:
                raise
            return {}
        return {key: base64.b64decode(value) for key, value in data.items()}

    @property
    def hooks(self) -> dict[str, Any]:
        return self.api.request("GET", f"{HOOKS}/{NAME}")

    @property
    def bundle(self) -> bytes:
        """Whom API servers believe; empty unless all webhooks say the same."""
        found = {hook["clientConfig"].get("caBundle", "") for hook in self.hooks["webhooks"]}
        return base64.b64decode(found.pop()) if len(found) == 1 else b""

    def until_certified(self, before: bytes = b"") -> None:
        """Wait for another certificate than ``before``, ready, and for API servers to be told who vouches for it.

        Whoever vouched for one before may be in ``caBundle`` still.
        """

        def certified() -> bool:
            secret = self.secret
            if not secret.get("tls.crt") or secret["tls.crt"] == before or not is_ready(self.certificate):
                return False
            return secret.get("ca.crt", b"none") in self.bundle

        self.cert_manager.until(certified, "the injector's certificate made and announced")

    def renew(self) -> None:
        """What ``cmctl renew`` does."""
        for _ in range(20):  # cert-manager writes the status as well
            found = self.certificate
            condition = {
                "type": "Issuing",
                "status": "True",
                "reason": "ManuallyTriggered",
                "message": "Certificate re-issuance manually triggered",
                "observedGeneration": found["metadata"]["generation"],
                "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
            conditions = found["status"]["conditions"]
            found["status"]["conditions"] = [each for each in conditions if each["type"] != "Issuing"] + [condition]
            try:
                self.api.request("PUT", f"{self.certificate_path}/status", found)
            except ApiError as error:
                if error.status != 409:
                    raise
            else:
                return
        raise AssertionError("the Certificate's status changes all the time")

    def lose(self) -> None:
        """Somebody deletes the Secret."""
        self.api.request("DELETE", f"/api/v1/namespaces/{self.namespace}/secrets/{SECRET}")

    def served(self) -> bytes:
        """The certificate, DER, that a handshake gets which believes what API servers do.

        :raises ssl.SSLCertVerificationError: when they would not believe it
        """
        context = ssl.create_default_context(cadata=self.bundle.decode())
        # As Go does: whatever certificate of caBundle there is ends a chain, were it the server's own.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        with (
            socket.create_connection((self.injector.address, 443), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname=f"{NAME}.{self.namespace}.svc") as connection,
        ):
            found = connection.getpeercert(binary_form=True)
        assert found is not None
        return found


@pytest.fixture
def install(apiserver: ApiServer, cert_manager: CertManager, tmp_path: Path) -> Iterator[Callable[[str], Installed]]:
    """Installs the chart for an issuer and starts the injector with the files of the Secret."""
    with contextlib.ExitStack() as stack:

        def installed(issuer: str) -> Installed:
            made = Installed(apiserver, cert_manager, tmp_path)
            stack.callback(made.close)
            made.install(issuer)
            made.until_certified()
            made.injector.mount()
            made.injector.start()
            return made

        yield installed


@pytest.fixture
def meshed(apiserver: ApiServer) -> Iterator[Callable[[str], str]]:
    """Makes namespaces with injection, for which a Pod Security Standard holds."""
    made: list[str] = []

    def namespace(level: str) -> str:
        made.append(apiserver.create_namespace({**ENABLED, "pod-security.kubernetes.io/enforce": level}))
        return made[-1]

    yield namespace
    for name in made:
        apiserver.delete_namespace(name)


class Pods:
    """One pod after another, tried in a thread until the block ends; a refused one ends it."""

    def __init__(self, apiserver: ApiServer, namespace: str) -> None:
        self._api, self._namespace = apiserver, namespace
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="pods")
        self.injected = 0
        self.refused = ""

    def __enter__(self) -> Pods:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._enough.wait(0.02):
            try:
                made = create(self._api, self._namespace, pod("again"), dry_run=True)
            except HarnessError as error:
                self.refused = str(error)
                return
            if "hedgerow-sidecar" not in names_of(made):
                self.refused = f"a pod without a sidecar: {made}"
                return
            self.injected += 1

    def more(self, count: int = 10) -> None:
        """Wait for so many further ones."""
        wanted = self.injected + count
        until(lambda: self.injected >= wanted or self.refused, f"{count} more pods")
        assert self.refused == ""


def der(pem: bytes) -> bytes:
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


@pytest.mark.parametrize("issuer", [INTERNAL, SELF_SIGNED])
def test_cert_manager_makes_announces_and_renews_it_without_a_refused_pod(
    apiserver: ApiServer, install: Callable[[str], Installed], meshed: Callable[[str], str], issuer: str
) -> None:
    """Also where every certificate vouches for itself: cainjector leaves the one before in ``caBundle``."""
    installed = install(issuer)
    # whose work it is: cert-manager's, field by field
    writers = {
        entry["manager"]
        for entry in installed.hooks["metadata"]["managedFields"]
        if "f:caBundle" in json.dumps(entry["fieldsV1"])
    }
    assert writers == {"cert-manager-cainjector"}
    first = installed.secret["tls.crt"]
    leaf = x509.load_pem_x509_certificate(first)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"{NAME}.{installed.namespace}.svc"]
    assert installed.served() == der(first)

    process = installed.injector.program.pid
    space = meshed("privileged")
    installed.injector.until_asked(space)
    made = create(apiserver, space, pod("stored"))
    assert names_of(made)[:3] == ["hedgerow-capture", "hedgerow-validation", "hedgerow-sidecar"]
    with Pods(apiserver, space) as pods:
        for replace in (installed.renew, installed.lose):
            before = installed.secret["tls.crt"]
            pods.more()
            replace()
            installed.until_certified(before)
            # renewed and announced, while the injector still serves the one before: the kubelet takes its time
            assert installed.served() == der(before)
            pods.more()
            installed.injector.mount()
            assert installed.served() == der(installed.secret["tls.crt"]) != der(before)
            pods.more()
    assert pods.refused == ""
    assert installed.injector.program.running
    assert installed.injector.program.pid == process
    # the API server kept its connection; for a webhook that it did not ask yet it makes another one
    explicit = {"hedgerow.dev/explicit-inbound": "8080=18080"}
    other = create(apiserver, meshed("baseline"), pod("stored", annotations=explicit))
    assert "hedgerow-sidecar" in names_of(other, "containers") + names_of(other)


async def test_the_controller_neither_touches_it_nor_may(
    apiserver: ApiServer, install: Callable[[str], Installed], tmp_path: Path
) -> None:
    installed = await asyncio.to_thread(install, INTERNAL)
    told = installed.settings("hedgerow-controller", "controller.yaml")["kubernetes"]
    assert told["injector_certificate"] == "external"
    user = f"system:serviceaccount:{installed.namespace}:{rbac.ACCOUNT}"

    def may(verb: str, resource: str, name: str = "", group: str = "", namespace: str = "") -> bool:
        asked = {"verb": verb, "resource": resource, "name": name, "group": group, "namespace": namespace}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": asked},
        }
        answer = apiserver.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
        return bool(answer["status"]["allowed"])

    for verb in ("get", "watch", "create", "update", "patch", "delete"):
        assert not may(verb, "secrets", SECRET, namespace=installed.namespace), verb
    for verb in ("create", "update", "patch", "delete"):
        assert not may(verb, "mutatingwebhookconfigurations", NAME, "admissionregistration.k8s.io"), verb
    assert may("list", "pods")

    kubernetes = KubernetesSettings(
        kubeconfig=apiserver.kubeconfig_of(installed.namespace, rbac.ACCOUNT),
        namespace=installed.namespace,
        cluster_networks=("10.0.0.0/8",),
        injector_certificate=told["injector_certificate"],
    )
    state = tmp_path / "state"
    state.mkdir()
    async with running(state, inventory=None, kubernetes=kubernetes) as run:
        cluster = run.controller.cluster
        assert cluster is not None
        await eventually(lambda: cluster.synced, 240)
        before = installed.secret["tls.crt"]
        # somebody empties what cert-manager announced: cert-manager puts it right, and nobody else
        operations = [{"op": "remove", "path": f"/webhooks/{number}/clientConfig/caBundle"} for number in range(4)]
        form = "application/json-patch+json"
        await asyncio.to_thread(apiserver.request, "PATCH", f"{HOOKS}/{NAME}", operations, content_type=form)
        await asyncio.to_thread(installed.renew)
        await asyncio.to_thread(installed.until_certified, before)
    done = [event for event in apiserver.audited() if event["user"].get("username") == user and "objectRef" in event]
    assert len(done) > 10, "the controller did its work"
    about = [(event["verb"], event["objectRef"]["resource"]) for event in done]
    assert [each for each in about if each[1] == "secrets"] == []
    writes = ("create", "update", "patch", "delete")
    assert [each for each in about if each[1] == "mutatingwebhookconfigurations" and each[0] in writes] == []
    assert refused(done) == []


async def test_the_check_sends_people_to_cert_manager(
    apiserver: ApiServer, cert_manager: CertManager, client: Client, tmp_path: Path
) -> None:
    installed = Installed(apiserver, cert_manager, tmp_path)
    try:
        await asyncio.to_thread(installed.install, "nobody")
        found = await webhook(client)
    finally:
        await asyncio.to_thread(installed.close)
    assert (found.outcome, "has no authority" in found.text) == (Outcome.FAILED, True)
    assert "kubectl -n hedgerow-system describe certificate/hedgerow-injector" in found.hint
