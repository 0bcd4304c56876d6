"""After an installation: is everything there, does it serve, and do the pods have what they should?"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable

import yaml
from cryptography import x509

from controller.injection.names import INJECTION, SIDECAR, TRUST_CONFIG_MAP, TRUST_KEY
from controller.kube.client import Client
from controller.kube.errors import NoSuchObject
from controller.kube.kinds import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    MUTATING_WEBHOOKS,
    NAMESPACES,
    PODS,
    Resource,
)
from controller.kube.settings import NAMESPACE
from hedgerow.checking.finding import Finding, failed, good, listed, skipped, warning
from hedgerow.checking.preflight import CONTROLLER, INJECTOR, INSTALL, old_sidecars, other_meshes
from hedgerow.checking.reading import (
    Document,
    annotations_of,
    condition,
    containers,
    ended,
    full_name,
    is_ready,
    labels_of,
    leaving,
    name_of,
    started_again,
    statuses,
    trouble,
    without_a_log,
)
from hedgerow.words import many

_CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
_OURS = ("accessoverrides", "learnedpolicies", "segmentationmodes")
_SERVED = "v1alpha1"
_ENDS_SOON = 7 * 86400.0


async def resources(client: Client) -> Finding:
    """Our kinds of resources are there, in the version that this command speaks."""
    missing = []
    for plural in _OURS:
        try:
            found = await client.get(_CRDS, f"{plural}.hedgerow.dev")
        except NoSuchObject:
            missing.append(f"{plural}.hedgerow.dev")
            continue
        served = [str(each.get("name")) for each in found.get("spec", {}).get("versions") or () if each.get("served")]
        if _SERVED not in served:
            hint = "use the command of the installed version, or `helm upgrade`"
            return failed("resources", f"{plural}.hedgerow.dev is served as {listed(served)}, not {_SERVED}", hint)
        if condition(found, "Established").get("status") != "True":
            hint = f"kubectl describe crd {plural}.hedgerow.dev says why"
            return failed("resources", f"{plural}.hedgerow.dev is not established", hint)
    if missing:
        hint = f"helm upgrade --install hedgerow charts/hedgerow -n {NAMESPACE}, with crds.install=true"
        return failed("resources", f"{listed(missing)} are not there", hint)
    return good("resources", f"{len(_OURS)} custom resources are served")


async def controller(client: Client) -> Finding:
    """The controller serves. While it does not, sidecars go on by what they have."""
    return await _deployment(client, "controller", CONTROLLER)


async def injector(client: Client) -> Finding:
    """The injector serves."""
    return await _deployment(client, "injector", INJECTOR)


async def _deployment(client: Client, check: str, name: str) -> Finding:
    try:
        found = await client.get(DEPLOYMENTS, name, NAMESPACE)
    except NoSuchObject:
        return failed(check, f"there is no Deployment {NAMESPACE}/{name}", INSTALL)
    wanted = int(found.get("spec", {}).get("replicas", 1))
    status = found.get("status", {})
    ready, updated = int(status.get("readyReplicas") or 0), int(status.get("updatedReplicas") or 0)
    seen = status.get("observedGeneration", 0) == found.get("metadata", {}).get("generation")
    if wanted and ready >= wanted and updated >= wanted and seen:
        return good(check, f"{ready} of {wanted} ready")
    pods = await client.every(PODS, NAMESPACE, labels=f"app.kubernetes.io/name={name}")
    if not wanted:
        return failed(check, "it is scaled to 0", f"scale it: deployment/{name}")
    # of several pods kubectl shows the log of one that is well: the one in trouble has to be named
    waiting = sorted(
        (pod for pod in pods if not is_ready(pod) and not leaving(pod)),
        key=lambda pod: (not trouble(pod), name_of(pod)),
    )
    why = trouble(waiting[0]) if waiting else ""
    text = f"{ready} of {wanted} ready{f'; {why}' if why else ''}"
    return (warning if ready else failed)(check, text, _where_it_says_why(name, waiting))


def _where_it_says_why(name: str, waiting: list[Document]) -> str:
    if not waiting:
        return f"kubectl -n {NAMESPACE} describe deployment/{name} says why"
    first = waiting[0]
    if "PersistentVolumeClaim" in trouble(first):
        return "give it a volume: controller.persistence.storageClass, or existingClaim (docs/check.md#storage)"
    if without_a_log(first):
        return f"kubectl -n {NAMESPACE} describe pod {name_of(first)} says why"
    return f"kubectl -n {NAMESPACE} logs {name_of(first)} says why"


async def webhook(client: Client) -> Finding:
    """The API server asks the injector, and knows by which authority to believe it."""
    try:
        found = await client.get(MUTATING_WEBHOOKS, INJECTOR)
    except NoSuchObject:
        hint = "helm upgrade --install brings it back"
        return failed("webhook", f"there is no MutatingWebhookConfiguration {INJECTOR}: no pod gets a sidecar", hint)
    hooks = found.get("webhooks") or []
    if not hooks:
        return failed("webhook", f"{INJECTOR} lists no webhook", "helm upgrade --install brings it back")
    # whose work it is: docs/injection.md
    certified = "cert-manager.io/inject-ca-from" in annotations_of(found)
    keeper = f"certificate/{INJECTOR}" if certified else f"deployment/{CONTROLLER}"
    why = f"kubectl -n {NAMESPACE} {'describe' if certified else 'logs'} {keeper} says why it"
    writer = "cert-manager's cainjector" if certified else "the controller"
    ends = []
    for hook in hooks:
        bundle = str(hook.get("clientConfig", {}).get("caBundle") or "")
        try:
            certificates = x509.load_pem_x509_certificates(base64.b64decode(bundle, validate=True))
        except (ValueError, binascii.Error):
            hint = f"{writer} writes it: {why} did not"
            return failed("webhook", f"{hook.get('name')} has no authority to believe the injector by", hint)
        ends.append(max(each.not_valid_after_utc.timestamp() for each in certificates))
    left = min(ends) - time.time()
    if left <= 0:
        again = f"kubectl -n {NAMESPACE} rollout restart deployment/{CONTROLLER} makes a new one"
        hint = f"{why} was not renewed" if certified else again
        return failed("webhook", "the injector's authority has expired", hint)
    if not await _has_endpoints(client, INJECTOR):
        policy = {str(hook.get("failurePolicy", "Fail")) for hook in hooks}
        what = "pods in labelled namespaces can not be made" if "Fail" in policy else "pods get no sidecar"
        return failed("webhook", f"no injector answers: {what}", f"kubectl -n {NAMESPACE} get pods")
    if left < _ENDS_SOON:
        hint = f"it is renewed long before; {why} was not"
        return warning("webhook", f"the injector's authority ends in {left / 3600:.0f} hours", hint)
    return good("webhook", f"the API server asks the injector; its authority holds for {left / 86400:.0f} days")


async def _has_endpoints(client: Client, service: str) -> bool:
    slices = await client.every(ENDPOINT_SLICES, NAMESPACE, labels=f"kubernetes.io/service-name={service}")
    return any(
        endpoint.get("conditions", {}).get("ready") is not False
        for each in slices
        for endpoint in each.get("endpoints") or ()
    )


async def _labelled(client: Client) -> list[Document]:
    found = await client.every(NAMESPACES, labels=f"{INJECTION}=enabled")
    return [each for each in found if not leaving(each)]


async def trust(client: Client) -> Finding:
    """Every labelled namespace has the roots by which new sidecars believe the controller."""
    spaces = [name_of(each) for each in await _labelled(client)]
    if not spaces:
        hint = f"kubectl label namespace NAMESPACE {INJECTION}=enabled, and start its pods again"
        return warning("trust", "no namespace asks for sidecars", hint)
    lacking = []
    for space in spaces:
        try:
            found = await client.get(CONFIG_MAPS, TRUST_CONFIG_MAP, space)
            roots = x509.load_pem_x509_certificates(str((found.get("data") or {}).get(TRUST_KEY, "")).encode())
            if all(each.not_valid_after_utc.timestamp() <= time.time() for each in roots):
                lacking.append(space)
        except (NoSuchObject, ValueError):
            lacking.append(space)
    if lacking:
        hint = f"the controller keeps it: kubectl -n {NAMESPACE} logs deployment/{CONTROLLER} says why it does not"
        return failed("trust", f"ConfigMap {TRUST_CONFIG_MAP} is missing or out of date in {listed(lacking)}", hint)
    return good("trust", f"{many(len(spaces), 'namespace')} with sidecars, each with the trust bundle")


async def _pods(client: Client) -> list[Document]:
    """The pods that should have a sidecar."""
    found = []
    for space in await _labelled(client):
        for pod in await client.every(PODS, name_of(space)):
            said = {**annotations_of(pod), **labels_of(pod)}.get(INJECTION, "enabled")
            on_host = pod.get("spec", {}).get("hostNetwork") is True
            if said != "disabled" and not (ended(pod) or on_host or leaving(pod)):
                found.append(pod)
    return found


async def injected(client: Client) -> Finding:
    """Every pod of the labelled namespaces has a sidecar."""
    pods = await _pods(client)
    if not pods:
        return skipped("injected", "no pod asks for a sidecar")
    bare = [pod for pod in pods if not any(each.get("name") == SIDECAR for each in containers(pod))]
    if not bare:
        return good("injected", f"{many(len(pods), 'pod')} with a sidecar, none without")
    hint = f"they are older than the label: {started_again(bare)}"
    text = f"{len(bare)} of {many(len(pods), 'pod')} without a sidecar: {listed(map(full_name, bare))}"
    return warning("injected", text, hint)


async def sidecars(client: Client) -> Finding:
    """Every sidecar is ready: it has a certificate and a policy."""
    waiting = []
    ready = 0
    for pod in await _pods(client):
        for status in statuses(pod):
            if status.get("name") == SIDECAR:
                if status.get("ready"):
                    ready += 1
                else:
                    waiting.append(pod)
    if not waiting:
        return good("sidecars", f"{many(ready, 'sidecar')} ready") if ready else skipped("sidecars", "there are none")
    first = waiting[0]
    space, why = str(first.get("metadata", {}).get("namespace", "")), trouble(first)
    hint = f"kubectl -n {space} logs {name_of(first)} -c {SIDECAR} says why"
    text = f"{many(len(waiting), 'sidecar')} not ready: {listed(map(full_name, waiting))}{f'; {why}' if why else ''}"
    return failed("sidecars", text, hint)


async def versions(client: Client) -> Finding:
    """Sidecars run the image that new pods get."""
    try:
        found = await client.get(CONFIG_MAPS, INJECTOR, NAMESPACE)
        settings = yaml.safe_load((found.get("data") or {}).get("injector.yaml", ""))
        wanted = str(settings["injection"]["image"])
    except (NoSuchObject, yaml.YAMLError, KeyError, TypeError):
        return skipped("versions", "the injector's settings can not be read")
    running = [
        (pod, str(each.get("image", "")))
        for pod in await _pods(client)
        for each in containers(pod)
        if each.get("name") == SIDECAR
    ]
    other = [pod for pod, image in running if image != wanted]
    if not other:
        return good("versions", f"all run {wanted}") if running else skipped("versions", "there are no sidecars")
    hint = f"when it suits: {started_again(other)}"
    text = f"{len(other)} of {many(len(running), 'sidecar')} with another image than {wanted}"
    return warning("versions", text, hint)


async def installation(client: Client) -> Finding:
    """There is none: nothing else needs to be said."""
    hint = f"{INSTALL}, after `hedgerow check --pre`; where it is on another cluster, name that with --context"
    return failed("installation", "Hedgerow is not installed on this cluster", hint)


CHECKS: tuple[tuple[str, Callable[[Client], Awaitable[Finding]]], ...] = (
    ("resources", resources),
    ("controller", controller),
    ("injector", injector),
    ("webhook", webhook),
    ("trust", trust),
    ("injected", injected),
    ("sidecars", sidecars),
    ("versions", versions),
    ("other-meshes", other_meshes),
)
#: Where nothing was ever installed, or nothing is any more.
WITHOUT_INSTALLATION: tuple[tuple[str, Callable[[Client], Awaitable[Finding]]], ...] = (
    ("installation", installation),
    ("old-sidecars", old_sidecars),
    ("other-meshes", other_meshes),
)
