"""Inspected egress in real pods: a host outside that a pod asks for and its namespace permits is read by the pod's
sidecar, for ordinary clients that were told nothing but what the injector mounts; everything else is passed on."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from e2e.cluster.installed import Hedgerow
from e2e.harness.cluster import Cluster
from e2e.harness.pods import IDLE, apply, execute, logs, python_pod, wait_ready
from e2e.harness.programs import until
from tests.sidecar.dataplane.web import WebAuthority

pytestmark = pytest.mark.timeout(600)

PORT = 18443
READ = "GET /v1/{id}"
#: Answers within TLS what it was asked for, each name with its own certificate. On its node's network: not in the mesh.
PARTNER = f"""
import http.server, pathlib, ssl
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = f"{{self.command}} {{self.path}}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
contexts = {{}}
for path in sorted(pathlib.Path("/chains").glob("*.pem")):
    contexts[path.stem] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    contexts[path.stem].load_cert_chain(path)
def choose(sock, name, context):
    sock.context = contexts[(name or "").split(".")[0]]
first = next(iter(contexts.values()))
first.sni_callback = choose
with http.server.ThreadingHTTPServer(("", {PORT}), Answer) as server:
    server.socket = first.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()
"""
#: An ordinary client: default trust, the name's own address. Prints whose certificate it saw, and what it got.
CLIENT = """
import http.client, ssl, sys
name, port, *paths = sys.argv[1:]
connection = http.client.HTTPSConnection(name, int(port), timeout=30, context=ssl.create_default_context())
try:
    connection.connect()
    issuer = dict(pair[0] for pair in connection.sock.getpeercert()["issuer"])
    print(issuer.get("organizationName", issuer["commonName"]))
    for path in paths:
        connection.request("GET", path)
        answer = connection.getresponse()
        print(answer.status, answer.read().decode().strip())
except (OSError, http.client.HTTPException) as error:
    print("refused", type(error).__name__, error)
"""
ROOTS = "/var/run/secrets/hedgerow/roots"
OURS, THEIRS = "Hedgerow", "Test Web Root"


@dataclass(frozen=True, slots=True)
class World:
    """:param permitted: a namespace whose pods may have ``api`` inspected; ``unpermitted``: one where nobody said so"""

    hedgerow: Hedgerow
    outside: str
    permitted: str
    unpermitted: str

    def host(self, name: str) -> str:
        """The name by which everybody finds the partner, at its node's address."""
        return f"{name}.{self.outside}.svc.cluster.local"

    def ask(self, namespace: str, name: str, *paths: str) -> list[str]:
        """What a pod's program saw."""
        command = ["python", "-c", CLIENT, self.host(name), str(PORT), *paths]
        return execute(self.hedgerow.cluster, namespace, "client", *command).splitlines()

    def state(self, namespace: str) -> str:
        """What there is to say when it came otherwise."""
        cluster = self.hedgerow.cluster
        look = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:15021/stats').read().decode())"
        stats = execute(cluster, namespace, "client", "python", "-c", look, container="hedgerow-sidecar", check=False)
        said = logs(cluster, namespace, "client", container="hedgerow-sidecar")
        return f"{stats}\n{said}\n{self.hedgerow.state()}"


@pytest.fixture(scope="module")
def world(cluster: Cluster, installed: Hedgerow) -> Iterator[World]:
    outside = cluster.create_namespace()
    meshed = [cluster.create_namespace({"hedgerow.dev/injection": "enabled"}) for _ in range(2)]
    made = World(installed, outside, *meshed)
    try:
        authority = WebAuthority()
        _partner(made, authority)
        cluster.kubectl("annotate", "namespace", made.permitted, f"hedgerow.dev/inspectable-hosts={made.host('api')}")
        for namespace in meshed:
            _client(made, namespace, authority)
        for namespace in meshed:
            wait_ready(cluster, namespace, "client")
        yield made
    except Exception as error:
        raise AssertionError(f"{error}\n{installed.state()}") from error
    finally:
        for namespace in (outside, *meshed):
            cluster.delete_namespace(namespace)


def _partner(world: World, authority: WebAuthority) -> None:
    chains = {f"{name}.pem": authority.chain(world.host(name)) for name in ("api", "www")}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "chains"},
        "data": {name: base64.b64encode(chain).decode() for name, chain in chains.items()},
    }
    volumes = [{"name": "chains", "secret": {"secretName": "chains"}}]
    cluster = world.hedgerow.cluster
    pod = python_pod("partner", PARTNER, cluster.controller_image, port=PORT, hostNetwork=True, volumes=volumes)
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "chains", "mountPath": "/chains", "readOnly": True}]
    apply(cluster, world.outside, secret, pod, *(_headless(name) for name in ("api", "www")))
    wait_ready(cluster, world.outside, "partner")


