"""Which pod shows a Kubernetes token, and which instance of which workload that is.

A sidecar proves its pod by a ServiceAccount token that the kubelet made for that pod and for nobody but us: projected,
of our audience, bound to the pod's uid. The rules, in order; the first that is broken refuses:

1. The API server reviews the token, asked for our audience, and has to say that it is good for it; and, asked once
   more, that it is not good for the API server itself. We read nothing of a token ourselves.
2. It is bound to a pod. A token of a node, of a Secret or of an account alone proves no pod.
3. The caller says which pod it is, and means that one.
4. That pod is there now, with that uid and account, is neither ending nor ended, has a network of its own, our sidecar,
   and a namespace in which pods are meshed: read from the API server, not from a cache.
5. The call does not come from another pod's address. (Addresses prove nothing, but they can give somebody away.)
6. The inventory, which follows the owners of a pod, knows it under that address and account as an instance of a meshed
   workload. Where it does not know it yet, it is waited for, a moment.

What is refused is an :class:`~controller.errors.AttestationRefused` with a code and a remedy. What can not be found out
(the API server is away, or forbids us to ask) is an :class:`~controller.errors.AttestationUnavailable`: nobody is
refused for it, and nobody gets a certificate.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from controller.engine.subscriptions import Subscription
from controller.errors import AttestationRefused, AttestationUnavailable
from controller.injection.audience import AUDIENCE
from controller.injection.names import INJECTION, SIDECAR, SYSTEM_NAMESPACES
from controller.inventory import Inventory
from controller.inventory.model import plain_address
from controller.issuer import Attested, network_of
from controller.kube.attestation_turns import AddressTurns
from controller.kube.client import Document
from controller.kube.errors import KubernetesError, NoSuchObject
from controller.kube.kinds import PODS, TOKEN_REVIEWS, Resource
from controller.kube.token_review import BoundPod, bound_pod, check_ours_alone
from controller.view import View
from graph.model import Instance

log = logging.getLogger("hedgerow.kube.attestation")

#: Longer than any API server makes them, and much shorter than what gRPC takes.
MAX_TOKEN = 16 * 1024
#: Tokens that the API server is asked about at once, and those of them that one address may have. More wait.
AT_ONCE = 16
OF_AN_ADDRESS = 8
#: Seconds for all of it; a sidecar waits 10.
PATIENCE = 8.0
#: Seconds of them that the inventory may take to hear of a pod that has just begun.
INVENTORY_PATIENCE = 5.0

#: RFC 7519: three parts of base64url.
_FORM = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_LIVE = ("Pending", "Running")


class Requests(Protocol):
    """What is asked of the API server, as :class:`controller.kube.client.Client` does it."""

    async def create(
        self, resource: Resource, body: Document, namespace: str = "", *, dry_run: bool = False
    ) -> Document: ...

    async def get(self, resource: Resource, name: str, namespace: str = "", subresource: str = "") -> Document: ...


class Inventories(Protocol):
    """What is asked of the engine."""

    @property
    def view(self) -> View: ...

    def subscribe(self, limit: int = 256) -> Subscription: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """Durations in seconds."""

    whole: float = PATIENCE
    inventory: float = INVENTORY_PATIENCE


class Attestor:
    """Implements :class:`controller.issuer.TokenAttestor` on a cluster.

    :param own_namespace: the control plane's, in which no pod is meshed
    :param audience: whom tokens have to be for
    :param at_once: tokens that are looked at at the same time; ``of_an_address``: of one sender
    """

    def __init__(
        self,
        requests: Requests,
        inventories: Inventories,
        own_namespace: str,
        *,
        audience: str = AUDIENCE,
        at_once: int = AT_ONCE,
        of_an_address: int = OF_AN_ADDRESS,
        patience: Patience | None = None,
    ) -> None:
        self._requests = requests
        self._inventories = inventories
        self._audience = audience
        self._unmeshed = SYSTEM_NAMESPACES | {own_namespace}
        self._turns = AddressTurns(at_once, of_an_address)
        self._patience = patience or Patience()

    async def attest(self, token: str, instance: str, address: str, admit: Callable[[], None]) -> Attested:
        """The instance whose sidecar shows ``token``.

        :param instance: the pod's name, as the caller says it
        :param address: where the call comes from
        :param admit: asked when its turn has come, right before the API server is; what it raises is raised
        :raises AttestationRefused: naming the rule that is broken
        :raises AttestationUnavailable: when the API server or the inventory can not tell, now
        """
        if len(token) > MAX_TOKEN or not _FORM.fullmatch(token):
            raise AttestationRefused(
                "this is no token of Kubernetes",
                code="attestation-invalid",
                remedy="mount a projected serviceAccountToken and name its file in service_account_token_file",
            )
        try:
            async with asyncio.timeout(self._patience.whole):
                async with self._turns.of(network_of(address)):
                    admit()
                    bound = bound_pod(await self._review(token, self._audience), self._audience)
                    check_ours_alone(await self._review(token), bound, self._audience)
                    check_claim(bound, instance)
                    pod = await self._read(bound)
                check_pod(pod, bound)
                if bound.namespace in self._unmeshed:
                    raise _namespace_refused(bound, "are never meshed", "move the workload to a namespace of its own")
                found = await self._known(bound, _addresses(pod), address)
        except TimeoutError:
            raise AttestationUnavailable(
                "the API server took too long", remedy="it is tried again by itself; see the controller's log"
            ) from None
        return Attested(found, bound.uid, {**bound.evidence(), "from": address})

    # --- asking

    async def _review(self, token: str, *audiences: str) -> Mapping[str, Any]:
        """What the API server says of a token; without audiences: whether it is for the API server itself."""
        body = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "spec": {"token": token, **({"audiences": list(audiences)} if audiences else {})},
        }
        try:
            answer = await self._requests.create(TOKEN_REVIEWS, body)
        except KubernetesError as error:
            raise _unable("the token can not be reviewed", error) from None
        status = answer.get("status")
        return status if isinstance(status, dict) else {}

    async def _read(self, bound: BoundPod) -> Document:
        try:
            return await self._requests.get(PODS, bound.name, bound.namespace)
        except NoSuchObject:
            raise _gone(bound) from None
        except KubernetesError as error:
            raise _unable(f"pod {bound} can not be read", error) from None

    async def _known(self, bound: BoundPod, addresses: frozenset[str], caller: str) -> Instance:
        """The inventory's instance for the pod, waited for where it is not there yet."""
        async with self._inventories.subscribe() as changes:
            try:
                async with asyncio.timeout(self._patience.inventory):
                    while True:
                        inventory = self._inventories.view.inventory
                        check_address(inventory, bound, addresses, caller)
                        found = instance_of(inventory, bound, addresses)
                        if isinstance(found, Instance):
                            return found
                        problem = found
                        await anext(changes)
            except StopAsyncIteration:
                raise _not_yet("the controller is stopping") from None
            except TimeoutError:
                raise problem from None


