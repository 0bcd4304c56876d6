"""One node in namespaces and control groups of its own: containerd, kubelet, kube-proxy, the NetworkPolicy agent.

It shares the session's network namespace, which is its "machine": tests reach pods and Services as a node does, and
that is not filtered by NetworkPolicies. Mounts, processes, host name and control groups are the node's own. Pods get
addresses of :data:`POD_NETWORK` from the ``ptp`` plugin, each behind a route, so that every packet between two pods
passes the session's netfilter, where NetworkPolicies are enforced.

The kernel removes processes, mounts and links with the session. Control groups stay behind a session that was killed:
the next one removes those that are empty.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.harness import control_groups
from e2e.harness.control_plane import ControlPlane, Node
from e2e.harness.errors import HarnessError
from e2e.harness.programs import PATIENCE, run, until
from e2e.kube.binaries import Binaries

NODE = Node("node-1", "10.250.0.1")
POD_NETWORK = "10.244.0.0/16"
_PODS_HERE = "10.244.0.0/24"
CLUSTER_DNS = "10.96.0.10"
PAUSE_IMAGE = "e2e.local/pause:1"
_QUEUE = 100
#: Parts of the kubelet have this path built in.
_KUBELET = Path("/var/lib/kubelet")


@dataclass(frozen=True, slots=True)
class _Running:
    pid: int
    log: Path


class NodeMachine:
    """The node: :meth:`begin`, :meth:`take_images`, :meth:`join` once and in this order, :meth:`close` at the end.

    :param directory: for its state and logs; must exist and be on a file system that overlayfs accepts
    """

    def __init__(self, binaries: Binaries, directory: Path, plane: ControlPlane, runc: Path) -> None:
        self._binaries = binaries
        self._directory = directory
        self._plane = plane
        self._runc = runc
        self._socket = directory / "run" / "containerd.sock"
        self._init: subprocess.Popen[bytes] | None = None
        self._groups: list[Path] = []
        self._running: dict[str, _Running] = {}
        self._ended: dict[str, int] = {}
        self._furnished = threading.Event()
        for name in ("run", "kubelet", "log", "containerd", "cni"):
            (directory / name).mkdir(exist_ok=True)

    def begin(self) -> None:
        """Make the machine: namespaces, the node's address, containerd. The API server may start meanwhile.

        :raises HarnessError: when a part cannot be, with its last words
        """
        self._make_network()
        # The node mounts its own over it. The place stays: removing it would end the mounts of other sessions, too.
        _KUBELET.mkdir(exist_ok=True)
        self._enter()
        self._configure()
        self._run("containerd", [self._binaries["containerd"], "--config", self._directory / "containerd.toml"])

    def take_images(self, archives: Sequence[Path]) -> None:
        """Import images as soon as containerd answers; pause's must be among them.

        :raises HarnessError: when containerd ends or refuses one
        """
        self._until("containerd", self._containerd_answers, "answering")
        for archive in archives:
            self.import_image(archive)

    def join(self) -> None:
        """Start the kubelet and what is beside it, and wait until pods can run.

        :raises HarnessError: when a part ends or is not ready in time, with its last words
        """
        self._start_kubelet()
        proxy: list[str | Path] = [self._binaries["kube-proxy"], f"--config={self._directory / 'kube-proxy.json'}"]
        self._run("kube-proxy", proxy)
        self._start_policies()
        self._until("kubelet", self._is_ready, "ready")

    def import_image(self, archive: Path) -> None:
        """Put an image onto the node, as a pull would.

        :raises CommandFailed: when containerd refuses it
        """
        self._images("import", "--local", archive)

    def tag_image(self, image: str, also: str) -> None:
        """Call an image that is on the node by one more name."""
        self._images("tag", image, also)

    def _images(self, *words: str | Path) -> None:
        command: list[str | Path] = [self._binaries["ctr"], "--address", self._socket, "--namespace", "k8s.io"]
        run([*command, "images", *words])

    def log(self, name: str) -> str:
        """What ``containerd``, ``kubelet``, ``kube-proxy`` or ``network-policies`` wrote so far."""
        return self._running[name].log.read_text(errors="replace")

    def close(self) -> None:
        """End everything on the node and remove what the kernel would not."""
        if self._init is not None:
            assert self._init.stdin is not None
            with contextlib.suppress(OSError):
                self._init.stdin.close()
            try:
                self._init.wait(10)
            except subprocess.TimeoutExpired:
                self._init.kill()
                self._init.wait()
            assert self._init.stdout is not None
            self._listener.join()
            self._init.stdout.close()
        for group in self._groups:
            with contextlib.suppress(HarnessError):
                until(lambda group=group: control_groups.remove(group), f"{group} empty", seconds=30)

    # Namespaces and control groups.

    def _enter(self) -> None:
        self._groups = control_groups.make()
        join = "".join(f"echo $$ >'{group}/cgroup.procs'\n" for group in self._groups)
        command = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += ["--uts", "--cgroup", sys.executable, "-m", "e2e.harness.node_init"]
        command += [str(self._directory), NODE.name]
        log = (self._directory / "log" / "init.log").open("ab")
        with log:
            self._init = subprocess.Popen(
                ["sh", "-e", "-c", f'{join}exec "$@"', "sh", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, args=(self._init,), daemon=True)
        self._listener.start()
        self._until("init", self._furnished.is_set, "furnished")

    def _listen(self, init: subprocess.Popen[bytes]) -> None:
        assert init.stdout is not None
        for line in init.stdout:
            message: dict[str, Any] = json.loads(line)
            if "furnished" in message:
                self._furnished.set()
            elif "ended" in message:
                self._ended[message["ended"]] = message["code"]

    def _run(self, name: str, argv: Sequence[str | Path]) -> None:
        assert self._init is not None
        assert self._init.stdin is not None
        log = self._directory / "log" / f"{name}.log"
        self._running[name] = _Running(0, log)
        command = {"start": name, "argv": [str(word) for word in argv], "log": str(log)}
        self._init.stdin.write(json.dumps(command).encode() + b"\n")
        self._init.stdin.flush()

    def _until(self, name: str, ready: Any, what: str, *, seconds: float = PATIENCE) -> None:
        """Wait for a condition; the end of the program that is to make it true ends the waiting."""
        assert self._init is not None
        init = self._init
        log = self._directory / "log" / f"{name}.log"

        def settled() -> bool:
            if init.poll() is not None or name in self._ended:
                raise HarnessError(f"the node's {name} ended before {what}:\n{_tail(log)}")
            return bool(ready())

        try:
            until(settled, what, seconds=seconds)
        except HarnessError as error:
            raise HarnessError(f"the node's {name}: {error}\n{_tail(log)}") from error

    # Programs and what they are configured with.

    def _configure(self) -> None:
        (self._directory / "resolv.conf").write_text("")
        (self._directory / "containerd.toml").write_text(self._containerd_toml())
        (self._directory / "cni" / "10-pods.conflist").write_text(json.dumps(self._cni()))
        (self._directory / "kubelet.json").write_text(json.dumps(self._kubelet()))
        (self._directory / "kube-proxy.json").write_text(json.dumps(self._kube_proxy()))

    def _containerd_toml(self) -> str:
        # The state lies where the test process reaches the socket too; shims find theirs by absolute paths.
        return f"""version = 3
