"""The ``kubernetes:`` section of ``controller.yaml``: which API server, and what is ours on it.

Read like the rest of the settings: what is not understood is refused. With this section there is no inventory file; the
cluster is the inventory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from controller.injection.audience import AUDIENCE, token_audience
from controller.inventory.reader import cluster_networks
from graph.fields import Check, Fields, Unfit, integer, matching, namespace_name, optional, seconds, text, unfit, word

#: The namespace that the chart installs into.
NAMESPACE = "hedgerow-system"

_CONTEXT = re.compile(r"\S(.{0,251}\S)?")


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """Where the cluster is and how it is followed. Durations in seconds.

    :param kubeconfig: a kubeconfig file; None: the ServiceAccount of the pod that we run in
    :param context: of the kubeconfig; empty: its current one
    :param namespace: our own: where the injector, its Secret and our ServiceAccount are
    :param cluster_networks: of pods, services and nodes; empty: what nodes and ServiceCIDRs say
    :param request_timeout: that a single request may take
    :param coalesce: at the shortest between two inventories; what changes meanwhile goes into one
    :param injector_certificate: ``controller``: we make and renew it; ``external``: somebody else does
    :param token_audience: whom the tokens of sidecars are for: what the injector is told in its ``token_audience``
    :param reclaim: bytes of private memory that are worth beginning anew for when most of the cluster is gone; 0: never
    """

    kubeconfig: Path | None = None
    context: str = ""
    namespace: str = NAMESPACE
    cluster_networks: tuple[str, ...] = ()
    request_timeout: float = 30.0
    coalesce: float = 0.25
    injector_certificate: str = "controller"
    token_audience: str = AUDIENCE
    reclaim: int = 16 << 20


def kubernetes_settings(base: Path) -> Check[KubernetesSettings]:
    """Reads the section.

    :param base: the folder that relative paths start from
    """

    def check(value: object) -> KubernetesSettings:
        fields = Fields({} if value is None else value, unfit, noun="setting")
        settings = KubernetesSettings(
            kubeconfig=fields.take("kubeconfig", optional(_readable(base)), None),
            context=fields.take("context", matching(_CONTEXT, "the name of a context", may_be_empty=True), ""),
            namespace=fields.take("namespace", namespace_name, NAMESPACE),
            cluster_networks=fields.take("cluster_networks", cluster_networks, ()),
            request_timeout=fields.take("request_timeout", seconds(1, 600), 30.0),
            coalesce=fields.take("coalesce", seconds(0.01, 60), 0.25),
            injector_certificate=fields.take("injector_certificate", word("controller", "external"), "controller"),
            token_audience=fields.take("token_audience", token_audience, AUDIENCE),
            reclaim=fields.take("reclaim", integer(0, 1 << 40), 16 << 20),
        )
        fields.finish()
        if settings.context and settings.kubeconfig is None:
            raise Unfit("set without a kubeconfig", "set kubeconfig too, or remove it", ".context")
        return settings

    return check


def _readable(base: Path) -> Check[Path]:
    def check(value: object) -> Path:
        path = base / text(4096)(value)
        if not os.access(path, os.R_OK) or not path.is_file():
            raise Unfit(f"{path} is no file that can be read", "name a kubeconfig that the controller can read")
        return path

    return check
