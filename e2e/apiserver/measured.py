"""A controller as a process of its own: what it says, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from controller.anew import BEGAN
from e2e.harness.programs import Program, free_ports

#: Seconds for anything, on a machine that does ten other things.
PATIENCE = 240.0
ROOT = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


class Measured:
    """A controller that was started by :func:`controller`."""

    def __init__(self, program: Program, state: Path, port: int, monitoring: int) -> None:
        self._program, self._state, self._port, self._monitoring = program, state, port, monitoring

    # --- what it says

    def get(self, path: str) -> dict[str, Any]:
        """An answer of its web API. :raises OSError: while it does not serve"""
        token = (self._state / "viewer.token").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/api/v1{path}", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def pods(self, namespace: str) -> dict[str, str]:
        """The instances of a namespace, by name, and their addresses."""
        instances = self.get("/inventory")["instances"]
        return {one["name"]: one["address"] for one in instances if one["workload"].startswith(f"{namespace}/")}

    def metrics(self) -> dict[str, float]:
        """Every sample of its metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._monitoring}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        return {name: float(value) for name, value in re.findall(r"^([a-z_]\S*) (\S+)$", text, re.MULTILINE)}

    def command(self, *words: str) -> str:
        """What a person reads who calls ``hedgerow`` with these words."""
        access = {
            "HEDGEROW_SERVER": f"http://127.0.0.1:{self._port}",
            "HEDGEROW_TOKEN_FILE": str(self._state / "viewer.token"),
        }
        line = [sys.executable, "-m", "hedgerow", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **access}
        return subprocess.run(
            line, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True
        ).stdout

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for what it does in its own time. While it does not answer the condition is not fulfilled."""

        def holds() -> bool:
            with contextlib.suppress(OSError):
                return bool(condition())
            return False

        async with asyncio.timeout(PATIENCE):
            while not await asyncio.to_thread(holds):  # noqa: ASYNC110  # in another process
                await asyncio.sleep(0.2)

    def began_anew(self) -> bool:
        """Whether the program has replaced itself."""
        return f"{BEGAN}=".encode() in Path(f"/proc/{self.pid}/environ").read_bytes()

    # --- what it costs

    @property
    def pid(self) -> int:
        return self._program.pid

    def cpu(self) -> float:
        """Seconds of a core that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def resident(self) -> float:
        """MB that are resident."""
        return self.metrics()["process_resident_memory_bytes"] / 2**20

    def private(self) -> float:
        """MB that are resident and in no file: what the system can not take back by itself."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None, "this kernel does not say what is resident in no file"
        return int(found[1]) / 2**10

    def given_back(self) -> float:
        """How many objects of the cluster there were when it last gave memory back; infinite when it never did."""
        log = self._program.log.read_text(errors="replace")
        return float((re.findall(r"memory was given back, (\d+) objects are left", log) or ["inf"])[-1])

    def objects(self) -> float:
        """How many objects of the cluster it holds."""
        return sum(n for name, n in self.metrics().items() if name.startswith("hedgerow_controller_cluster_objects{"))

    def held(self) -> float:
        """Thousands of blocks of memory that are in use: what it holds, and not what its allocator keeps for later."""
        return self.metrics()["hedgerow_controller_memory_blocks"] / 1000


@contextlib.contextmanager
def controller(kubeconfig: Path, directory: Path) -> Iterator[Measured]:
    """Run one on the cluster of a kubeconfig."""
    port, monitoring = free_ports(2)
    state = directory / "state"
    document = {
        "state_dir": str(state),
        "grpc_listen": "127.0.0.1:0",
        "issuer_listen": "127.0.0.1:0",
        "web_listen": f"127.0.0.1:{port}",
        "monitoring_listen": f"127.0.0.1:{monitoring}",
        "kubernetes": {"kubeconfig": str(kubeconfig), "injector_certificate": "external"},
    }
    config = directory / "controller.yaml"
    config.write_text(yaml.safe_dump(document))
    program = Program(
        "controller",
        [sys.executable, "-m", "controller", "--config", str(config)],
        directory / "controller.log",
        {**os.environ, "PYTHONPATH": str(ROOT)},
    )
    program.start()
    try:
        yield Measured(program, state, port, monitoring)
    finally:
        program.kill()
