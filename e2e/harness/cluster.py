"""A cluster whose pods really run: made here, or one that KUBECONFIG names."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2e.harness.control_plane import ControlPlane
from e2e.harness.errors import HarnessError
from e2e.harness.manifests import coredns
from e2e.harness.node import NODE, PAUSE_IMAGE, NodeMachine
from e2e.harness.processes import alive, first_process
from e2e.harness.programs import Program, run, until
from e2e.harness.requests import Api
from e2e.harness.tools import Tools
from e2e.images.build import CONTROLLER, SIDECAR, Built, prepare
from e2e.images.programs import program_image
from e2e.kube import binaries
from e2e.kube.parts import Suite
from hedgerow.local.sandbox import Confinement, confinement

_SIDECAR_VARIABLE = "HEDGEROW_E2E_SIDECAR_IMAGE"
_CONTROLLER_VARIABLE = "HEDGEROW_E2E_CONTROLLER_IMAGE"
COREDNS_IMAGE = "e2e.local/coredns:1"


class Cluster(Tools):
    """What tests get, wherever the cluster is.

    :ivar sidecar_image: the reference of the sidecar's image there
    :ivar controller_image: the reference of the controller's, the injector's and the command's image there
    :ivar ours: whether the cluster was made for this session; on another one nothing may be stopped or broken
    """

    sidecar_image: str
    controller_image: str
    ours: bool

    def kill(self, container: str) -> float:
        """Kill a container's first process, as the kernel does when memory is short; only where the cluster is ours.

        :param container: its id, as a pod's status has it
        :returns: when it was gone, seconds since the epoch
        """
        raise NotImplementedError

    def tag(self, image: str, tag: str) -> str:
        """Give an image that the nodes have one more tag; only where the cluster is ours.

        :returns: the image's reference by that
        """
        raise NotImplementedError

    def close(self) -> None:
        """End what the session started."""
        raise NotImplementedError


class LocalCluster(Cluster):
    """A control plane and one node in the session's sandbox, with DNS and enforced NetworkPolicies."""

    ours = True

    def __init__(self, directory: Path, images: Sequence[Built]) -> None:
        """Start it; takes about 20 seconds.

        :param images: of this checkout
        :raises HarnessError: when it cannot be, with what to do
        """
        if confinement() is not Confinement.ROOT:
            raise HarnessError(
                "a cluster needs the sandbox that the tests run in as root, and this session has none",
                "run the suite as root where namespaces are permitted, or give a cluster: KUBECONFIG=FILE",
            )
        found = binaries.find(Suite.CLUSTER)
        runc = shutil.which("runc", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        if runc is None:
            raise HarnessError("runc is not installed", "run: make e2e-cluster, or apt-get install runc")
        self._plane = ControlPlane(found, directory, node=NODE)
        (directory / "node").mkdir()
        self._node = NodeMachine(found, directory / "node", self._plane, Path(runc))
        super().__init__(
            found,
            directory,
            kubeconfig=self._plane.kubeconfig,
            url=self._plane.url,
            ca=self._plane.ca,
            api=self._plane.api,
        )
        references = {built.image.name: built.reference for built in images}
        self.sidecar_image, self.controller_image = references[SIDECAR.name], references[CONTROLLER.name]
        own = directory / "images"
        own.mkdir()
        try:
            self._node.begin()
            archives = [
                program_image(found["pause"], PAUSE_IMAGE, own / "pause.tar"),
                program_image(found["coredns"], COREDNS_IMAGE, own / "coredns.tar"),
                *(built.archive for built in images),
            ]
            with ThreadPoolExecutor(1) as beside:  # what takes long; programs that stay are started by this thread
                taken = beside.submit(self._node.take_images, archives)
                self._plane.start()
                taken.result()
            self._node.join()
            self.kubectl("apply", "-f", "-", stdin=coredns(COREDNS_IMAGE))
            self.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=200s")
        except BaseException:
            self.close()
            raise

    def log(self, name: str) -> str:
        """What a part of the node wrote: see :meth:`NodeMachine.log`."""
        return self._node.log(name)

    def kill(self, container: str) -> float:
        process = first_process(container.rpartition("/")[2])
        os.kill(process, signal.SIGKILL)
        until(lambda: not alive(process), f"process {process} gone")
        return time.time()

    def tag(self, image: str, tag: str) -> str:
        made = f"{image.rpartition(':')[0]}:{tag}"
        self._node.tag_image(image, made)
        return made

    def stop_api_server(self) -> None:
        """Stop the API server alone; pods run on."""
        self._plane.stop_api_server()

    def start_api_server(self) -> None:
        """Start the API server again and wait until it is ready."""
        self._plane.start_api_server()

    def close(self) -> None:
        """End everything."""
        self._node.close()
        self._plane.close()


class GivenCluster(Cluster):
    """A cluster that somebody else runs."""

    ours = False

    def __init__(self, directory: Path, kubeconfig: Path) -> None:
        """Reach it as the user of the kubeconfig's current context.

        :raises HarnessError: when it cannot be reached, or it is not said where our images are
        """
        images = {}
        for name, variable in (("sidecar", _SIDECAR_VARIABLE), ("controller", _CONTROLLER_VARIABLE)):
            images[name] = os.environ.get(variable, "")
            if not images[name]:
                raise HarnessError(
                    f"{variable} is not set: a cluster of somebody else cannot read this machine's image archives",
                    f"python -m e2e.images --out DIRECTORY makes them; push them to where the cluster pulls from and "
                    f"name them: {_SIDECAR_VARIABLE} and {_CONTROLLER_VARIABLE}",
                )
        self.sidecar_image, self.controller_image = images["sidecar"], images["controller"]
        found = binaries.find(Suite.TOOLS)
        environment = os.environ | {"KUBECONFIG": str(kubeconfig)}
        viewed = run(
            [found["kubectl"], "config", "view", "--minify", "--raw", "--flatten", "-o", "json"], env=environment
        )
        described = json.loads(viewed)["clusters"][0]["cluster"]
        ca = directory / "ca.crt"
        ca.write_bytes(base64.b64decode(described.get("certificate-authority-data", "")))
        socket = directory / "api.sock"
        argv: list[str | Path] = [found["kubectl"], "proxy", f"--unix-socket={socket}"]
        self._proxy = Program("kubectl proxy", argv, directory / "proxy.log", environment)
        self._proxy.start()
        self._proxy.until(socket.exists, "listening")
        super().__init__(
            found, directory, kubeconfig=kubeconfig, url=described["server"], ca=ca, api=Api.through(socket)
        )
        try:
            self.require_version()
        except HarnessError as error:
            self.close()
            raise HarnessError(f"the cluster of {kubeconfig} ({self.url}): {error.message}", error.remedy) from error

    def close(self) -> None:
        self._proxy.stop()


def cluster(directory: Path) -> Cluster:
    """The cluster that ``KUBECONFIG`` names; without it one that is made here, with the images of this checkout."""
    given = os.environ.get("KUBECONFIG")
    return GivenCluster(directory, Path(given)) if given else LocalCluster(directory, prepare())
