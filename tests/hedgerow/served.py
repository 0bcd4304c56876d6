"""A real controller process with sidecars' calls in its graph, for tests of what people see of it.

The controller is started by its command with a configuration file. What sidecars say to it goes over real gRPC with
certificates that it signed for join tokens that it made. Everything here is synchronous, so that one controller can
serve a whole module of tests.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import yaml
from cryptography.x509 import load_der_x509_certificate

from certs.certificate import pem_text
from certs.keys import key_to_pem, make_csr, new_key
from certs.spiffe import CONTROLLER_DNS_NAME
from graph.flow import Flow
from graph.model import Direction, Verdict, WorkloadRef
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from graph.wire.codec import flow_to_message
from tests.controller.mesh import CART, FRONT, INVENTORY, REDIS, TRUST_DOMAIN, flow

ROOT = Path(__file__).parents[2]
#: The command as it is installed beside the interpreter.
COMMAND = Path(sys.executable).parent / "hedgerow"
OUTSIDER = WorkloadRef("-", "192.0.2.7")

_SERVING = re.compile(r"serving: gRPC on (\S+), issuer on (\S+), web on (\S+)")
_CHANNEL = [("grpc.ssl_target_name_override", CONTROLLER_DNS_NAME), ("grpc.use_local_subchannel_pool", 1)]


def until[T](condition: Callable[[], T], what: str, seconds: float = 120.0) -> T:
    """Poll until the condition holds, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.02)
    return found


