"""Our side of the comparison: a controller and sidecars as they are deployed, each a process of its own command.

Mode ``enforce`` with strict mutual TLS; what may pass is allowed by overrides made through the web API. What a lane
can not do yet is found out by asking for it, so that a measure is skipped with what was answered, or taken.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.dataplane.identity import NAMESPACE, TRUST_DOMAIN
from bench.dataplane.interpreter import Interpreter
from bench.dataplane.launch import BenchFailed, Program, run, until
from bench.dataplane.load import DENIED_PATH, GRPC_PATH, PATH
from bench.dataplane.measures import Lane
from bench.dataplane.network import (
    CONTROLLER_ADDRESS,
    FORBIDDEN_PORT,
    GRPC_PORT,
    HTTP_PORT,
    IMPOSTOR_ADDRESS,
    INSPECT_PORT,
    STREAM_PORT,
    Bed,
    Namespace,
)
from bench.dataplane.pairs import Pair
from certs.ca import CertificateAuthority
from certs.ca_files import load_authority
from hedgerow.local import views
from sidecar.dataplane.settings import ALPN

PORTS = {Lane.STREAM: STREAM_PORT, Lane.GRPC: GRPC_PORT, Lane.HTTP: HTTP_PORT, Lane.INSPECT: INSPECT_PORT}
IMPOSTOR_PORT = 8443
_APP_PROTOCOLS = {Lane.STREAM: "tcp", Lane.GRPC: "grpc", Lane.HTTP: "http", Lane.INSPECT: "kubernetes.io/h2c"}
#: Seconds in which what was asked has to be reported: sidecars do so every second.
_SEEN = 10.0
#: The settings that turn telemetry off.
SILENCE = {"telemetry": "off"}
_REASON = "x-hedgerow-reason"
_UID = 1337
_ROOT = Path(__file__).parents[2]
_WEB = "127.0.0.1:8080"
_API = f"http://{_WEB}/api/v1"


class Refused(Exception):
    """The web API said no; the text is its own."""


class Mesh:
    """One controller, and the sidecars under it.

    :param beds: where its sidecars will be
    :param interpreter: what they run with
    """

    def __init__(
        self, folder: Path, beds: Sequence[Bed], environment: Mapping[str, str], interpreter: Interpreter
    ) -> None:
        self.folder = folder
        folder.mkdir(mode=0o755)
        self._environment = dict(environment)
        self._python = interpreter.command
        if interpreter.layers is not None:  # what is not in the packages is this checkout
            self._environment |= {"PYTHONPATH": str(_ROOT)}
        script = "\n".join([interpreter.mounts, views.infrastructure_script(other_users=True)])
        self._view = asyncio.run(views.make_view(script))
        inventory = folder / "inventory.yaml"
        inventory.write_text(yaml.safe_dump(_inventory(beds)))
        config = folder / "controller.yaml"
        self._state = folder / "controller"
        self._state.mkdir(mode=0o700)
        settings = {
            "state_dir": str(self._state),
            "inventory": str(inventory),
            "trust_domain": TRUST_DOMAIN,
            "grpc_listen": f"{CONTROLLER_ADDRESS}:15012",
            "issuer_listen": f"{CONTROLLER_ADDRESS}:15013",
            "web_listen": _WEB,
            "log_level": "warning",
        }
        config.write_text(yaml.safe_dump(settings))
        argv = [sys.executable, "-P", "-m", "controller", "--config", str(config)]
        self.controller = Program("the controller", argv, folder / "controller.log")
        until(_controller_ready, "the controller to be ready", self.controller, seconds=60)
        bundle = folder / "trust-bundle.pem"
        shutil.copyfile(self._state / "trust-bundle.pem", bundle)
        bundle.chmod(0o644)

    @property
    def authority(self) -> CertificateAuthority:
        """The authority that it signs with, for the peers' certificates."""
        found = load_authority(self._state / "ca")
        assert found is not None
        return found

    @property
    def view(self) -> str:
        """The mount namespace of its sidecars."""
        return self._view.path

    def close(self) -> None:
        self.controller.stop()
        self._view.close()

    # --- the web API

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """:raises Refused: when the API refuses"""
        token = (self._state / "operator.token").read_text().strip()
        request = urllib.request.Request(
            _API + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=70) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(f"{method} {path}: {error.code} {error.read().decode(errors='replace')[:300]}") from None

    def enforce(self) -> None:
        """Close the namespace, and allow what the loads need and nothing else.

        Once before there are sidecars: what they are given first is what holds.
        """
        asked = {"namespace": NAMESPACE, "mode": "enforce", "inbound_tls": "strict"}
        self.call("POST", "/modes", asked | {"owner": "bench", "reason": "policy is on"})
        for lane in (Lane.STREAM, Lane.GRPC):
            self.allow("server", PORTS[lane])
        self.allow("impostor", IMPOSTOR_PORT)

    def allow(self, destination: str, port: int, operation: str = "") -> None:
        """:raises Refused: when the API refuses"""
        asked: dict[str, Any] = {
            "effect": "allow",
            "from": f"{NAMESPACE}/client",
            "to": f"{NAMESPACE}/{destination}",
            "port": port,
            "owner": "bench",
            "reason": "a load needs it",
            "expires_in": 86400,
            "wait": 20,
        }
        if operation:
            asked["operations"] = [operation]
        if not self.call("POST", "/overrides", asked)["pushed"]:
            raise BenchFailed(f"the sidecars did not take the rule for port {port} within 20 s")

    def reported(self, port: int) -> list[dict[str, Any]]:
        """The flows to the server on ``port`` that sidecars have reported."""
        flows: list[dict[str, Any]] = self.call("GET", "/flows?limit=1000")["flows"]
        return [flow for flow in flows if flow["destination"] == f"{NAMESPACE}/server" and flow["port"] == port]

    # --- sidecars

    def pair(self, name: str, bed: Bed, *, settings: Mapping[str, Any] | None = None, profile: bool = False) -> Pair:
        """Start two sidecars in a bed, as its client's and its server's.

        :param settings: of both ``sidecar.yaml``, beside what is needed
        :param profile: run them under the sampler of :mod:`bench.dataplane.sampler`
        """
        client, server = (
            self._sidecar(name, workload, namespace, bed, settings or {}, profile)
            for workload, namespace in (("client", bed.client), ("server", bed.server))
        )
        bed.track_briefly()
        return Pair(
            name,
            bed,
            {lane: (bed.server.address, port) for lane, port in PORTS.items()},
            (client,),
            (server,),
            tls=(bed.server.address, STREAM_PORT),
            alpn=(ALPN,),
            impostor=(IMPOSTOR_ADDRESS, IMPOSTOR_PORT),
        )

    def _sidecar(
        self, name: str, workload: str, at: Namespace, bed: Bed, settings: Mapping[str, Any], profile: bool
    ) -> Program:
        folder = self.folder / f"{name}-{workload}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o755)
        state = folder / "state"
        state.mkdir(mode=0o700)
        instance = f"{workload}-{bed.number}"
        token = state / "join-token"
        asked = {"workload": f"{NAMESPACE}/{workload}", "instance": instance, "expires_in": 300}
        token.write_text(self.call("POST", "/join-tokens", asked)["token"])
        token.chmod(0o600)
        for path in (state, token):
            os.chown(path, _UID, _UID)
        whole = {
            "instance": instance,
            "controller": f"{CONTROLLER_ADDRESS}:15012",
            "issuer": f"{CONTROLLER_ADDRESS}:15013",
            "trust_domain": TRUST_DOMAIN,
            "trust_bundle": str(self.folder / "trust-bundle.pem"),
            "join_token_file": str(token),
            "state_dir": str(state),
            "addresses": [at.address],
            "uid": _UID,
            "opaque_ports": [STREAM_PORT],
            **settings,
        }
        config = folder / "sidecar.yaml"
        config.write_text(yaml.safe_dump(whole))
        config.chmod(0o644)
        run([*at.enter(), sys.executable, "-P", "-m", "sidecar", "capture", "--config", str(config)])
        module = ["bench.dataplane.sampler", str(state / "profile.json")] if profile else ["sidecar"]
        environment = self._environment
        if profile:
            environment = environment | {"PYTHONPATH": str(_ROOT)}
        program = Program(
            f"{name}-{workload}",
            [*at.enter(mount=self._view.path, uid=_UID), self._python, "-P", "-m", *module, "--config", str(config)],
            folder / "sidecar.log",
            environment,
        )
        until(lambda: _ready(at), f"{program.name} to be ready", program, seconds=60)
        return program

    def profile_of(self, name: str, workload: str) -> Path:
        """Where a profiled sidecar writes when it ends."""
        return self.folder / f"{name}-{workload}" / "state" / "profile.json"


