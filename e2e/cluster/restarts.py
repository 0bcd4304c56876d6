"""Which containers of ours were started again while the suite ran, also in pods that are gone by its end."""

from __future__ import annotations

import json
from pathlib import Path

from e2e.cluster.installed import SYSTEM
from e2e.harness.cluster import Cluster
from e2e.harness.programs import Program

_OURS = "hedgerow-"
_STATUSES = ("initContainerStatuses", "containerStatuses")


class Restarts:
    """Follows every pod from now on.

    :ivar meant: ``namespace/pod/container`` of those that a test has killed
    """

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.meant: set[str] = set()
        self._log = directory / "restarts.log"
        container = '["{{.name}}",{{.restartCount}},"{{with .lastState.terminated}}{{.reason}}{{end}}"]'
        each = "".join(f"{{{{range .status.{name}}}}},{container}{{{{end}}}}" for name in _STATUSES)
        line = f'["{{{{.metadata.namespace}}}}","{{{{.metadata.name}}}}"{each}]{{{{"\\n"}}}}'
        command = [
            cluster.path_of("kubectl"),
            "get",
            "pods",
            "--all-namespaces",
            "--watch",
            "-o",
            f"go-template={line}",
        ]
        self._program = Program("kubectl get pods --watch", command, self._log, cluster.environment)
        self._program.start()
        self._program.until(lambda: self._log.stat().st_size, "telling of pods")

    def found(self) -> dict[str, str]:
        """Containers of ours that were started again, with the reason why they had ended, but for those meant to be."""
        found: dict[str, str] = {}
        for line in self._log.read_text().splitlines():
            try:
                namespace, pod, *containers = json.loads(line)
            except ValueError:
                continue  # the last one is being written
            for name, times, reason in containers:
                if times and (namespace == SYSTEM or name.startswith(_OURS)):
                    found[f"{namespace}/{pod}/{name}"] = f"{times} times, {reason}"
        return {name: why for name, why in found.items() if name not in self.meant}

    @property
    def told(self) -> int:
        """How many pods it has heard of so far."""
        return len({tuple(json.loads(line)[:2]) for line in self._log.read_text().splitlines() if line.endswith("]")})

    def stop(self) -> None:
        self._program.stop()
