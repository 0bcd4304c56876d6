"""A sidecar process in explicit mode: one declared entrance on loopback, an echo service behind it."""

from __future__ import annotations

import contextlib
import errno
import itertools
import shutil
import socket
import socketserver
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.controller.mesh import TRUST_DOMAIN
from tests.hedgerow.served import COMMAND, Served, environment, until

#: Each sidecar has an address of its own, so that no two listen on the same.
_ADDRESSES = itertools.count(2)


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Sidecar:
    """The sidecar of an instance, with its files in ``folder``.

    :param token: written to its join token's file; a new one when None, none when empty
    """

    def __init__(
        self, controller: Served, folder: Path, /, *, token: str | None = None, instance: str = "cart-0", **changes: Any
    ) -> None:
        folder.mkdir()
        self.folder = folder
        self.state_dir = folder / "state"
        self.log = folder / "sidecar.log"
        self.address = f"127.77.9.{next(_ADDRESSES)}"
        self.entrance = free_port(self.address)
        self._ready = free_port(self.address)
        shutil.copy(controller.state_dir / "trust-bundle.pem", folder / "trust-bundle.pem")
        if token is None:
            token = join_token(controller, instance)
        if token:
            (folder / "join-token").write_text(token)
        settings = {
            "instance": instance,
            "controller": controller.grpc,
            "issuer": controller.issuer,
            "trust_domain": TRUST_DOMAIN,
            "trust_bundle": str(folder / "trust-bundle.pem"),
            "join_token_file": str(folder / "join-token"),
            "state_dir": str(self.state_dir),
            "addresses": [self.address],
            "capture": "explicit",
            "explicit": {"inbound": [{"listen": f"{self.address}:{self.entrance}", "application": "127.0.0.1:9"}]},
            "ready_listen": f"{self.address}:{self._ready}",
            "report_interval": 0.1,
        }
        whole = {name: value for name, value in {**settings, **changes}.items() if value is not None}
        self.config = folder / "sidecar.yaml"
        self.config.write_text(yaml.safe_dump(whole))

    def serve(self, application: int) -> None:
        """Begin to serve an application on this port of loopback."""
        settings = yaml.safe_load(self.config.read_text())
        settings["explicit"]["inbound"][0]["application"] = f"127.0.0.1:{application}"
        self.config.write_text(yaml.safe_dump(settings))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it until the block ends; it is ready in the block."""
        with self.started() as process:

            def ready() -> bool:
                assert process.poll() is None, self.log.read_text()
                return self.readiness()[0] == 200

            until(ready, "a sidecar that is ready")
            yield

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run it until the block ends, ready or not; its end is orderly."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [str(COMMAND), "sidecar", "--config", str(self.config)],
                stdout=log, stderr=log, env=environment(), cwd="/",
            )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            code = process.wait(30)
        assert code == 0, self.log.read_text()

    def readiness(self) -> tuple[int, str]:
        """Status and text of its readiness; 0 when nothing answers."""
        try:
            with urllib.request.urlopen(f"http://{self.address}:{self._ready}/healthz/ready", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ask(self, text: bytes = b"hello") -> bytes:
        """What the application behind it answers; empty when the connection is refused or ended."""
        try:
            with socket.create_connection((self.address, self.entrance), 20) as made:
                made.sendall(text)
                made.shutdown(socket.SHUT_WR)
                return made.recv(1024)
        except OSError as error:
            if isinstance(error, ConnectionError) or error.errno == errno.ENOTCONN:  # a reset came before the shutdown
                return b""
            raise


def join_token(controller: Served, instance: str = "cart-0", expires_in: float = 60) -> str:
    asked = {"workload": "shop/cart", "instance": instance, "expires_in": expires_in}
    return str(controller.call("POST", "/join-tokens", asked)["token"])


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(65536):
                self.request.sendall(data)


@contextmanager
def echo_service() -> Iterator[int]:
    """An application; its port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(30)