def prove(mesh: Mesh, pair: Pair) -> None:
    """Policy and telemetry are on: what no rule allows gets no answer, and both ends report what passed.

    :raises BenchFailed: when it is otherwise
    """
    status = fetch(pair, Lane.STREAM, PATH, front=(pair.bed.server.address, FORBIDDEN_PORT))
    if status:
        raise BenchFailed(f"{pair.name}: a connection that no rule allows brought status {status}")

    def both() -> bool:
        reporters = {flow["reporter"] for flow in mesh.reported(STREAM_PORT) if flow["verdict"] == "allow"}
        return _instances(pair).keys() <= reporters

    until(both, f"both ends of {pair.name} to report", mesh.controller, *pair.programs)


def prove_silent(mesh: Mesh, pair: Pair) -> None:
    """Nothing that passed through ``pair`` was reported, or is kept for a report.

    :raises BenchFailed: when it is otherwise
    """
    names = _instances(pair)
    told = {flow["reporter"] for flow in mesh.reported(STREAM_PORT)} & set(names)
    kept = [name for name, at in names.items() if json.loads(_page(at, "/stats"))["flows"] is not None]
    if told or kept:
        raise BenchFailed(f"{pair.name}: telemetry is off, and {', '.join(sorted({*told, *kept}))} reports")