def _headless(name: str) -> dict[str, Any]:
    """A name for the partner's own address; there is no service's address in between."""
    spec = {"clusterIP": "None", "selector": {"app": "partner"}, "ports": [{"port": PORT}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def _client(world: World, namespace: str, authority: WebAuthority) -> None:
    """A pod that asks for ``api``; its sidecar is told of the authority that the partner's certificates lead to."""
    cluster = world.hedgerow.cluster
    roots = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "web"},
        "data": {"ca.crt": authority.pem.decode()},
    }
    user = {"runAsUser": 10001, "runAsGroup": 10001}  # our own image's user is the sidecar's, which is not captured
    pod = python_pod("client", IDLE, cluster.controller_image, securityContext=user)
    pod["metadata"]["annotations"] = {
        "hedgerow.dev/inspect-egress": f"{world.host('api')}:{PORT}",
        "hedgerow.dev/egress-roots": "web/ca.crt",
    }
    apply(cluster, namespace, roots, pod)


def flows(world: World, namespace: str, name: str) -> list[dict[str, Any]]:
    """What was reported of a pod's calls to a host."""
    found = world.hedgerow.call("GET", "/flows")["flows"]
    ends = (f"{namespace}/client", f"-/{world.host(name)}")
    return [each for each in found if (each["source"], each["destination"]) == ends]


def test_what_is_asked_of_the_named_host_is_read(world: World) -> None:
    seen = world.ask(world.permitted, "api", "/v1/17", "/v1/18")
    assert seen == [OURS, "200 GET /v1/17", "200 GET /v1/18"], world.state(world.permitted)

    def read() -> bool:
        return sum(each["requests"] for each in flows(world, world.permitted, "api") if each["operation"] == READ) >= 2

    until(read, "the operation in the graph")
    edges = world.hedgerow.edges()
    assert f"{world.permitted}/client->-/{world.host('api')}:{PORT}/TCP" in edges


def test_another_host_behind_the_same_address_is_passed_through(world: World) -> None:
    assert world.ask(world.permitted, "www", "/v1/17") == [THEIRS, "200 GET /v1/17"]
    until(lambda: flows(world, world.permitted, "www"), "the connection in the graph")
    assert {each["operation"] for each in flows(world, world.permitted, "www")} == {""}


def test_where_the_namespace_does_not_permit_it_nothing_is_read_and_everything_works(world: World) -> None:
    assert world.ask(world.unpermitted, "api", "/v1/17") == [THEIRS, "200 GET /v1/17"]
    until(lambda: flows(world, world.unpermitted, "api"), "the connection in the graph")
    assert {each["operation"] for each in flows(world, world.unpermitted, "api")} == {""}
    logs = world.hedgerow.cluster.kubectl("-n", "hedgerow-system", "logs", "deployment/hedgerow-controller")
    assert f"{world.unpermitted}/client: asks to have {world.host('api')}:{PORT} inspected" in logs


def test_an_operation_that_is_denied_is_refused_and_the_rest_goes_on(world: World) -> None:
    """The answer is the sidecar's, before a byte of the request reaches the partner."""
    cluster = world.hedgerow.cluster
    override = {
        "apiVersion": "hedgerow.dev/v1alpha1",
        "kind": "AccessOverride",
        "metadata": {"name": "reads", "namespace": world.permitted},
        "spec": {
            "effect": "deny",
            "from": {"workload": "client"},
            "to": {"host": world.host("api")},
            "port": PORT,
            "operations": ["GET /v2"],
            "owner": "suite",
            "reason": "a test of inspection",
        },
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(override))

    def judged() -> bool:
        seen = world.ask(world.permitted, "api", "/v1/17", "/v2")
        return seen[:2] == [OURS, "200 GET /v1/17"] and seen[2].startswith("403 ")

    until(judged, "the operation to be refused")


def test_the_application_holds_no_key_and_can_not_change_what_it_trusts(world: World) -> None:
    look = f"""
import pathlib
place = pathlib.Path("{ROOTS}")
print(*sorted(path.name for path in place.iterdir()))
print(any("PRIVATE" in path.read_text() for path in place.iterdir()))
try:
    (place / "ca-bundle.pem").write_text("")
except OSError as error:
    print(error.strerror)
print(*(line.split()[1] for line in open("/proc/self/mounts") if "hedgerow" in line.split()[1]))
"""
    cluster = world.hedgerow.cluster
    files, keys, written, mounts = execute(cluster, world.permitted, "client", "python", "-c", look).splitlines()
    assert (files, keys, written) == ("ca-bundle.pem inspection-root.pem", "False", "Read-only file system")
    assert mounts.removeprefix("/var") == ROOTS.removeprefix("/var"), "the one mount of ours; /var/run may be a link"
