"""Somebody else's mutating webhook, asked after ours."""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from controller.kube.webhook_keys import make
from e2e.apiserver.injector import HOOKS, create, names_of, pod
from e2e.harness.apiserver import ApiServer
from e2e.harness.programs import until


class LateComer:
    """Another mutating webhook, asked after ours: it puts a container with a probe at the end and one at the front."""

    def __init__(self, apiserver: ApiServer, namespace: str) -> None:
        self._apiserver = apiserver
        self._namespace = namespace

    def __enter__(self) -> None:
        name = f"late.{self._namespace}.svc"
        pair = make(name, time.time(), 3600)
        path = f"/api/v1/namespaces/{self._namespace}/services"
        body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "late"}, "spec": {"ports": [{"port": 443}]}}
        self._address = self._apiserver.request("POST", path, body)["spec"]["clusterIP"]
        self._ip("add")
        self._server = http.server.ThreadingHTTPServer((self._address, 443), _Handler)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            for file, content in (("c", pair.certificate), ("k", pair.key)):
                Path(folder, file).write_bytes(content)
            tls.load_cert_chain(Path(folder, "c"), Path(folder, "k"))
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        hook = {
            "name": "late.example.com",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "reinvocationPolicy": "Never",
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self._namespace}},
            "clientConfig": {
                "service": {"name": "late", "namespace": self._namespace, "path": "/"},
                "caBundle": base64.b64encode(pair.authority).decode(),
            },
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        }
        configuration = {"metadata": {"name": "zz-late"}, "webhooks": [hook]}
        self._apiserver.request("POST", HOOKS, configuration)

        def both() -> bool:
            made = create(self._apiserver, self._namespace, pod("first"), dry_run=True)
            return "late" in names_of(made, "containers") and "hedgerow-sidecar" in names_of(made)

        until(both, "both webhooks asked")

    def __exit__(self, *_: object) -> None:
        self._apiserver.request("DELETE", f"{HOOKS}/zz-late")
        self._server.shutdown()
        self._server.server_close()
        self._ip("del")

    def _ip(self, verb: str) -> None:
        subprocess.run(["ip", "address", verb, f"{self._address}/32", "dev", "lo"], check=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))["request"]
        late = {"name": "late", "image": "none.example/late:1", "livenessProbe": {"httpGet": {"path": "/", "port": 7}}}
        first = {"name": "first", "image": "none.example/first:1"}
        patch = [{"op": "add", "path": "/spec/containers/-", "value": late}]
        if request["object"]["spec"].get("initContainers"):
            patch.append({"op": "add", "path": "/spec/initContainers/0", "value": first})
        encoded = base64.b64encode(json.dumps(patch).encode()).decode()
        response = {"uid": request["uid"], "allowed": True, "patchType": "JSONPatch", "patch": encoded}
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        body = json.dumps(review).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""