# --- the rules


def check_claim(bound: BoundPod, instance: str) -> None:
    """:raises AttestationRefused: when the caller takes itself for another pod than its token does"""
    if instance != bound.name:
        raise AttestationRefused(
            f"it is bound to pod {bound}, and the caller says that it is {instance[:80]!a}",
            code="attestation-another-pod",
            remedy="set `instance` to the pod's name ($(POD_NAME)), and mount the pod's own projected token",
            pod=str(bound),
        )


def check_pod(pod: Mapping[str, Any], bound: BoundPod) -> None:
    """Rule 4, as far as the pod itself tells.

    :param pod: as the API server has it now
    :raises AttestationRefused: naming what is wrong
    """
    metadata, spec, status = (_mapping(pod.get(part)) for part in ("metadata", "spec", "status"))
    if metadata.get("uid") != bound.uid:
        raise _gone(bound)

    def refused(problem: str, code: str, remedy: str) -> AttestationRefused:
        return AttestationRefused(f"pod {bound} {problem}", code=code, remedy=remedy, pod=str(bound))

    if spec.get("serviceAccountName") != bound.account:
        raise refused("does not run under the token's ServiceAccount", "attestation-account", "use the pod's own token")
    if metadata.get("deletionTimestamp") is not None:
        raise refused("is ending", "attestation-pod-ending", "nothing is to be done; its successor gets a certificate")
    if status.get("phase") not in _LIVE:
        raise refused("has ended", "attestation-pod-ended", "nothing is to be done; its successor gets a certificate")
    if spec.get("hostNetwork"):
        raise refused(
            "has the node's network, where nobody can be told apart by address",
            "attestation-host-network",
            "remove hostNetwork, or leave the pod out of the mesh",
        )
    if SIDECAR not in _containers(spec):
        raise refused(
            f"has no container {SIDECAR}",
            "attestation-not-injected",
            f"label the namespace {INJECTION}=enabled and create the pod again, or use `hedgerow inject`",
        )


