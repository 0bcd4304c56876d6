"""Hedgerow on a cluster, installed with its chart as anybody would, and its web API through a port forward."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from e2e.harness.cluster import Cluster
from e2e.harness.programs import Program, until

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "hedgerow"
SYSTEM = "hedgerow-system"
INJECTION = "hedgerow.dev/injection"
TOKEN = "/var/lib/hedgerow/state/operator.token"
#: As the sidecar's user: a local volume takes the pod's group, a directory that is ours already needs nothing.
_UID = 1337
_STORAGE = "by-hand"
#: Names a storage class of somebody else's cluster.
STORAGE_VARIABLE = "HEDGEROW_E2E_STORAGE_CLASS"


class Hedgerow:
    """One installation."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self._directory = directory
        self._forward: Program | None = None
        self._url = ""
        self._token = ""

    # --- the release

    def values(self, **changes: Any) -> dict[str, Any]:
        """What the suites install with: quick learning, a volume, the images of this checkout."""
        controller = _image(self.cluster.controller_image)
        # on a cluster of somebody else, of its default class or of the one that is named
        storage = _STORAGE if self.cluster.ours else os.environ.get(STORAGE_VARIABLE, "")
        values: dict[str, Any] = {
            "controller": {
                "image": controller,
                "learning": {"minConnections": 1, "minSeconds": 2, "quietSeconds": 5},
                "persistence": {"storageClass": storage, "size": "1Gi"},
            },
            "sidecar": {"image": _image(self.cluster.sidecar_image)},
        }
        return values | changes

    def install(self) -> None:
        """``helm install``, as the documentation says."""
        if self.cluster.ours:  # on another one we have no directory of a node
            self._volume()
        self._helm("install", self.values(), "--create-namespace")

    def upgrade(self, values: dict[str, Any]) -> None:
        """``helm upgrade`` to other values; returns when everything of it runs. The port forward ends with it."""
        self._helm("upgrade", values)
        self._alone()

    def roll_back(self, revision: int) -> None:
        """``helm rollback``."""
        self._run("rollback", "hedgerow", str(revision), "--namespace", SYSTEM, "--wait", "--timeout", "300s")
        self._alone()

    def _alone(self) -> None:
        """Wait until the pods of before are gone: an injector that ends still answers on connections that it has."""

        def ending() -> list[str]:
            pods = self.cluster.request("GET", f"/api/v1/namespaces/{SYSTEM}/pods")["items"]
            return [pod["metadata"]["name"] for pod in pods if "deletionTimestamp" in pod["metadata"]]

        until(lambda: not ending(), "the pods of the release before gone")

    def uninstall(self) -> None:
        """``helm uninstall``, and wait until what it deletes is gone."""
        self.disconnect()
        self._run("uninstall", "hedgerow", "--namespace", SYSTEM, "--wait", "--timeout", "300s")

    def _helm(self, verb: str, values: dict[str, Any], *flags: str) -> None:
        common = ["--namespace", SYSTEM, "--wait", "--timeout", "300s", "--values", "-"]
        self._run(verb, "hedgerow", str(CHART), *common, *flags, stdin=yaml.safe_dump(values))

    def _run(self, *words: str, stdin: str = "") -> None:
        try:
            self.cluster.helm(*words, stdin=stdin, seconds=320)
        except Exception as error:
            raise AssertionError(f"{error}\n{self.state()}") from error

    def _volume(self) -> None:
        place = self._directory / "state"
        place.mkdir(mode=0o770)
        shutil.chown(place, _UID, _UID)
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "hedgerow-state"},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": _STORAGE,
                "hostPath": {"path": str(place), "type": "Directory"},
            },
        }
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(volume))

    def state(self) -> str:
        """What there is to say when something does not come about."""
        kubectl = self.cluster.kubectl
        said = [kubectl("get", "pods", "--all-namespaces", "-o", "wide", check=False)]
        said.append(kubectl("-n", SYSTEM, "get", "events", "--sort-by=.lastTimestamp", check=False)[-4000:])
        said += [
            kubectl("-n", SYSTEM, "logs", f"deployment/hedgerow-{name}", "--tail=40", check=False)
            for name in ("controller", "injector")
        ]
        return "\n".join(said)

    # --- the web API

    def connect(self) -> None:
        """Forward a port to the controller's page, and take the operator's token, as NOTES.txt says."""
        self.disconnect()
        pod = "deployment/hedgerow-controller"
        self._token = self.cluster.kubectl("-n", SYSTEM, "exec", pod, "--", "cat", TOKEN).strip()
        log = self._directory / "port-forward.log"
        log.unlink(missing_ok=True)
        command = [self.cluster.path_of("kubectl"), "-n", SYSTEM, "port-forward", pod, ":8080"]
        self._forward = Program("kubectl port-forward", command, log, self.cluster.environment)
        self._forward.start()

        def port() -> str:
            found = re.search(r"127\.0\.0\.1:(\d+) ->", log.read_text()) if log.exists() else None
            return found[1] if found else ""

        self._forward.until(port, "a forwarded port")
        self._url = f"http://127.0.0.1:{port()}/api/v1"

    def disconnect(self) -> None:
        if self._forward is not None:
            self._forward.stop()
            self._forward = None

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One request of the operator's.

        :raises AssertionError: with what the controller said, when it refused
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, method=method)
        request.add_header("Authorization", f"Bearer {self._token}")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from None

    def segmentation(self, namespace: str, **spec: str) -> None:
        """Set a namespace's mode as people do on Kubernetes; returns when the controller says that it holds."""
        body = {
            "apiVersion": "hedgerow.dev/v1alpha1",
            "kind": "SegmentationMode",
            "metadata": {"name": "all", "namespace": namespace},
            "spec": {**spec, "owner": "suite", "reason": "the test's next step"},
        }
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(body))
        path = f"/apis/hedgerow.dev/v1alpha1/namespaces/{namespace}/segmentationmodes/all"

        def holds() -> bool:
            found = self.cluster.request("GET", path)
            status, generation = found.get("status", {}), found["metadata"]["generation"]
            return status.get("observedGeneration") == generation and status.get("state") == "Active"

        until(holds, f"the SegmentationMode of {namespace} to hold")

    def edges(self) -> dict[str, dict[str, Any]]:
        """The graph's edges by their id."""
        return {each["id"]: each for each in self.call("GET", "/graph")["edges"]}

    def until_edges(self, wanted: Iterator[str] | set[str], state: str, seconds: float = 240.0) -> None:
        """Wait until all of ``wanted`` are in a state of the learner's."""
        names = set(wanted)

        def missing() -> set[str]:
            found = self.edges()
            return {name for name in names if found.get(name, {}).get("state") != state}

        try:
            until(lambda: not missing(), f"edges to be {state}", seconds=seconds)
        except Exception as error:
            shown = {name: self.edges().get(name) for name in missing()}
            raise AssertionError(f"{error}\n{json.dumps(shown, indent=1)}\n{self.state()}") from None


def _image(reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"}


@contextlib.contextmanager
def hedgerow(cluster: Cluster, directory: Path) -> Iterator[Hedgerow]:
    """Install it, and take it away afterwards."""
    installed = Hedgerow(cluster, directory)
    installed.install()
    try:
        installed.connect()
        yield installed
    finally:
        installed.disconnect()
        cluster.helm("uninstall", "hedgerow", "-n", SYSTEM, check=False)
        if cluster.ours:
            cluster.kubectl("delete", "pv", "hedgerow-state", "--wait=false", check=False)