def why_not(mesh: Mesh, lane: Lane, pair: Pair) -> str:
    """Why ``lane`` does not do yet what is measured of it; empty when it does.

    It asks for it and looks: a rule with an operation has to be taken, let that operation through and refuse another
    with a reason; both have to be reported by name; and the inspection engine has to be where it is wanted alone.
    """
    _, port = pair.fronts[lane]
    if lane is Lane.STREAM:
        return ""
    if lane is Lane.GRPC:
        # the rule is about the port, so calls are observed beside their bytes, which is all that Envoy does with them
        status = fetch(pair, lane, GRPC_PATH, post=True)
        if status != 200:
            return f"a call gave status {status}, not 200"
        return _unseen(mesh, pair, port, {(f"POST {GRPC_PATH}", "allow")}) or _wrong_engine(pair, lane)
    rule = f"GET {PATH}"
    try:
        mesh.allow("server", port, rule)
    except Refused as refusal:
        return f"the web API takes no rule with operations ({refusal})"
    (allowed, _), (denied, reason) = ask(pair, lane, PATH), ask(pair, lane, DENIED_PATH)
    if (allowed, denied) != (200, 403):
        return f"with a rule for {rule}, it gave {allowed} and GET {DENIED_PATH} {denied}, and not 200 and 403"
    if not reason:
        return f"the refusal of GET {DENIED_PATH} has no {_REASON}, so that it is not known whose it is"
    wanted = {(rule, "allow"), (f"GET {DENIED_PATH}", "deny")}
    return _unseen(mesh, pair, port, wanted) or _wrong_engine(pair, lane)


