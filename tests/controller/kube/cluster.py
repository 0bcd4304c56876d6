"""Objects of a cluster as its API server writes them, and an assembly that hears of them."""

from __future__ import annotations

from controller.kube.inventory import objects
from controller.kube.inventory.assembly import Assembly
from controller.kube.reflector import Changed
from graph.model import WorkloadRef

TRUST_DOMAIN = "hedgerow.test"
CART = WorkloadRef("shop", "cart")
METHODS = {
    "Pod": ("pods", objects.pod),
    "Deployment": ("owners", objects.owner_of_kind("Deployment")),
    "StatefulSet": ("owners", objects.owner_of_kind("StatefulSet")),
    "ReplicaSet": ("owners", objects.bare_owner_of_kind("ReplicaSet")),
    "Job": ("owners", objects.bare_owner_of_kind("Job")),
    "CronJob": ("owners", objects.owner_of_kind("CronJob")),
    "Service": ("services", objects.service),
    "EndpointSlice": ("slices", objects.endpoint_slice),
    "Namespace": ("namespaces", objects.namespace),
    "Node": ("nodes", objects.node),
}
GROUPS = {
    "Deployment": "apps/v1",
    "ReplicaSet": "apps/v1",
    "StatefulSet": "apps/v1",
    "Job": "batch/v1",
    "CronJob": "batch/v1",
}


def owned_by(kind, name, uid="", api=""):
    return {
        "apiVersion": api or GROUPS[kind],
        "kind": kind,
        "name": name,
        "uid": uid or f"{kind}-{name}",
        "controller": True,
    }


def made(kind, name, namespace="shop", owner=None, labels=None, uid="", created="2026-01-01T00:00:00Z", **parts):
    metadata = {"namespace": namespace, "name": name, "uid": uid or f"{kind}-{name}", "creationTimestamp": created}
    if kind in ("Namespace", "Node"):
        del metadata["namespace"]
    return {
        "kind": kind,
        "metadata": metadata | {"labels": labels or {}} | ({"ownerReferences": [owner]} if owner else {}),
        **parts,
    }


def spec(*, sidecar=True, account="default", ports=(("http", 8080),), **more):
    declared = [{"name": name, "containerPort": number} for name, number in ports]
    containers = [{"name": "app", "ports": declared}]
    if sidecar:
        containers.append({"name": "hedgerow-sidecar", "ports": [{"name": "metrics", "containerPort": 15020}]})
    return {"containers": containers, "serviceAccountName": account, **more}


def pod(
    name,
    address="",
    owner=None,
    labels=None,
    *,
    ready=True,
    created="2026-01-02T00:00:00Z",
    ending=False,
    also=(),
    **more,
):
    ips = [{"ip": each} for each in (address, *also) if each]
    status = {"podIPs": ips, "phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]}
    document = made("Pod", name, owner=owner, labels={"app": "cart"} if labels is None else labels, created=created)
    if ending:
        document["metadata"]["deletionTimestamp"] = "2026-01-03T00:00:00Z"
    return document | {"spec": spec(**more), "status": status}


def deployment(name="cart", labels=None, **more):
    mine = labels or {"app": name}
    template = {"metadata": {"labels": mine}, "spec": spec(**more)}
    return made("Deployment", name, spec={"selector": {"matchLabels": mine}, "template": template})


def replica_set(name="cart-1", of="cart"):
    return made("ReplicaSet", name, owner=owned_by("Deployment", of))


def service(name="cart", address="10.96.0.1", selector=None, **port):
    ports = [{"name": "web", "port": 80, "targetPort": "http", "protocol": "TCP"} | port]
    given = {"clusterIP": address, "clusterIPs": [address], "ports": ports, "selector": selector or {"app": "cart"}}
    return made("Service", name, spec=given)


def endpoint_slice(name, of, *endpoints, port=8080, app_protocol=""):
    listed = [{"addresses": [at], "conditions": conditions} for at, conditions in endpoints]
    ports = [{"name": "web", "port": port, "protocol": "TCP", "appProtocol": app_protocol}]
    labels = {"kubernetes.io/service-name": of}
    return made("EndpointSlice", name, labels=labels, addressType="IPv4", ports=ports, endpoints=listed)


def annotated(document, *, template=False, **annotations):
    """The same object with annotations of ours; for an owner those of its template's pods."""
    place = document["spec"]["template"]["metadata"] if template else document["metadata"]
    place["annotations"] = {f"hedgerow.dev/{name.replace('_', '-')}": value for name, value in annotations.items()}
    return document


IN_CART = owned_by("ReplicaSet", "cart-1")


class Cluster:
    """Objects, and the assembly that is told of every change to them."""

    def __init__(self, *documents, networks=()):
        self.assembly = Assembly(TRUST_DOMAIN, networks)
        self.held = {}
        for each in documents:
            self.put(each)

    def put(self, document):
        key = document["kind"], document["metadata"].get("namespace", ""), document["metadata"]["name"]
        self._tell(key, METHODS[document["kind"]][1](document))

    def drop(self, kind, name, namespace="shop"):
        key = kind, "" if kind in ("Namespace", "Node") else namespace, name
        if key in self.held:
            self._tell(key, None)

    def _tell(self, key, facts):
        before = self.held.get(key)
        if before == facts:
            return
        getattr(self.assembly, METHODS[key[0]][0])([Changed(key[1:], before, facts)])
        if facts is None:
            del self.held[key]
        else:
            self.held[key] = facts

    def build(self):
        return self.assembly.build()

    def kept(self):
        """The pods that go on being whose they were, though their owners do not say so now."""
        return {key for key, found in self.assembly._membership._attributions.items() if found.kept}

    def hear_anew_of_kept(self):
        """Have the assembly forget of them what it can not see now."""
        for key in self.kept():
            facts = self.held["Pod", *key]
            self._tell(("Pod", *key), None)
            self._tell(("Pod", *key), facts)

    def anew(self):
        """The inventory as an assembly makes it that hears of everything at once, in another order."""
        fresh = Assembly(TRUST_DOMAIN)
        for key, facts in sorted(self.held.items(), reverse=True):
            getattr(fresh, METHODS[key[0]][0])([Changed(key[1:], None, facts)])
        return fresh.build(), fresh.problems


def workloads(inventory):
    return {each.name: str(each.workload) for each in inventory.instances.values()}


READY, NOT_READY, ENDING = (
    {"ready": True, "serving": True},
    {"ready": False, "serving": False},
    {"ready": False, "serving": True, "terminating": True},
)
