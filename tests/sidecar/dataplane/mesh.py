"""A mesh for tests: pods in network namespaces, with data planes as processes and captured connections."""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from certs.ca import CertificateAuthority
from certs.spiffe import SpiffeId
from sidecar import capture
from sidecar.capture_rules import CaptureRules
from tests.sidecar.dataplane.netns import Network, Pod
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN

ROOT = Path(__file__).resolve().parents[3]
UID = 1337


def identity(workload: str) -> str:
    namespace, _, name = workload.partition("/")
    return str(SpiffeId.for_workload(TRUST_DOMAIN, namespace, "default", name))


class Sidecar:
    """A data plane of its own process in a pod."""

    def __init__(
        self,
        pod: Pod,
        workload: str,
        authority: CertificateAuthority,
        *,
        policy: dict[str, Any],
        directory: list[dict[str, Any]] | None = None,
        identity_shown: str = "",
        lifetime: float = 3600.0,
        log: Path,
        uvloop: bool = True,
        names: dict[str, list[str]] | None = None,
        resolvers: list[tuple[str, int]] | None = None,
        captured: CaptureRules | None = None,
        **settings: Any,
    ) -> None:
        self.pod = pod
        self.workload = workload
        self._killed = False
        self._log = log.open("ab")
        self._log_path = log
        self._process = subprocess.Popen(
            [
                *("ip", "netns", "exec", pod.namespace.name),
                *(sys.executable, "-X", "faulthandler", "-W", "error", "-m", "tests.sidecar.dataplane.sidecar_process"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "67108864"},
        )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._ask(
            {
                "uid": UID,
                "workload": workload,
                "identity": identity_shown or identity(workload),
                "instance": f"{workload.partition('/')[2]}-{pod.address.rpartition('.')[2]}",
                "authority": authority.dump().decode(),
                "addresses": [pod.address, pod.address6],
                "policy": policy,
                "directory": directory or [],
                "lifetime": lifetime,
                "uvloop": uvloop,
                "names": names or {},
                "resolvers": resolvers or [],
                "settings": settings,
            }
        )
        rules = captured or CaptureRules(uid=UID, dns_port=15053 if resolvers else 0)
        capture.install(rules, prefix=("ip", "netns", "exec", pod.namespace.name))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def _ask(self, message: dict[str, Any], seconds: float = 30.0) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()
        if not self._selector.select(seconds):
            raise TimeoutError(f"no answer of {self.workload}: {self.log}")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.workload} ended: {self.log}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.workload}: {answer['error']}\n{self.log}")
        return answer["ok"]

    def do(self, action: str, **arguments: Any) -> Any:
        return self._ask({"do": action, **arguments})

    def flows(self, **wanted: Any) -> list[dict[str, Any]]:
        return [flow for flow in self.do("flows") if all(flow[key] == value for key, value in wanted.items())]

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.do("state")
        return state

    async def until(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 20.0) -> dict[str, Any]:
        """Wait until the state fulfils ``condition``."""
        end = time.monotonic() + seconds
        while not condition(state := self.state()):
            assert time.monotonic() < end, f"still {state}: {self.log}"
            await asyncio.sleep(0.02)
        return state

    def kill(self) -> None:
        """Let it die without a word."""
        self._process.kill()
        self._process.wait(20)
        self._killed = True

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            status = self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
            raise
        finally:
            self._process.stdout.close()
            self._selector.close()
            self._log.close()
        assert status == (-signal.SIGKILL if self._killed else 0), self.log
        assert "Traceback" not in self.log, self.log


def meshed(workload: str, pods: list[Pod], port: int, address: str = "", service_port: int = 0) -> dict[str, Any]:
    """A directory entry for a meshed workload at its pods' address, or behind a service address."""
    return {
        "address": address or pods[0].address,
        "port": service_port or port,
        "workload": workload,
        "meshed": True,
        "endpoints": [
            {
                "address": pod.address6 if ":" in address else pod.address,
                "port": port,
                "identity": identity(workload),
            }
            for pod in pods
        ],
    }


__all__ = ["Network", "Sidecar", "identity", "meshed"]
