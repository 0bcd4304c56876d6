"""The programs of a test cluster, in parts that are built and cached one by one.

A part is a pure function of what is written here and of the Go sources beside this file: its key is their hash, so
that a changed part is built anew and the others are not. Everything is static (``CGO_ENABLED=0``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

_HERE = Path(__file__).resolve().parent
KUBERNETES = "1.36.3"
#: cert-manager's own Helm chart, a directory beside its programs.
CERT_MANAGER_CHART = "cert-manager-chart"
#: Bump it when the way of building changes and not what is built from.
_RECIPE = "1"


class Suite(StrEnum):
    """What a machine is prepared for."""

    APISERVER = "apiserver"
    CLUSTER = "cluster"
    #: A cluster that is there already: kubectl and Helm.
    TOOLS = "tools"


@dataclass(frozen=True, slots=True)
class Part:
    """Programs that come from one build.

    :param names: what they are called, one for each of ``packages``; for a multi-call binary every name that it answers
        to
    :param packages: what ``go`` builds: ``path@version`` of other modules, or a package of the module in ``module``
    :param module: a directory beside this file that holds the module to build in; empty for ``path@version``
    :param linker: more flags for the linker
    :param files: directories of the modules that it is built from, put beside the programs: the name there, the module,
        the path in it
    """

    name: str
    names: tuple[str, ...]
    packages: tuple[str, ...]
    module: str = ""
    linker: tuple[str, ...] = field(default=())
    files: tuple[tuple[str, str, str], ...] = field(default=())

    @property
    def directory(self) -> Path:
        return _HERE / self.module

    @property
    def key(self) -> str:
        """Changes when anything changes that the build depends on, other than the Go toolchain."""
        said = (_RECIPE, self.name, self.names, self.packages, self.linker, *([self.files] if self.files else []))
        digest = hashlib.sha256(repr(said).encode())
        for source in sorted(self.directory.rglob("*")) if self.module else ():
            if source.suffix in (".go", ".mod", ".sum"):
                content = source.read_bytes()
                digest.update(f"{source.relative_to(self.directory)} {len(content)}\n".encode() + content)
        return f"{self.name}-{digest.hexdigest()[:16]}"


_VERSION = "k8s.io/component-base/version"
_MAJOR, _MINOR, _ = KUBERNETES.split(".")
_SAY_VERSION = (
    f"-X {_VERSION}.gitVersion=v{KUBERNETES}",
    f"-X {_VERSION}.gitMajor={_MAJOR}",
    f"-X {_VERSION}.gitMinor={_MINOR}",
    f"-X {_VERSION}.gitTreeState=clean",
    f"-X k8s.io/client-go/pkg/version.gitVersion=v{KUBERNETES}",
)
_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
_CNI = "github.com/containernetworking/plugins/plugins"

_APISERVER = (
    Part(
        "control-plane",
        ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl"),
        ("./control-plane",),
        "kubernetes",
        _SAY_VERSION,
    ),
    Part("helm", ("helm",), ("helm.sh/helm/v3/cmd/helm@v3.22.0",)),
    Part("helm4", ("helm4",), ("helm.sh/helm/v4/cmd/helm@v4.3.1",)),
)
_CERT_MANAGER = Part(
    "cert-manager",
    ("cert-manager-controller", "cert-manager-cainjector", "cert-manager-webhook"),
    (".",),
    "cert-manager",
    files=((CERT_MANAGER_CHART, "github.com/cert-manager/cert-manager", "deploy/charts/cert-manager"),),
)
_NODE = (
    Part("node", ("kube-scheduler", "kubelet", "kube-proxy"), ("./node",), "kubernetes", _SAY_VERSION),
    Part(
        "containerd",
        ("containerd", "containerd-shim-runc-v2", "ctr"),
        tuple(f"{_CONTAINERD}/{name}@v2.4.2" for name in ("containerd", "containerd-shim-runc-v2", "ctr")),
    ),
    Part(
        "cni",
        ("ptp", "loopback", "host-local", "portmap"),
        tuple(f"{_CNI}/{name}@v1.9.1" for name in ("main/ptp", "main/loopback", "ipam/host-local", "meta/portmap")),
    ),
    Part(
        "network-policy",
        ("kube-network-policies",),
        ("sigs.k8s.io/kube-network-policies/cmd/kube-network-policies/standard",),
        "network-policy",
    ),
    Part("coredns", ("coredns",), (".",), "coredns"),
    Part("pause", ("pause",), (".",), "pause"),
)
#: Every part.
PARTS = (*_APISERVER, _CERT_MANAGER, *_NODE)
_OF_SUITE = {
    Suite.APISERVER: (*_APISERVER, _CERT_MANAGER),
    Suite.CLUSTER: _APISERVER + _NODE,
    Suite.TOOLS: _APISERVER,
}


def wanted(suite: Suite) -> dict[str, Part]:
    """The programs that a suite needs, and the part that each comes from."""
    programs = {name: part for part in _OF_SUITE[suite] for name in part.names}
    return {name: programs[name] for name in ("kubectl", "helm")} if suite is Suite.TOOLS else programs
