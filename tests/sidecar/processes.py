"""Sidecar processes in explicit mode on loopback, with a controller that speaks the real protocol."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from pathlib import Path

import yaml

from certs.spiffe import SpiffeId
from graph.directory import Destination, Endpoint
from graph.model import PortRange, Rule, Selector, WorkloadRef
from hedgerow.local.views import infrastructure_script
from sidecar.settings import Settings
from tests.ports import free_port
from tests.sidecar.fake_controller import TRUST_DOMAIN, WORKLOAD, FakeController, snapshot

ROOT = Path(__file__).parents[2]
FRONT = WorkloadRef("shop", "front")
FRONT_ADDRESS, CART_ADDRESS, REPLICA_ADDRESS = "127.0.77.3", "127.0.77.2", "127.0.77.4"


class Process:
    """One sidecar process with its files."""

    def __init__(
        self, controller: FakeController, directory: Path, workload: WorkloadRef, address: str, number=1, **settings
    ):
        self.instance = f"{workload.name}-{number}"
        self.directory = directory / self.instance
        self.directory.mkdir(exist_ok=True)
        self.token = self.directory / "join-token"
        bundle = self.directory / "trust-bundle.pem"
        bundle.write_text(controller.authority.bundle().to_pem())
        identity = SpiffeId.for_workload(TRUST_DOMAIN, workload.namespace, "default", workload.name)
        token = f"token-{workload.name}" if number == 1 else f"token-{self.instance}"
        controller.tokens[token] = (identity, self.instance)
        self.token.write_text(token)
        self.ready_port = free_port()
        self.document = {
            "instance": self.instance,
            "controller": str(controller.controller),
            "issuer": str(controller.issuer),
            "trust_domain": TRUST_DOMAIN,
            "trust_bundle": str(bundle),
            "join_token_file": str(self.token),
            "state_dir": str(self.directory / "state"),
            "addresses": [address],
            "capture": "explicit",
            "ready_listen": f"127.0.0.1:{self.ready_port}",
            "report_interval": 0.05,
            "drain_seconds": 0.5,
        } | settings
        self.config = self.directory / "sidecar.yaml"
        self.log = self.directory / "log"
        self.child = None
        self.user = 0
        self.arguments = []

    async def __aenter__(self):
        self.configure()
        self.child = await self.start()
        return self

    def configure(self, **changes):
        """Change settings, for the next start."""
        self.document |= changes
        self.config.write_text(yaml.safe_dump(self.document))
        Settings.load(self.config)  # a mistake of the test is named here

    async def start(self):
        """One more process of these settings."""
        command = [sys.executable, "-m", "sidecar", "--config", str(self.config), *self.arguments]
        if self.user:  # in a view of its own, because the interpreter may stand below a closed home directory
            become = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--", *command]
            script = infrastructure_script(other_users=True) + "\nexec " + shlex.join(become)
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", script]
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=log, stderr=log)

    async def __aexit__(self, *_):
        if self.child.returncode is None:
            self.child.kill()
            await self.child.wait()

    async def get(self, path, method="GET"):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ready_port)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        response = (await asyncio.wait_for(reader.read(), 10)).decode()
        writer.close()
        await writer.wait_closed()
        head, _, body = response.partition("\r\n\r\n")
        return int(head.split()[1]), body

    async def ready(self):
        async with asyncio.timeout(90):
            while True:
                assert self.child.returncode is None, self.log.read_text()
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    status, _ = await self.get("/healthz/ready")
                    if status == 200:
                        return
                await asyncio.sleep(0.05)

    async def restart(self):
        """Start another one beside it, which takes over; the exit code of the one before."""
        before, self.child = self.child, await self.start()
        try:
            return await asyncio.wait_for(before.wait(), 90)
        finally:
            if before.returncode is None:
                before.kill()
                await before.wait()

    async def terminate(self):
        self.child.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.child.wait(), 20)


async def echo(reader, writer):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def ask(port, text=b"hello"):
    """What comes back for ``text``; empty when the connection is refused."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionResetError:
        return b""  # it was taken, and refused before we had looked
    try:
        writer.write(text)
        with contextlib.suppress(OSError):  # it may have been refused meanwhile, which is no ConnectionError here
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


class Mesh:
    """front → cart, each with its sidecar process, and an echo service behind cart's."""

    def __init__(self, controller, directory):
        self.controller = controller
        self.service = free_port(CART_ADDRESS)
        self.entrance = free_port()
        self.application = free_port()
        out = {"listen": f"127.0.0.1:{self.entrance}", "destination": f"{CART_ADDRESS}:{self.service}"}
        into = {"listen": f"{CART_ADDRESS}:{self.service}", "application": f"127.0.0.1:{self.application}"}
        self.front = Process(controller, directory, FRONT, FRONT_ADDRESS, explicit={"outbound": [out]})
        self.cart = Process(controller, directory, WORKLOAD, CART_ADDRESS, explicit={"inbound": [into]})
        self._answer(CART_ADDRESS)
        self.rule = Rule("learned/1", Selector.of(FRONT), Selector.of(WORKLOAD), (PortRange.single(self.service),))

    def _answer(self, *addresses):
        identity = str(SpiffeId.for_workload(TRUST_DOMAIN, "shop", "default", "cart"))
        endpoints = tuple(
            Endpoint(address, self.service, f"cart-{number}", identity)
            for number, address in enumerate(addresses, start=1)
        )
        self.controller.answer(
            Destination(CART_ADDRESS, self.service, workload=WORKLOAD, meshed=True, endpoints=endpoints)
        )

    def replica(self, directory):
        """A second sidecar of cart, before the same application."""
        into = {"listen": f"{REPLICA_ADDRESS}:{self.service}", "application": f"127.0.0.1:{self.application}"}
        self._answer(CART_ADDRESS, REPLICA_ADDRESS)
        return Process(self.controller, directory, WORKLOAD, REPLICA_ADDRESS, number=2, explicit={"inbound": [into]})

    def allow(self, version):
        self.controller.push(snapshot(version, self.rule), WORKLOAD)
        self.controller.push(snapshot(version, self.rule, workload=FRONT), FRONT)