def ask(
    pair: Pair, lane: Lane, path: str, *, post: bool = False, front: tuple[str, int] | None = None
) -> tuple[int, str]:
    """The status of one request through a pair, and the reason that a sidecar of ours gave for refusing it.

    :returns: status 0 when no answer came
    """
    host, port = front or pair.fronts[lane]
    argv = [*pair.bed.client.enter(), "curl", "-s", "-o", "/dev/null", "--max-time", "10"]
    argv += ["-w", f"%{{http_code}} %header{{{_REASON}}}"]
    if lane in (Lane.GRPC, Lane.INSPECT):
        argv.append("--http2-prior-knowledge")
    if post:
        argv += ["-H", "content-type: application/grpc", "-H", "te: trailers", "--data-binary", "message"]
    # a refusal is an answer here, whatever curl thinks of it
    said = run(["sh", "-c", '"$@" || true', "curl", *argv, f"http://{host}:{port}{path}"])
    status, _, reason = said.partition(" ")
    return int(status or 0), reason


def fetch(pair: Pair, lane: Lane, path: str, *, post: bool = False, front: tuple[str, int] | None = None) -> int:
    """The status of one request through a pair; 0 when no answer came."""
    return ask(pair, lane, path, post=post, front=front)[0]


def _instances(pair: Pair) -> dict[str, Namespace]:
    """Our replicas in a pair's bed, and where they are."""
    ends = (("client", pair.bed.client), ("server", pair.bed.server))
    return {f"{workload}-{pair.bed.number}": at for workload, at in ends}


def _unseen(mesh: Mesh, pair: Pair, port: int, wanted: set[tuple[str, str]]) -> str:
    """Which of these operations and verdicts the server's sidecar has not reported; empty when it has all."""
    reporter = f"server-{pair.bed.number}"

    def missing() -> set[tuple[str, str]]:
        flows = [flow for flow in mesh.reported(port) if flow["reporter"] == reporter and flow["requests"] > 0]
        return wanted - {(flow["operation"], flow["verdict"]) for flow in flows}

    try:
        until(lambda: not missing(), "operations", *pair.programs, seconds=_SEEN)
    except BenchFailed:
        text = ", ".join(f"{operation} ({verdict})" for operation, verdict in sorted(missing()))
        return f"the server's sidecar has not reported within {_SEEN:g} s: {text}"
    return ""


def _wrong_engine(pair: Pair, lane: Lane) -> str:
    """Whether the server's sidecar has loaded mitmproxy where it was to do without, or the other way round."""
    loaded = json.loads(_page(pair.bed.server, "/memory"))["inspect_loaded"]
    if loaded is (lane is Lane.INSPECT):
        return ""
    return f"the server's sidecar has {'loaded' if loaded else 'not loaded'} the inspection engine for this load"


def _page(at: Namespace, path: str) -> bytes:
    """A page of a sidecar's administration."""
    with at.connect(("127.0.0.1", 15000), 5.0) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            head, _, body = answer.read().partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise BenchFailed(f"the sidecar in {at.name} answered for {path}: {head.decode(errors='replace')[:200]}")
    return body


def _controller_ready() -> bool:
    try:
        with urllib.request.urlopen(f"http://{_WEB}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _ready(at: Namespace) -> bool:
    try:
        with at.connect(("127.0.0.1", 15021), 2.0) as connection:
            connection.sendall(b"GET /healthz/ready HTTP/1.1\r\nHost: bench\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


def _inventory(beds: Sequence[Bed]) -> dict[str, Any]:
    ports = [{"name": str(lane), "port": port, "appProtocol": _APP_PROTOCOLS[lane]} for lane, port in PORTS.items()]
    workloads = (("client", []), ("server", ports), ("impostor", [{"name": "tcp", "port": IMPOSTOR_PORT}]))
    instances = [
        {"name": f"{workload}-{bed.number}", "workload": f"{NAMESPACE}/{workload}", "address": namespace.address}
        for bed in beds
        for workload, namespace in (("client", bed.client), ("server", bed.server))
    ]
    impostor = {"name": "impostor-1", "workload": f"{NAMESPACE}/impostor", "address": IMPOSTOR_ADDRESS}
    return {
        "apiVersion": "hedgerow.dev/v1alpha1",
        "kind": "Inventory",
        "namespaces": [{"name": NAMESPACE}],
        "workloads": [{"namespace": NAMESPACE, "name": name, "ports": given} for name, given in workloads],
        "instances": [*instances, impostor],
        "services": [],
    }
