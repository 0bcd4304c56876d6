"""cert-manager on the API server of the session: its own chart, its own programs under the accounts that this makes.

Nobody runs kube-proxy here. Its webhook listens on every address of the session's own network namespace, where the
injector wants port 443 for itself, so a rule of nftables leads the Service's address to the port that it got.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Self

from e2e.harness.apiserver import ApiServer
from e2e.harness.errors import ApiError, HarnessError
from e2e.harness.programs import Program, free_ports, until
from e2e.kube.parts import CERT_MANAGER_CHART

NAMESPACE = "cert-manager"
API = "/apis/cert-manager.io/v1"
#: A ClusterIssuer that signs every certificate with that certificate's own key.
SELF_SIGNED = "self-signed"
#: A ClusterIssuer with an authority of its own, which outlives what it signs.
INTERNAL = "internal"
_AUTHORITY = "internal-authority"
_TABLE = "hedgerow_cert_manager"
_WEBHOOK = "cert-manager-webhook"


class CertManager:
    """Installed and running, with the issuers :data:`SELF_SIGNED` and :data:`INTERNAL`.

    :param directory: for logs; must exist
    """

    def __init__(self, apiserver: ApiServer, directory: Path) -> None:
        self._api = apiserver
        self._directory = directory
        self._programs: list[Program] = []
        self._address = ""

    def __enter__(self) -> Self:
        try:
            self._install()
            self._run()
            self._issue()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _install(self) -> None:
        chart = self._api.path_of("cert-manager-controller").parent / CERT_MANAGER_CHART
        if not chart.is_dir():
            raise HarnessError(
                f"no chart of cert-manager in {chart}",
                "take it from the directory that python -m e2e.kube apiserver builds, beside the programs",
            )
        self._api.create_namespace(name=NAMESPACE)
        options = ("crds.enabled=true", "crds.keep=false", "startupapicheck.enabled=false", "prometheus.enabled=false")
        flags = [flag for option in options for flag in ("--set", option)]
        self._api.helm("install", "cert-manager", str(chart), "-n", NAMESPACE, *flags)

    def _run(self) -> None:
        port, health = free_ports(2)
        self._lead_to(port)
        self._start("cert-manager-controller", "cert-manager", f"--cluster-resource-namespace={NAMESPACE}")
        self._start("cert-manager-cainjector", "cert-manager-cainjector")
        names = (_WEBHOOK, f"{_WEBHOOK}.{NAMESPACE}", f"{_WEBHOOK}.{NAMESPACE}.svc")
        self._start(
            _WEBHOOK,
            _WEBHOOK,
            f"--secure-port={port}",
            f"--healthz-port={health}",
            "--metrics-listen-address=0",
            f"--dynamic-serving-ca-secret-namespace={NAMESPACE}",
            f"--dynamic-serving-ca-secret-name={_WEBHOOK}-ca",
            *(f"--dynamic-serving-dns-names={name}" for name in names),
        )

    def _start(self, name: str, account: str, *arguments: str) -> None:
        config = self._api.kubeconfig_of(NAMESPACE, account)
        command = [self._api.path_of(name), f"--kubeconfig={config}", *arguments]
        program = Program(name, command, self._directory / f"{name}.log", env=self._api.environment)
        program.start()
        self._programs.append(program)

    def _lead_to(self, port: int) -> None:
        found = self._api.request("GET", f"/api/v1/namespaces/{NAMESPACE}/services/{_WEBHOOK}")
        self._address = str(found["spec"]["clusterIP"])
        subprocess.run(["ip", "address", "add", f"{self._address}/32", "dev", "lo"], check=True)
        rules = (
            f"add table ip {_TABLE}\n"
            f"add chain ip {_TABLE} output {{ type nat hook output priority -100; }}\n"
            f"add rule ip {_TABLE} output ip daddr {self._address} tcp dport 443 redirect to :{port}\n"
        )
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)

    def _issue(self) -> None:
        """The issuers: accepted once the webhook answers and cainjector has told API servers whom to believe."""
        self._accepted("clusterissuers", _object("ClusterIssuer", SELF_SIGNED, {"selfSigned": {}}))
        authority = {
            "isCA": True,
            "commonName": _AUTHORITY,
            "secretName": _AUTHORITY,
            "privateKey": {"algorithm": "ECDSA", "size": 256},
            "issuerRef": {"kind": "ClusterIssuer", "name": SELF_SIGNED},
        }
        self._accepted(f"namespaces/{NAMESPACE}/certificates", _object("Certificate", _AUTHORITY, authority))
        self._accepted("clusterissuers", _object("ClusterIssuer", INTERNAL, {"ca": {"secretName": _AUTHORITY}}))
        for name in (SELF_SIGNED, INTERNAL):
            self.until(lambda name=name: is_ready(self._api.request("GET", f"{API}/clusterissuers/{name}")), name)

    def _accepted(self, resource: str, body: dict[str, Any]) -> None:
        refusals = [""]

        def accepted() -> bool:
            try:
                self._api.request("POST", f"{API}/{resource}", body)
            except ApiError as error:
                refusals.append(str(error))
                return error.status == 409
            return True

        try:
            self.until(accepted, f"{body['kind']} {body['metadata']['name']} accepted")
        except HarnessError as error:
            raise HarnessError(f"{error}; the last refusal: {refusals[-1]}") from None

    def until(self, ready: Any, what: str) -> None:
        """Wait for what cert-manager is to do.

        :raises HarnessError: when it does not, or one of its programs ended; with their last words
        """

        def ended() -> list[str]:
            return [program.ending for program in self._programs if program.ending]

        try:
            until(lambda: ready() or ended(), what)
        except HarnessError as error:
            words = "\n".join(f"{program.name}:\n{program.last_words()}" for program in self._programs)
            raise HarnessError(f"{error}\n{words}") from None
        if ended():
            raise HarnessError(f"before {what}: " + "\n".join(ended()))

    def close(self) -> None:
        """Take everything away again."""
        try:
            self._api.helm("uninstall", "cert-manager", "-n", NAMESPACE, "--ignore-not-found", check=False)
        finally:
            for program in self._programs:
                program.stop()
            if self._address:
                subprocess.run(["nft", "delete", "table", "ip", _TABLE], check=False, capture_output=True)
                subprocess.run(["ip", "address", "del", f"{self._address}/32", "dev", "lo"], check=False)
            self._api.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true", check=False)


def is_ready(found: dict[str, Any]) -> bool:
    """Of an Issuer or a Certificate: ready, for what its specification is now, and nothing is under way."""
    conditions = {each["type"]: each for each in found.get("status", {}).get("conditions", ())}
    ready = conditions.get("Ready", {})
    return (
        ready.get("status") == "True"
        and ready.get("observedGeneration") == found["metadata"]["generation"]
        and conditions.get("Issuing", {}).get("status") != "True"
    )


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "cert-manager.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
