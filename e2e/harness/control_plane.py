"""etcd, kube-apiserver and kube-controller-manager on loopback, with certificates and ports of their own.

The order is fixed: etcd before the API server, the API server before the controllers, the reverse when it ends. Each
step waits for the condition that the next one needs. Data lives in a directory that nobody keeps, so that etcd need
not sync it to the disk.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.harness import pki
from e2e.harness.errors import HarnessError
from e2e.harness.programs import Program, free_ports
from e2e.harness.requests import Api, ApiUnreachable
from e2e.kube.binaries import Binaries

#: Addresses of Services, and the first of them, which is the API server's.
SERVICE_NETWORK = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
#: Who the API server's own tokens are for.
AUDIENCE = "https://kubernetes.default.svc"
_TAKEN = "address already in use"
_ATTEMPTS = 3
#: An API server that ends by itself before it is ready is begun again, as a kubelet would; so many times in all.
_STARTS = 4
#: Where nodes look for an API server; alone in the session's network, it is free.
_PORT_OF_NODES = 6443
#: Open watches would keep the API server for a minute, seconds.
_STOP_GRACE = 1.0
#: Who did what to which object, without bodies: tests of RBAC read it.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


@dataclass(frozen=True, slots=True)
class Node:
    """Where a kubelet will be.

    :param address: what the API server and pods reach the machine by
    """

    name: str
    address: str


class ControlPlane:
    """A running control plane; :meth:`start` it once, :meth:`close` it once.

    :param directory: for data, certificates and logs; must exist
    :param node: the node that will join; without one there is no kubelet, and pods never run
    """

    def __init__(self, binaries: Binaries, directory: Path, *, node: Node | None = None) -> None:
        self.directory = directory
        self.kubeconfig = directory / "admin.kubeconfig"
        self.audit_log = directory / "audit.log"
        self._binaries = binaries
        self._node = node
        self.authority = pki.Authority(directory / "pki", "kubernetes-ca")
        self._etcd_authority = pki.Authority(directory / "pki", "etcd-ca")
        self._admin = self.authority.client("admin", common_name="admin", organization="system:masters")
        self._etcd_client = self._etcd_authority.client("etcd-client", common_name="kube-apiserver")
        self._programs: dict[str, Program] = {}
        self.port = _PORT_OF_NODES if node else 0
        self._etcd_port = 0

    @property
    def ca(self) -> Path:
        return self.authority.certificate

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def api(self) -> Api:
        """The API server as the administrator sees it."""
        return Api.at(self.url, self.ca, pair=self._admin)

    @property
    def etcd(self) -> Api:
        """etcd's JSON gateway."""
        return Api.at(f"https://127.0.0.1:{self._etcd_port}", self._etcd_authority.certificate, pair=self._etcd_client)

    def program(self, name: str) -> Program:
        """One of its programs, as ``etcd`` or ``kube-apiserver``."""
        return self._programs[name]

    def start(self) -> None:
        """Start everything and wait until the ``default`` ServiceAccount is there, which pods need.

        :raises HarnessError: when a program ends or is not ready in time, with its last words
        """
        for attempt in range(1, _ATTEMPTS + 1):
            self._plan()
            try:
                self._start_all()
                return
            except HarnessError as error:
                self.close()
                if _TAKEN not in str(error) or attempt == _ATTEMPTS:
                    raise

    def close(self) -> None:
        """End everything. The data is thrown away, so nothing has to end in order but the requests."""
        for program in reversed(self._programs.values()):
            program.kill()

    def start_api_server(self) -> None:
        """Start the API server, the first time or after :meth:`stop_api_server`, and wait until it is ready.

        Controllers that lost it would try again only after up to half a minute: they are started anew.
        """
        assert threading.current_thread() is threading.main_thread(), "what a thread starts is killed with it"
        server, controllers = self._programs["kube-apiserver"], self._programs["kube-controller-manager"]
        for attempt in range(1, _STARTS + 1):
            server.start()
            try:
                server.until(self._ready, "ready")
                break
            except HarnessError:
                if not server.ending or attempt == _STARTS:
                    raise
        controllers.kill()
        controllers.start()

    def stop_api_server(self) -> None:
        """Stop the API server: its listener at once, then the watches that are left. etcd stays.

        Controllers that lose it in their first moments end by themselves: they end before it, and begin anew with it.
        """
        self._programs["kube-controller-manager"].kill()
        self._programs["kube-apiserver"].stop(grace=_STOP_GRACE)

    def mend(self) -> dict[str, str]:
        """Begin again what ended by itself; answers how, by the program's name, with its last words."""
        ended = {name: program.ending for name, program in self._programs.items() if program.ending}
        if "etcd" in ended:
            self._start_etcd()
        if "kube-apiserver" in ended:
            self.start_api_server()
        for name in ended:
            if self._programs[name].ending:
                self._programs[name].start()
        return ended

    def client_kubeconfig(self, name: str, *, user: str, group: str = "") -> Path:
        """A kubeconfig for a component that shows a certificate."""
        pair = self.authority.client(name, common_name=user, organization=group)
        return pki.kubeconfig(self.directory / f"{name}.kubeconfig", url=self.url, authority=self.ca, pair=pair)

    def compact(self) -> int:
        """Make etcd forget every revision but the newest, so that older watches end with 410.

        :returns: the revision that is left
        """
        status = self.etcd.call("POST", "/v3/maintenance/status", {})
        revision = int(status["header"]["revision"])
        self.etcd.call("POST", "/v3/kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def _start_etcd(self) -> None:
        etcd = self._programs["etcd"]
        etcd.start()
        etcd.until(lambda: self._answers(self.etcd, "/readyz"), "ready")

    def _start_all(self) -> None:
        self._start_etcd()
        self.start_api_server()
        if self._node is not None:
            self._programs["kube-scheduler"].start()
        controllers = self._programs["kube-controller-manager"]
        controllers.until(lambda: self.service_account_exists("default"), "making ServiceAccounts")

    def service_account_exists(self, namespace: str) -> bool:
        """Whether a namespace has its ``default`` ServiceAccount, without which no pod is admitted."""
        listed = self.api.call("GET", f"/api/v1/namespaces/{namespace}/serviceaccounts")
        return any(item["metadata"]["name"] == "default" for item in listed["items"])

    def _ready(self) -> bool:
        return self._answers(self.api, "/readyz")

    @staticmethod
    def _answers(api: Api, path: str) -> bool:
        try:
            return api.status(path) == 200
        except ApiUnreachable:
            return False

    def _plan(self) -> None:
        """Choose ports and lay down what each program is started with."""
        self._etcd_port, peer_port, chosen, controllers_port, scheduler_port = free_ports(5)
        self.port = self.port if self._node else chosen
        pki.kubeconfig(self.kubeconfig, url=self.url, authority=self.ca, pair=self._admin)
        planned = {
            "etcd": self._etcd_arguments(peer_port),
            "kube-apiserver": self._api_server_arguments(),
            "kube-controller-manager": self._controllers_arguments(controllers_port),
        }
        if self._node is not None:
            planned["kube-scheduler"] = self._scheduler_arguments(scheduler_port)
        self._programs = {
            name: Program(name, [self._binaries[name], *arguments], self.directory / f"{name}.log")
            for name, arguments in planned.items()
        }

    def _etcd_arguments(self, peer_port: int) -> Sequence[str]:
        pair = self._etcd_authority.serving("etcd", ["127.0.0.1"])
        own, peer = f"https://127.0.0.1:{self._etcd_port}", f"https://127.0.0.1:{peer_port}"
        ca = self._etcd_authority.certificate
        return (
            f"--data-dir={self.directory / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={own}",
            f"--advertise-client-urls={own}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--client-cert-auth",
            f"--trusted-ca-file={ca}",
            f"--cert-file={pair.certificate}",
            f"--key-file={pair.key}",
            "--peer-client-cert-auth",
            f"--peer-trusted-ca-file={ca}",
            f"--peer-cert-file={pair.certificate}",
            f"--peer-key-file={pair.key}",
        )

    def _api_server_arguments(self) -> Sequence[str]:
        names = ["127.0.0.1", KUBERNETES_SERVICE, "localhost", "kubernetes", "kubernetes.default"]
        names += ["kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        if self._node:
            names.append(self._node.address)
        serving = self.authority.serving("kube-apiserver", names)
        private, public = pki.token_key(self.directory / "pki")
        policy = self.directory / "audit-policy.json"
        policy.write_text(json.dumps(_AUDIT_POLICY))
        arguments = [
            f"--etcd-servers=https://127.0.0.1:{self._etcd_port}",
            f"--etcd-cafile={self._etcd_authority.certificate}",
            f"--etcd-certfile={self._etcd_client.certificate}",
            f"--etcd-keyfile={self._etcd_client.key}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.ca}",
            f"--service-account-issuer={AUDIENCE}",
            f"--api-audiences={AUDIENCE}",
            f"--service-account-key-file={public}",
            f"--service-account-signing-key-file={private}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--allow-privileged=true",
            "--profiling=false",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.audit_log}",
        ]
        if self._node is None:
            return [
                *arguments,
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
            ]
        kubelet = self.authority.client(
            "kubelet-client", common_name="apiserver-kubelet-client", organization="system:masters"
        )
        return [
            *arguments,
            "--bind-address=0.0.0.0",
            f"--advertise-address={self._node.address}",
            f"--kubelet-client-certificate={kubelet.certificate}",
            f"--kubelet-client-key={kubelet.key}",
            f"--kubelet-certificate-authority={self.ca}",
            "--kubelet-preferred-address-types=InternalIP",
        ]

    def _controllers_arguments(self, port: int) -> Sequence[str]:
        config = self.client_kubeconfig("controllers", user="system:kube-controller-manager")
        # Without a kubelet nodes are written by tests, which say once that they are well.
        patience = () if self._node else ("--node-monitor-grace-period=3600s",)
        return (
            *patience,
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            f"--service-account-private-key-file={self.directory / 'pki' / 'service-accounts.key'}",
            f"--root-ca-file={self.ca}",
            f"--cluster-signing-cert-file={self.ca}",
            f"--cluster-signing-key-file={self.authority.pair.key}",
            "--use-service-account-credentials=true",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--leader-elect=false",
        )

    def _scheduler_arguments(self, port: int) -> Sequence[str]:
        config = self.client_kubeconfig("scheduler", user="system:kube-scheduler")
        return (
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--leader-elect=false",
        )