def configured(folder: Path, **changes: Any) -> Path:
    """Write ``controller.yaml``, and the inventory when there is none, and return the former's path.

    :param changes: settings in place of good ones; None leaves one out
    """
    folder.mkdir(exist_ok=True)
    if not (folder / "inventory.yaml").exists():
        (folder / "inventory.yaml").write_text(INVENTORY)
    config = {
        "state_dir": "state",
        "inventory": "inventory.yaml",
        "trust_domain": TRUST_DOMAIN,
        "grpc_listen": "127.0.0.1:0",
        "issuer_listen": "127.0.0.1:0",
        "web_listen": "127.0.0.1:0",
        "inventory_interval": 0.05,
        "learning": {"min_connections": 3, "min_seconds": 0, "quiet_seconds": 0},
    }
    path = folder / "controller.yaml"
    whole = {name: value for name, value in {**config, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(whole))
    return path


class Served:
    """A controller process on the state in ``folder``."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.log = folder / "controller.log"
        self._changes = changes
        self._process: subprocess.Popen[bytes] | None = None
        self._members: list[Member] = []
        self.grpc = self.issuer = self.url = ""

    def start(self) -> None:
        """Start it, or start it again where it listened before, and wait until it serves."""
        if self.url:  # a restart
            web = self.url.removeprefix("http://")
            self._changes |= {"grpc_listen": self.grpc, "issuer_listen": self.issuer, "web_listen": web}
        config = configured(self.folder, **self._changes)
        begins = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "controller", "--config", str(config)],
                cwd="/",
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

        def serving() -> re.Match[str] | None:
            said = self.log.read_bytes()[begins:].decode()
            assert self.process.poll() is None, said
            return _SERVING.search(said)

        self.grpc, self.issuer, self.url = until(serving, "a controller that serves").groups()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        for member in self._members:
            member.close()
        self._members.clear()
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)

    def says(self, words: str, begins: int = 0) -> str:
        """Wait for a line of its log, from the byte ``begins`` on."""

        def line() -> str:
            text = self.log.read_bytes()[begins:].decode()
            return next((each for each in text.splitlines() if words in each), "")

        return until(line, f"{words!r} in the log")

    @property
    def token_file(self) -> Path:
        return self.state_dir / "operator.token"

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    @property
    def access(self) -> dict[str, str]:
        """The environment in which the command finds it."""
        return {"HEDGEROW_SERVER": self.url, "HEDGEROW_TOKEN_FILE": str(self.token_file)}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the API, apart from our client."""
        request = urllib.request.Request(
            f"{self.url}/api/v1{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from None

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    def edge(self, name: str) -> Any:
        """An edge of the graph; None when there is none of that id."""
        return next((edge for edge in self.get("/graph")["edges"] if edge["id"] == name), None)

    def join(self, workload: str, instance: str) -> Member:
        """Be the sidecar of an instance."""
        asked = {"workload": workload, "instance": instance, "expires_in": 60}
        token = self.call("POST", "/join-tokens", asked)["token"]
        roots = (self.state_dir / "trust-bundle.pem").read_bytes()
        key = new_key()
        with grpc.secure_channel(self.issuer, grpc.ssl_channel_credentials(roots), _CHANNEL) as channel:
            answer = rpc.IssuerStub(channel).Sign(pb.SignRequest(csr_der=make_csr(key), join_token=token), timeout=30)
        chain = pem_text(tuple(answer.chain_der)).encode()
        credentials = grpc.ssl_channel_credentials(roots, key_to_pem(key), chain)
        not_after = load_der_x509_certificate(answer.chain_der[0]).not_valid_after_utc.timestamp()
        member = Member(instance, lambda: grpc.secure_channel(self.grpc, credentials, _CHANNEL), not_after)
        self._members.append(member)
        return member


class Member:
    """A sidecar's end of the controller's services, under its own certificate.

    :param connect: opens a connection with that certificate, which is good until ``not_after``
    """

    def __init__(self, instance: str, connect: Callable[[], grpc.Channel], not_after: float) -> None:
        self.instance = instance
        self.not_after = not_after
        self._connect = connect
        self._channel = connect()
        self._boot_id = f"boot-{instance}-{time.time_ns()}"
        self._sequence = itertools.count(1)
        self._answers: queue.SimpleQueue[pb.PolicyRequest] = queue.SimpleQueue()
        self._watch: Any = None
        self._thread: threading.Thread | None = None
        self.acknowledged = 0
        self.nack = ""

    def reconnect(self) -> None:
        """Go on over a new connection."""
        self._channel.close()
        self._channel = self._connect()

    def report(self, *flows: Flow) -> None:
        """Report flows, and wait for the acknowledgement: they are on disk and in the graph."""
        now = time.time()
        fresh = [replace(each, reporter=self.instance, first_seen=now - 5, last_seen=now) for each in flows]
        batch = pb.FlowBatch(
            boot_id=self._boot_id, sequence=next(self._sequence), flows=[flow_to_message(each) for each in fresh]
        )
        acks = list(rpc.TelemetryStub(self._channel).ReportFlows(iter([batch]), timeout=30))
        assert [ack.sequence for ack in acks] == [batch.sequence]

    def watch(self) -> None:
        """Hold a policy stream open and acknowledge what comes, or refuse it with the text in :attr:`nack`."""
        hello = pb.PolicyHello(boot_id=self._boot_id, software="0.1.0")
        self._answers.put(pb.PolicyRequest(hello=hello))
        self._watch = rpc.PolicyStub(self._channel).Watch(iter(self._answers.get, None))
        self._thread = threading.Thread(target=self._answer, name=f"policy of {self.instance}")
        self._thread.start()
        until(lambda: self.acknowledged or self.nack, "a first policy")

    def _answer(self) -> None:
        try:
            for push in self._watch:
                version = pb.Snapshot.FromString(push.snapshot.payload).version
                if self.nack:
                    said = pb.PolicyNack(nonce=push.nonce, version=self.acknowledged, error=self.nack)
                    self._answers.put(pb.PolicyRequest(nack=said))
                else:
                    self.acknowledged = version
                    self._answers.put(pb.PolicyRequest(ack=pb.PolicyAck(nonce=push.nonce, version=version)))
        except grpc.RpcError:
            return  # cancelled, or the controller has gone

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._thread is not None:
            self._answers.put(None)  # ends the iterator of requests
            self._thread.join(30)
        self._channel.close()


@contextmanager
def served(folder: Path, **changes: Any) -> Iterator[Served]:
    controller = Served(folder, **changes)
    try:
        controller.start()
        yield controller
    finally:
        if controller._process is not None:
            controller.stop()


def learned(source: WorkloadRef = FRONT, destination: WorkloadRef = CART, port: int = 8080, **changes: Any) -> Flow:
    """A flow that a learning mesh sees, often enough to be learned from."""
    return flow(source, destination, port, **changes)


def from_outside() -> Flow:
    """Connections from an address that the inventory does not know: they wait for a person."""
    return flow(
        OUTSIDER, FRONT, 8080, verified=False, source_identity="", connections=4, bytes_sent=10, bytes_received=20
    )


def refused() -> Flow:
    """Connections that were refused."""
    return flow(
        FRONT, REDIS, 6379, verdict=Verdict.DENY, pending=Verdict.DENY, reason="no-rule", connections=2,
        bytes_sent=0, bytes_received=0,
    )  # fmt: skip


def asked(operation: str = "GET /cart/{id}", requests: int = 7, **changes: Any) -> Flow:
    """Requests on the first of the learned edges, as its destination counted them."""
    given = {"connections": 0, "bytes_sent": 0, "bytes_received": 0, "operation": operation, "requests": requests}
    return flow(FRONT, CART, **(given | changes))


def populate(controller: Served) -> dict[str, Member]:
    """Two learned edges, one of them with operations, one that waits for approval, one that was refused; cart's and
    front's sidecars connected."""
    members = {
        name: controller.join(workload, name)
        for workload, name in (("shop/front", "front-0"), ("shop/cart", "cart-0"), ("data/redis", "redis-0"))
    }
    members["cart-0"].report(learned(), learned(CART, REDIS, 6379, direction=Direction.OUTBOUND))
    members["cart-0"].report(
        asked(), asked("DELETE /cart/{id}", 2, verdict=Verdict.DENY, reason="deny-override"), asked("PUT /cart", 3)
    )
    members["front-0"].report(learned(direction=Direction.OUTBOUND), from_outside())
    members["redis-0"].report(learned(CART, REDIS, 6379), refused())
    for name in ("front-0", "cart-0"):
        members[name].watch()
    until(lambda: controller.edge("shop/cart->data/redis:6379/TCP")["state"] == "active", "learning")
    until(lambda: _settled(controller), "the newest policy at every sidecar")
    return members


def _settled(controller: Served) -> bool:
    connected = [each for each in controller.get("/status")["sidecars"] if each["connected"]]
    versions = {name: each["version"] for name, each in controller.get("/policy")["workloads"].items()}
    return all(each["held_version"] == each["pushed_version"] == versions[each["workload"]] for each in connected)


class Ended:
    """What a command said, and its exit code."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.out = done.stdout
        self.err = done.stderr
        assert "Traceback" not in self.out + self.err, self.out + self.err

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process' environment without anything that speaks to the command, then what is given."""
    ours = ("HEDGEROW_", "_HEDGEROW", "COLUMNS", "NO_COLOR", "TERM", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "TERM": "xterm", **(given or {})}


def hedgerow(
    *arguments: str, env: Mapping[str, str] | None = None, argv: Sequence[str] = (str(COMMAND),), cwd: str = "/"
) -> Ended:
    """Run the installed command to its end."""
    assert COMMAND.exists(), f"{COMMAND} is missing: run `make setup`"
    done = subprocess.run(
        [*argv, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment(env), cwd=cwd
    )
    return Ended(done)
