"""kubectl, Helm and tokens for a cluster, whoever runs it."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from e2e.harness import pki
from e2e.harness.control_plane import AUDIENCE
from e2e.harness.errors import HarnessError
from e2e.harness.programs import PATIENCE, run, until
from e2e.harness.requests import Api
from e2e.kube.binaries import Binaries

#: The oldest Kubernetes that has native sidecars (KEP-753) switched on.
OLDEST = (1, 29)
#: How long a token lasts, seconds: the least that the API server grants.
TOKEN_SECONDS = 600


class Tools:
    """What tests do with a cluster from outside.

    :param directory: for the tools' own files; must exist
    :param api: the cluster as its administrator sees it
    """

    def __init__(self, binaries: Binaries, directory: Path, *, kubeconfig: Path, url: str, ca: Path, api: Api) -> None:
        self.kubeconfig = kubeconfig
        self.url = url
        self.ca = ca
        self._binaries = binaries
        self._directory = directory
        self._api = api
        self._count = itertools.count()
        #: Which Helm :meth:`helm` is.
        self.helm_major = 3

    @property
    def environment(self) -> dict[str, str]:
        """What programs run with that are to find this cluster: nothing of the person's own settings."""
        home = self._directory / "home"
        home.mkdir(exist_ok=True)
        own = ("KUBE", "HELM_", "XDG_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        path = os.pathsep.join([str(self._binaries["kubectl"].parent), kept.get("PATH", os.defpath)])
        return kept | {"HOME": str(home), "KUBECONFIG": str(self.kubeconfig), "PATH": path}

    def path_of(self, program: str) -> Path:
        """``kubectl`` or ``helm``, for those who run it by themselves with :attr:`environment`."""
        return self._binaries[program]

    def kubectl(self, *args: str, stdin: str = "", check: bool = True, seconds: float = PATIENCE) -> str:
        """Run kubectl as the administrator.

        :param stdin: a manifest for ``-f -``
        :param check: whether a failure raises; without it standard output and error are answered together
        :param seconds: how long it may take
        :raises CommandFailed: with what kubectl said
        """
        command: list[str | Path] = [self._binaries["kubectl"], *args]
        return run(command, env=self.environment, stdin=stdin, check=check, seconds=seconds)

    def helm(self, *args: str, stdin: str = "", check: bool = True, seconds: float = PATIENCE) -> str:
        """Run Helm as the administrator; parameters as for :meth:`kubectl`."""
        program = self._binaries["helm" if self.helm_major == 3 else f"helm{self.helm_major}"]
        return run([program, *args], env=self.environment, stdin=stdin, check=check, seconds=seconds)

    @contextlib.contextmanager
    def with_helm(self, major: int) -> Iterator[None]:
        """Let :meth:`helm` be another Helm than 3 for a while; where the suite has one."""
        before, self.helm_major = self.helm_major, major
        try:
            yield
        finally:
            self.helm_major = before

    def request(
        self, method: str, path: str, body: object = None, *, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """One request to the API server as the administrator, faster than kubectl.

        :raises ApiError: when the server refused it, with the status and the reason
        """
        return self._api.call(method, path, body, content_type=content_type)

    def require_version(self) -> tuple[int, int]:
        """The cluster's version.

        :raises HarnessError: when it is older than what the suites are written for
        """
        told = self.request("GET", "/version")
        major, minor = (int(re.sub(r"\D.*", "", told[part])) for part in ("major", "minor"))
        if (major, minor) < OLDEST:
            raise HarnessError(
                f"{self.url} runs Kubernetes {told['gitVersion']}; the suites need {OLDEST[0]}.{OLDEST[1]} or later",
                "unset KUBEBUILDER_ASSETS and HEDGEROW_KUBE_BIN to have a newer one built, or give a newer cluster",
            )
        return major, minor

    def token(
        self, namespace: str, account: str, audience: str = AUDIENCE, *, pod: str = "", seconds: int = TOKEN_SECONDS
    ) -> str:
        """A token of a ServiceAccount, as the kubelet would project it.

        :param audience: who it is for; the API server itself when it is left out
        :param pod: the pod that it is bound to; empty binds it to none
        """
        spec: dict[str, object] = {"audiences": [audience], "expirationSeconds": seconds}
        if pod:
            found = self.request("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}")
            bound = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": found["metadata"]["uid"]}
            spec["boundObjectRef"] = bound
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str(self.request("POST", path, body)["status"]["token"])

    def kubeconfig_of(self, namespace: str, account: str) -> Path:
        """A kubeconfig for a ServiceAccount, with what it may do and no more."""
        path = self._directory / f"{namespace}-{account}-{next(self._count)}.kubeconfig"
        token = self.token(namespace, account, seconds=3600)
        return pki.kubeconfig(path, url=self.url, authority=self.ca, token=token)

    def create_namespace(self, labels: dict[str, str] | None = None, *, name: str = "") -> str:
        """A fresh namespace that has its ``default`` ServiceAccount already.

        :param name: a name of its own is made when it is left out
        """
        name = name or f"t-{secrets.token_hex(4)}"
        metadata = {"name": name, "labels": labels or {}}
        self.request("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        path = f"/api/v1/namespaces/{name}/serviceaccounts"

        def has_account() -> bool:
            return any(item["metadata"]["name"] == "default" for item in self.request("GET", path)["items"])

        until(has_account, f"a default ServiceAccount in {name}")
        return name

    def delete_namespace(self, name: str) -> None:
        """Ask for the deletion of a namespace and everything in it, without waiting for the end of it."""
        self.request("DELETE", f"/api/v1/namespaces/{name}", {"propagationPolicy": "Background"})
