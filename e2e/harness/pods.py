"""Small pods for tests: Python programs in our own image, which every cluster of a suite can run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from e2e.harness.cluster import Cluster

#: What Pod Security's ``restricted`` level asks for.
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
#: Does nothing until it is told to end.
IDLE = "import signal; signal.sigwait({signal.SIGTERM, signal.SIGINT})"
#: Answers HTTP requests on 8080 with its own name.
SERVER = """
import http.server, socket
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = socket.gethostname().encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""


def python_pod(
    name: str, program: str, image: str, *, labels: Mapping[str, str] | None = None, port: int = 0, **spec: Any
) -> dict[str, Any]:
    """A pod that runs a Python program and nothing that it does not need.

    :param port: what it listens on, for its readiness; 0 when it listens on none
    :param spec: more of the pod's spec
    """
    container: dict[str, Any] = {
        "name": "app",
        "image": image,
        "command": ["python", "-c", program],
        "securityContext": RESTRICTED,
    }
    if port:
        container["readinessProbe"] = {"tcpSocket": {"port": port}, "periodSeconds": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels or {"app": name})},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container], **spec},
    }


def service(name: str, port: int, target: int, selector: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A Service of type ClusterIP."""
    ports = [{"port": port, "targetPort": target}]
    spec = {"selector": dict(selector or {"app": name}), "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def apply(cluster: Cluster, namespace: str, *objects: Mapping[str, Any]) -> None:
    """Apply objects to a namespace.

    :raises CommandFailed: when the API server refuses one
    """
    listed = {"apiVersion": "v1", "kind": "List", "items": objects}
    cluster.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(listed))


def wait_ready(cluster: Cluster, namespace: str, *pods: str, seconds: int = 200) -> None:
    """Wait until pods are Ready.

    :raises CommandFailed: when they are not in time, with what is known of them
    """
    names = [f"pod/{name}" for name in pods]
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", f"--timeout={seconds}s", *names)


def execute(
    cluster: Cluster, namespace: str, pod: str, *command: str, container: str = "app", check: bool = True
) -> str:
    """Run a command in a running pod; parameters as for :meth:`Tools.kubectl`."""
    return cluster.kubectl("-n", namespace, "exec", pod, "-c", container, "--", *command, check=check)


def get(cluster: Cluster, namespace: str, pod: str, url: str, *, seconds: float = 3.0, container: str = "app") -> str:
    """What a pod gets from an URL: the body, or ``failed: …`` when it cannot."""
    program = f"""
import urllib.request
try:
    print(urllib.request.urlopen({url!r}, timeout={seconds}).read().decode(), end="")
except OSError as error:
    print("failed:", getattr(error, "reason", error), end="")
"""
    return execute(cluster, namespace, pod, "python", "-c", program, container=container)


def logs(cluster: Cluster, namespace: str, pod: str, *, container: str = "") -> str:
    """What a pod wrote."""
    options = ["-c", container] if container else []
    return cluster.kubectl("-n", namespace, "logs", pod, *options)
