"""Before an installation: can this cluster take Hedgerow, and may whoever asks install it?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from controller.injection.names import INJECTION, SIDECAR
from controller.injection.settings import NATIVE_SINCE
from controller.kube.client import Client
from controller.kube.errors import Forbidden, NoSuchObject
from controller.kube.kinds import DEPLOYMENTS, MUTATING_WEBHOOKS, NAMESPACES, PODS, Resource
from controller.kube.settings import NAMESPACE
from hedgerow.checking.finding import Finding, failed, good, listed, skipped, warning
from hedgerow.checking.reading import (
    Document,
    annotations_of,
    containers,
    ended,
    full_name,
    labels_of,
    leaving,
    name_of,
    started_again,
)
from hedgerow.words import many

CONTROLLER = "hedgerow-controller"
INJECTOR = "hedgerow-injector"
INSTALL = f"helm install hedgerow charts/hedgerow -n {NAMESPACE} --create-namespace"

_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", False)
_STORAGE_CLASSES = Resource("storage.k8s.io", "v1", "storageclasses", "StorageClass", False)
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
#: What the chart makes: group, resource, and whether in our namespace.
_MADE = (
    ("", "namespaces", False),
    ("apiextensions.k8s.io", "customresourcedefinitions", False),
    ("rbac.authorization.k8s.io", "clusterroles", False),
    ("rbac.authorization.k8s.io", "clusterrolebindings", False),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", False),
    ("", "serviceaccounts", True),
    ("", "configmaps", True),
    ("", "services", True),
    ("", "persistentvolumeclaims", True),
    ("apps", "deployments", True),
    ("policy", "poddisruptionbudgets", True),
    ("networking.k8s.io", "networkpolicies", True),
    ("rbac.authorization.k8s.io", "roles", True),
    ("rbac.authorization.k8s.io", "rolebindings", True),
)
#: How other meshes mark a namespace for injection.
_OTHERS = (("istio-injection", "enabled"), ("istio.io/rev", ""), ("linkerd.io/inject", "enabled"))


async def version(client: Client) -> Finding:
    """The API server answers, and is new enough."""
    major, minor = await client.version()
    running = f"Kubernetes {major}.{minor}"
    if (major, minor) >= NATIVE_SINCE:
        return good("version", f"{running}: sidecars run as native ones")
    needed = ".".join(map(str, NATIVE_SINCE))
    hint = "update the cluster, or inject by hand with `hedgerow inject`, which then makes plain containers"
    return failed("version", f"{running}: the chart needs {needed}, the first with native sidecars", hint)


async def rights(client: Client) -> Finding:
    """Whoever asks may make what the chart makes."""

    async def may(group: str, resource: str, ours: bool) -> bool:
        wanted = {"verb": "create", "group": group, "resource": resource} | ({"namespace": NAMESPACE} if ours else {})
        body = {
            "apiVersion": _REVIEWS.api_version,
            "kind": _REVIEWS.kind,
            "spec": {"resourceAttributes": wanted},
        }
        answer = await client.create(_REVIEWS, body)
        return answer.get("status", {}).get("allowed") is True

    answers = await asyncio.gather(*(may(*each) for each in _MADE))
    missing = [
        f"{resource}.{group}" if group else resource
        for (group, resource, _), allowed in zip(_MADE, answers, strict=True)
        if not allowed
    ]
    if not missing:
        return good("rights", "you may install the chart")
    return failed(
        "rights",
        f"you may not create {listed(missing, 20)}",
        "install with a user who may (cluster-admin), or have one apply `helm template` for you",
    )


async def namespace(client: Client) -> Finding:
    """Our namespace is free, or is ours already, and is not injected itself."""
    try:
        found = await client.get(NAMESPACES, NAMESPACE)
    except NoSuchObject:
        return good("namespace", f"{NAMESPACE} is not there yet; --create-namespace makes it")
    if labels_of(found).get(INJECTION) == "enabled":
        hint = f"kubectl label namespace {NAMESPACE} {INJECTION}-"
        return failed("namespace", f"{NAMESPACE} asks for sidecars itself: they would wait for a controller", hint)
    if leaving(found):
        hint = f"wait for it; kubectl get namespace {NAMESPACE} -o yaml says what it waits for"
        return failed("namespace", f"{NAMESPACE} is being deleted", hint)
    return good("namespace", f"{NAMESPACE} is there")


async def leftovers(client: Client) -> Finding:
    """No webhook of an installation that is gone: it would keep every pod of the labelled namespaces out."""
    try:
        found = await client.get(MUTATING_WEBHOOKS, INJECTOR)
    except NoSuchObject:
        return good("leftovers", "nothing of an earlier installation is in the way")
    release = annotations_of(found).get("meta.helm.sh/release-name", "")
    if release:
        return good("leftovers", f"there is an installation (Helm release {release}); `helm upgrade` goes on with it")
    return failed(
        "leftovers",
        f"the MutatingWebhookConfiguration {INJECTOR} belongs to no Helm release",
        f"kubectl delete mutatingwebhookconfiguration {INJECTOR}",
    )


async def is_installed(client: Client) -> bool:
    """Whether anything that serves is there. Custom resources alone serve nothing: they may be kept without it."""
    for resource, name, space in (
        (DEPLOYMENTS, CONTROLLER, NAMESPACE),
        (DEPLOYMENTS, INJECTOR, NAMESPACE),
        (MUTATING_WEBHOOKS, INJECTOR, ""),
    ):
        try:
            await client.get(resource, name, space)
        except NoSuchObject:
            continue
        return True
    return False


async def old_sidecars(client: Client) -> Finding:
    """No pod kept the sidecar of an installation that is gone: nobody renews its certificate or its policy."""
    left: list[Document] = []
    try:
        if await is_installed(client):
            return skipped("old-sidecars", "there is an installation, which looks after its sidecars")
        async for page in client.pages(PODS):
            left += [pod for pod in page.items if not (ended(pod) or leaving(pod)) and _has_sidecar(pod)]
    except Forbidden as error:
        return skipped("old-sidecars", str(error))
    if not left:
        return good("old-sidecars", "no pod has a sidecar of an earlier installation")
    text = (
        f"{many(len(left), 'pod')} with a sidecar of an earlier installation: {listed(map(full_name, left))}; "
        "when its certificate ends, it refuses connections"
    )
    return warning("old-sidecars", text, f"start them again, which takes it out: {started_again(left)}")


def _has_sidecar(pod: Document) -> bool:
    return any(each.get("name") == SIDECAR for each in containers(pod))


async def storage(client: Client) -> Finding:
    """A volume for the controller's state can be had."""
    classes = await client.every(_STORAGE_CLASSES)
    for each in classes:
        if annotations_of(each).get(_DEFAULT_CLASS) == "true":
            return good("storage", f"the default storage class is {name_of(each)}")
    names = listed(name_of(each) for each in classes)
    return warning(
        "storage",
        f"there is no default storage class{f', only {names}' if names else ''}",
        "set controller.persistence.storageClass or existingClaim, or make a volume by hand",
    )


async def other_meshes(client: Client) -> Finding:
    """No namespace asks two meshes for sidecars: each would capture the other's connections."""
    both: list[str] = []
    others: list[str] = []
    for each in await client.every(NAMESPACES):
        labels = {**annotations_of(each), **labels_of(each)}
        if not leaving(each) and any(
            labels.get(key) == value or (not value and labels.get(key)) for key, value in _OTHERS
        ):
            (both if labels.get(INJECTION) == "enabled" else others).append(name_of(each))
    if both:
        hint = f"remove one of the labels: kubectl label namespace {sorted(both)[0]} {INJECTION}-"
        return failed("other-meshes", f"{listed(both)} ask another mesh for sidecars too", hint)
    text = f"{listed(others)} belong to another mesh, and stay there" if others else "no other mesh is there"
    return good("other-meshes", text)


CHECKS: tuple[tuple[str, Callable[[Client], Awaitable[Finding]]], ...] = (
    ("version", version),
    ("rights", rights),
    ("namespace", namespace),
    ("leftovers", leftovers),
    ("old-sidecars", old_sidecars),
    ("storage", storage),
    ("other-meshes", other_meshes),
)
