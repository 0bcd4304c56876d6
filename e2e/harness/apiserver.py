"""A real API server for tests that need no pod to run: etcd, kube-apiserver, kube-controller-manager."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2e.harness.control_plane import ControlPlane
from e2e.harness.errors import HarnessError
from e2e.harness.tools import Tools
from e2e.kube import binaries
from e2e.kube.parts import Suite


class ApiServer(Tools):
    """A control plane without nodes. Pods are admitted and stay pending: nobody runs them.

    :ivar audit_log: JSON lines of who asked for what (``audit.k8s.io/v1`` events without bodies)
    """

    def __init__(self, directory: Path) -> None:
        """Start it; takes a few seconds.

        :raises HarnessError: when programs are missing or do not get ready
        """
        found = binaries.find(Suite.APISERVER)
        self._plane = ControlPlane(found, directory)
        self._plane.start()
        self.audit_log = self._plane.audit_log
        super().__init__(
            found,
            directory,
            kubeconfig=self._plane.kubeconfig,
            url=self._plane.url,
            ca=self._plane.ca,
            api=self._plane.api,
        )
        try:
            self.require_version()
        except HarnessError:
            self.close()
            raise

    @property
    def running(self) -> bool:
        """Whether the API server is there; between :meth:`stop` and :meth:`start` it is not."""
        return self._plane.program("kube-apiserver").running

    def pid_of(self, program: str) -> int:
        """The process of ``etcd``, ``kube-apiserver`` or ``kube-controller-manager``."""
        return self._plane.program(program).pid

    def stop(self) -> None:
        """Stop the API server alone, at once for its clients; etcd and everything in it stays."""
        self._plane.stop_api_server()

    def start(self) -> None:
        """Start the API server again, at the same address, and wait until it is ready."""
        self._plane.start_api_server()

    def mend(self) -> dict[str, str]:
        """Begin again what ended by itself, and wait until it is ready; what was told to stop stays stopped.

        :returns: by program: how it ended and its last words; empty when all is well
        """
        return self._plane.mend()

    def audited(self) -> list[dict[str, Any]]:
        """Every event of the audit log whose line is whole by now."""
        lines = self.audit_log.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]

    def compact(self) -> int:
        """Make etcd forget all but the newest revision; a watch that asks for an older one gets 410 (Gone).

        The API server answers from its own memory as long as that reaches back: restart it for a certain 410.

        :returns: the revision that is left
        """
        return self._plane.compact()

    def close(self) -> None:
        """End everything."""
        self._plane.close()