root = "{self._directory}/containerd"
state = "/run/containerd"
[grpc]
  address = "{self._socket}"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{PAUSE_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{self._binaries["ptp"].parent}"]
    conf_dir = "{self._directory}/cni"
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = "runc"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      runtime_path = "{self._binaries["containerd-shim-runc-v2"]}"
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "{self._runc}"
"""

    def _cni(self) -> dict[str, Any]:
        addresses = {
            "type": "host-local",
            "dataDir": "/run/cni-addresses",
            "ranges": [[{"subnet": _PODS_HERE}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        plugins = [
            {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": addresses},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]
        return {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}

    def _kubelet(self) -> dict[str, Any]:
        serving = self._plane.authority.serving(
            "kubelet",
            [NODE.name, NODE.address, "127.0.0.1"],
            common_name=f"system:node:{NODE.name}",
            organization="system:nodes",
        )
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "address": "0.0.0.0",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._plane.ca)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(serving.certificate),
            "tlsPrivateKeyFile": str(serving.key),
            "clusterDomain": "cluster.local",
            "clusterDNS": [CLUSTER_DNS],
            "resolvConf": str(self._directory / "resolv.conf"),
            "oomScoreAdj": 0,
            "evictionHard": {
                "memory.available": "50Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "imageGCHighThresholdPercent": 100,  # nobody could pull again what it removes
            "imageGCLowThresholdPercent": 99,
            "syncFrequency": "10s",
            "nodeStatusUpdateFrequency": "2s",
        }

    def _start_kubelet(self) -> None:
        config = self._plane.client_kubeconfig("kubelet-1", user=f"system:node:{NODE.name}", group="system:nodes")
        self._run(
            "kubelet",
            [
                self._binaries["kubelet"],
                f"--config={self._directory / 'kubelet.json'}",
                f"--kubeconfig={config}",
                f"--hostname-override={NODE.name}",
                f"--node-ip={NODE.address}",
                f"--root-dir={_KUBELET}",
            ],
        )

    def _kube_proxy(self) -> dict[str, Any]:
        config = self._plane.client_kubeconfig("kube-proxy", user="system:kube-proxy")
        unlimited = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "hostnameOverride": NODE.name,
            "clusterCIDR": POD_NETWORK,
            "clientConnection": {"kubeconfig": str(config)},
            "conntrack": unlimited,  # the machine's own setting stays
            "oomScoreAdj": 0,
        }

    def _start_policies(self) -> None:
        """Enforce NetworkPolicies with sigs.k8s.io/kube-network-policies, failing closed.

        The agent diverts packets to itself with nft's ``queue``. A kernel without that expression gets the same
        diversion from iptables' NFQUEUE; the agent's own attempts then fail and change nothing. Only the direction from
        client to server is judged, so that a new policy cuts connections that are open.
        """
        config = self._plane.kubeconfig
        self._run(
            "network-policies",
            [
                self._binaries["kube-network-policies"],
                f"--kubeconfig={config}",
                f"--hostname-override={NODE.name}",
                "--fail-open=false",
                "--strict-mode=true",
                "--disable-nri=false",
                f"--nfqueue-id={_QUEUE}",
                "--v=2",
            ],
        )
        if _nft_can_queue():
            return
        rules = ["*mangle", ":PODS -", "-A PODS -m owner --uid-owner 0 -j RETURN"]
        rules += ["-A PODS -m conntrack --ctdir REPLY -j RETURN", f"-A PODS -j NFQUEUE --queue-num {_QUEUE}"]
        rules += [f"-A POSTROUTING -s {POD_NETWORK} -j PODS", f"-A POSTROUTING -d {POD_NETWORK} -j PODS", "COMMIT"]
        run(["iptables-restore", "--noflush"], stdin="\n".join(rules) + "\n")

    @staticmethod
    def _make_network() -> None:
        """The node's address on an end of a veth pair, with the default route: API server and kubelet look for it."""
        run(["ip", "link", "add", "node0", "type", "veth", "peer", "name", "node0-peer"])
        run(["ip", "address", "add", f"{NODE.address}/24", "dev", "node0"])
        run(["ip", "link", "set", "node0", "up"])
        run(["ip", "link", "set", "node0-peer", "up"])
        run(["ip", "route", "add", "default", "dev", "node0"])
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def _containerd_answers(self) -> bool:
        command: list[str | Path] = [self._binaries["ctr"], "--address", self._socket, "--timeout", "2s", "version"]
        return "Server:" in run(command, check=False)

    def _is_ready(self) -> bool:
        nodes = self._plane.api.call("GET", "/api/v1/nodes")["items"]
        conditions = [condition for node in nodes for condition in node["status"].get("conditions", [])]
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _nft_can_queue() -> bool:
    probe = "table inet e2e-probe { chain c { queue num 1; }; }"
    return not run(["nft", "--check", "--file", "-"], stdin=probe, check=False)


def _tail(log: Path, lines: int = 20) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""
