"""Google's Online Boutique, as far as a mesh sees it: who it is made of, where each listens, and who calls whom.

Facts read from its release 0.10 (GoogleCloudPlatform/microservices-demo): ports, labels, accounts and kinds of probes
from its deployment, the calls from the addresses that each program is given and from its sources. The manifests made
here are ours. Nothing of its images, commands or texts is needed, because nobody runs these pods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Kinds of probes.
GRPC, HTTP, TCP = "grpc", "httpGet", "tcpSocket"
#: Its pods run as this user and group.
USER = 1000


@dataclass(frozen=True, slots=True)
class Component:
    """One Deployment, with a Service of the same name where it serves anything.

    :param port: what its container listens on; 0: nothing
    :param served: the Service's port, where it is another one
    :param port_name: the Service's name for it, which says the protocol
    :param probe: how the kubelet asks it; empty: not at all
    :param own_account: whether it has a ServiceAccount of its own name
    :param waits: whether an init container waits for what it calls
    """

    name: str
    port: int = 0
    served: int = 0
    port_name: str = "grpc"
    probe: str = GRPC
    own_account: bool = True
    waits: bool = False

    @property
    def service_port(self) -> int:
        return self.served or self.port

    @property
    def account(self) -> str:
        return self.name if self.own_account else "default"


COMPONENTS = (
    Component("adservice", 9555),
    Component("cartservice", 7070),
    Component("checkoutservice", 5050),
    Component("currencyservice", 7000),
    Component("emailservice", 8080, served=5000),
    Component("frontend", 8080, served=80, port_name="http", probe=HTTP),
    Component("loadgenerator", probe="", waits=True),
    Component("paymentservice", 50051),
    Component("productcatalogservice", 3550),
    Component("recommendationservice", 8080),
    Component("redis-cart", 6379, port_name="tcp-redis", probe=TCP, own_account=False),
    Component("shippingservice", 50051),
)
#: A second Service before the frontend, of type LoadBalancer, for people outside.
OUTSIDE = "frontend-external"

#: Who is told which addresses, each a Service and its port, and calls them.
CALLS = {
    "loadgenerator": ("frontend:80",),
    "frontend": (
        "productcatalogservice:3550",
        "currencyservice:7000",
        "cartservice:7070",
        "recommendationservice:8080",
        "shippingservice:50051",
        "checkoutservice:5050",
        "adservice:9555",
    ),
    "checkoutservice": (
        "productcatalogservice:3550",
        "shippingservice:50051",
        "paymentservice:50051",
        "emailservice:5000",
        "currencyservice:7000",
        "cartservice:7070",
    ),
    "recommendationservice": ("productcatalogservice:3550",),
    "cartservice": ("redis-cart:6379",),
}


def connections() -> frozenset[tuple[str, str, int]]:
    """The calls as packets see them: caller, callee, and the port of the callee's pod."""
    ports = {f"{each.name}:{each.service_port}": (each.name, each.port) for each in COMPONENTS}
    return frozenset((caller, *ports[called]) for caller, addresses in CALLS.items() for called in addresses)


def manifests(node: str) -> list[dict[str, Any]]:
    """Everything that is applied, without a namespace.

    :param node: what its pods are bound to: there is no scheduler
    """
    made: list[dict[str, Any]] = []
    for each in COMPONENTS:
        if each.own_account:
            made.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": each.name}})
        made.append(_deployment(each, node))
        if each.port:
            made.append(_service(each, each.name))
    (front,) = (each for each in COMPONENTS if each.name == "frontend")
    made.append(_service(front, OUTSIDE, type="LoadBalancer"))
    return made


def _deployment(component: Component, node: str) -> dict[str, Any]:
    labels = {"app": component.name}
    spec: dict[str, Any] = {
        "nodeName": node,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
        },
        "containers": [_container(component)],
    }
    if component.own_account:
        spec["serviceAccountName"] = component.account
    if component.waits:
        spec["initContainers"] = [_hardened("frontend-check")]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": component.name, "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


def _container(component: Component) -> dict[str, Any]:
    container = _hardened("server")
    addresses = CALLS.get(component.name, ())
    container["env"] = [{"name": f"CALLED_{number}", "value": each} for number, each in enumerate(addresses)]
    if component.port:
        container["ports"] = [{"containerPort": component.port}]
        container["env"].append({"name": "PORT", "value": str(component.port)})
    if component.probe:
        asked: dict[str, Any] = {"port": component.port}
        if component.probe == HTTP:
            asked["path"] = "/_healthz"
        container |= {kind: {component.probe: asked} for kind in ("readinessProbe", "livenessProbe")}
    return container


def _hardened(name: str) -> dict[str, Any]:
    context = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
    }
    return {"name": name, "image": f"none.example/{name}:1", "securityContext": context}


def _service(component: Component, name: str, **spec: Any) -> dict[str, Any]:
    labels = {"app": component.name}
    port = {"name": component.port_name, "port": component.service_port, "targetPort": component.port}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": [port], **spec},
    }
