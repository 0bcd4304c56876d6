"""One pod: an application that knows nothing of the mesh, and the sidecar beside it."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from hedgerow.local.description import PlacedPod, PlacedService, fill
from hedgerow.local.errors import CommandFailed, LocalMeshError, NotReady
from hedgerow.local.processes import Completed, Process, python
from hedgerow.local.site import Role, Site

#: How often a condition is looked at again, seconds.
POLL = 0.1


class Pod:
    """A placed pod with its processes.

    :param directory: the pod's part of the mesh's state
    :param services: the services that its application may call
    """

    def __init__(self, placed: PlacedPod, site: Site, directory: Path, services: Sequence[PlacedService]) -> None:
        self.placed = placed
        self._site = site
        self._directory = directory
        self._services = services
        self.application = Process(f"{placed.instance} (application)", directory / "application.log")
        self.sidecar = Process(f"{placed.instance} (sidecar)", directory / "sidecar.log")

    @property
    def name(self) -> str:
        """``namespace/name``, unique in the mesh."""
        return self.placed.instance

    @property
    def address(self) -> str:
        return self.placed.address

    @property
    def meshed(self) -> bool:
        return self.placed.spec.meshed

    @property
    def token_file(self) -> Path:
        return self._directory / "sidecar" / "join-token"

    @property
    def state_dir(self) -> Path:
        """The sidecar's state."""
        return self._directory / "sidecar" / "state"

    def host_of(self, service: str) -> str:
        """By what host this pod's application reaches a service: ``NAME``, or ``NAME.NAMESPACE``.

        :raises LocalMeshError: when there is no such service
        """
        name, _, namespace = service.partition(".")
        for known in self._services:
            if known.name == name and known.namespace == (namespace or self.placed.spec.ref.namespace):
                return self._site.host_of(self.placed, known)
        raise LocalMeshError(f"{self.name} speaks of the service {service!r}, which is not in the mesh")

    def _fill(self, text: str) -> str:
        listen = self._site.listen_address(self.placed)
        return fill(text, listen=listen, address=self.address, host_of=self.host_of)

    # --- the application

    async def start_application(self) -> None:
        """Start its program, if it has one.

        :raises CommandFailed: when it cannot be started
        """
        program = self.placed.spec.program
        if program is None:
            return
        argv = [self._fill(argument) for argument in program.argv]
        env = {name: self._fill(value) for name, value in program.env.items()}
        await self._site.start(self.application, self.placed, Role.APPLICATION, argv, env=env, uid=program.uid)

    async def wait_listening(self, deadline: float = 30.0) -> None:
        """Wait until the application listens on every port that its workload declares, without connecting to it.

        :raises NotReady: when it ended, or does not listen in time
        """
        if self.placed.spec.program is None:
            return
        listen = self._site.listen_address(self.placed)
        for port in self.placed.spec.ports:
            number = port.number

            def listening(number: int = number) -> bool:
                return _listens(self.application.pid, listen, number)

            await self._wait(self.application, listening, f"does not listen on port {number}", deadline)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        deadline: float = 30.0,
        uid: int | None = None,
    ) -> Completed:
        """Run a command in the pod as its application would run it, placeholders included.

        :raises NotReady: when it did not end in ``deadline`` seconds
        """
        filled = [self._fill(argument) for argument in argv]
        values = {name: self._fill(value) for name, value in (env or {}).items()}
        return await self._site.run(
            self.placed, Role.APPLICATION, filled, env=values, stdin=stdin, deadline=deadline, uid=uid
        )

    async def spawn(self, process: Process, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start a further long-running program in the pod, as its application would; the caller stops it."""
        filled = [self._fill(argument) for argument in argv]
        values = {name: self._fill(value) for name, value in (env or {}).items()}
        await self._site.start(process, self.placed, Role.APPLICATION, filled, env=values)

    # --- the sidecar

    def prepare_sidecar(self, settings: Mapping[str, Any]) -> None:
        """Write ``sidecar.yaml``.

        :param settings: what the mesh decides; the site adds its part
        """
        whole = {
            "instance": self.placed.name,
            "addresses": [self.address],
            "state_dir": str(self.state_dir),
            "join_token_file": str(self.token_file),
            **self._site.sidecar_settings(self.placed, self._services),
            **settings,
        }
        self._site.private_directory(self._directory / "sidecar", Role.SIDECAR)
        self._site.private_directory(self.state_dir, Role.SIDECAR)
        self._config.write_text(yaml.safe_dump(whole, sort_keys=False))
        self._config.chmod(0o644)

    @property
    def _config(self) -> Path:
        return self._directory / "sidecar.yaml"

    def give_token(self, token: str) -> None:
        """Hand the one-time join token to the sidecar, and to nobody else."""
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(token)
        self._site.hand_over(self.token_file, Role.SIDECAR)

    async def install_capture(self) -> None:
        """Put the capture rules into the pod's network, where the site captures at all.

        :raises CommandFailed: with what the sidecar's command said
        """
        if not self._site.captures:
            return
        argv = [*python(), "-m", "sidecar", "capture", "--config", str(self._config)]
        done = await self._site.run(self.placed, Role.CAPTURE, argv)
        if done.code != 0:
            raise CommandFailed(f"no capture in {self.name}: {done.stderr.strip() or done.stdout.strip()}")

    async def start_sidecar(self) -> None:
        argv = [*python(), "-m", "sidecar", "--config", str(self._config)]
        await self._site.start(self.sidecar, self.placed, Role.SIDECAR, argv)

    async def wait_ready(self, deadline: float = 60.0) -> None:
        """Wait until the sidecar says that it is ready.

        :raises NotReady: when it ended, or is not ready in time
        """
        host, port = self._site.ready_address(self.placed)
        said = "nothing"

        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:

            async def ready() -> bool:
                nonlocal said
                try:
                    async with session.get(f"http://{host}:{port}/healthz/ready") as response:
                        said = f"{response.status} {(await response.text())[:300]}"
                        return response.status == 200
                except (aiohttp.ClientError, OSError, TimeoutError) as error:
                    said = f"{type(error).__name__}: {error}"
                    return False

            try:
                async with asyncio.timeout(deadline):
                    while not await ready():
                        self._check_running(self.sidecar)
                        await asyncio.sleep(POLL)
            except TimeoutError:
                raise self._not_ready(self.sidecar, f"is not ready after {deadline:g} s: {said}") from None

    async def stop(self) -> None:
        """Stop the application, then the sidecar."""
        await self.application.stop()
        await self.sidecar.stop()

    # --- waiting

    async def _wait(self, process: Process, condition: Callable[[], bool], complaint: str, deadline: float) -> None:
        try:
            async with asyncio.timeout(deadline):
                while not condition():
                    self._check_running(process)
                    await asyncio.sleep(POLL)
        except TimeoutError:
            raise self._not_ready(process, f"{complaint} after {deadline:g} s") from None

    def _check_running(self, process: Process) -> None:
        if not process.running:
            raise self._not_ready(process, f"ended with {process.returncode}")

    @staticmethod
    def _not_ready(process: Process, complaint: str) -> NotReady:
        return NotReady(f"{process.name} {complaint}\nits last words:\n{process.tail() or '(none)'}")


def _listens(pid: int, address: str, port: int) -> bool:
    """Whether a TCP socket listens on ``address`` (or on all) and ``port`` in the network of process ``pid``."""
    mapped = "0" * 16 + _hex("0.0.255.255") + _hex(address)  # ::ffff:a.b.c.d, as gRPC binds IPv4 addresses
    wanted = {_hex(address), mapped, "0" * 8, "0" * 32}
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            local, state = line.split()[1], line.split()[3]
            host, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port and host in wanted:  # TCP_LISTEN
                return True
    return False


def _hex(address: str) -> str:
    """An IPv4 address as /proc/net/tcp prints it: one word in the machine's byte order."""
    return f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}"