def check_address(inventory: Inventory, bound: BoundPod, addresses: frozenset[str], caller: str) -> None:
    """:raises AttestationRefused: when the call comes from an address that is another pod's, and not this one's"""
    if not addresses or plain_address(caller) in addresses:
        return
    other = inventory.instance_at(caller)
    if other is not None and (other.workload.namespace, other.name) != (bound.namespace, bound.name):
        raise AttestationRefused(
            f"it is bound to pod {bound}, and the call comes from pod {other.workload.namespace}/{other.name}",
            code="attestation-another-pod",
            remedy="a token was taken from its pod: quarantine the calling workload and look into it",
            pod=str(bound),
        )


def instance_of(
    inventory: Inventory, bound: BoundPod, addresses: frozenset[str]
) -> Instance | AttestationRefused | AttestationUnavailable:
    """Rule 6: the instance; else what to answer, unless the inventory says something else in a moment.

    :param addresses: the pod's own
    """
    namespace = inventory.namespaces.get(bound.namespace)
    if namespace is None:
        return _not_yet(f"the inventory does not have namespace {bound.namespace} yet")
    if dict(namespace.labels).get(INJECTION) != "enabled":
        remedy = f"`kubectl label namespace {bound.namespace} {INJECTION}=enabled`"
        return _namespace_refused(bound, "are not meshed", remedy)
    found = inventory.instances.get(f"{bound.namespace}/{bound.name}")
    if found is None:
        return _not_yet(
            f"the inventory does not have pod {bound} yet, or can not tell which workload it is of (see "
            "`hedgerow status`)"
        )
    if found.address not in addresses or found.uid != bound.uid:
        return _not_yet(f"the inventory still has an earlier pod {bound}")
    workload = inventory.workloads[found.workload]
    if (found.service_account or workload.service_account) != bound.account:
        return _not_yet(f"the inventory has pod {bound} under another ServiceAccount than {bound.account}")
    if not found.meshed or not workload.meshed or workload.account_identity:
        return _not_yet(f"the inventory has pod {bound}, of workload {found.workload}, as one without our sidecar")
    return found


def _addresses(pod: Mapping[str, Any]) -> frozenset[str]:
    given = _mapping(pod.get("status")).get("podIPs")
    found = [str(_mapping(each).get("ip", "")) for each in given] if isinstance(given, list) else []
    return frozenset(plain for address in found if (plain := plain_address(address)) is not None)


def _containers(spec: Mapping[str, Any]) -> set[object]:
    listed = [spec.get(kind) for kind in ("containers", "initContainers")]
    return {_mapping(each).get("name") for group in listed if isinstance(group, list) for each in group}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _gone(bound: BoundPod) -> AttestationRefused:
    return AttestationRefused(
        f"pod {bound} with uid {bound.uid} is not there any more",
        code="attestation-pod-gone",
        remedy="nothing is to be done; its successor gets a certificate",
        pod=str(bound),
    )


def _namespace_refused(bound: BoundPod, problem: str, remedy: str) -> AttestationRefused:
    return AttestationRefused(
        f"pods in namespace {bound.namespace} {problem}", code="attestation-namespace", remedy=remedy, pod=str(bound)
    )


def _not_yet(why: str) -> AttestationUnavailable:
    return AttestationUnavailable(why, remedy="it is tried again by itself", code="attestation-not-yet")


def _unable(what: str, error: KubernetesError) -> AttestationUnavailable:
    """The caller hears that it is not at fault; what is, stands in our own log, with the remedy."""
    log.error("%s: %s", what, error)
    return AttestationUnavailable(
        f"{what} ({error.code})", remedy="it is tried again by itself; the controller's log says what to do"
    )
