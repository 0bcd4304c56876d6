"""Keeps the injector's certificate in Secret ``hedgerow-injector-tls``, its authority in the webhook's ``caBundle``.

Who edits either sees it repaired. Where cert-manager does this work (its annotations stand on one of them), or the
setting ``injector_certificate: external`` says that somebody else does, nothing is touched.

The Secret belongs to the webhook configuration, so that it goes with it when Hedgerow is uninstalled. Several
controllers may do this at once: a Secret that changed meanwhile is read again, never overwritten.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable
from typing import Any, Final

from controller.injection.webhook_configuration import NAME, SERVICE
from controller.kube.client import Client
from controller.kube.errors import Conflicting, Expired, NoSuchObject
from controller.kube.kinds import MUTATING_WEBHOOKS, SECRETS, Resource
from controller.kube.webhook_keys import Held, Times, advance
from controller.together import until_one_ends

log = logging.getLogger("hedgerow.kube.webhook")

SECRET: Final = "hedgerow-injector-tls"  # noqa: S105  # its name
LABELS: Final = {"app.kubernetes.io/managed-by": "hedgerow", "hedgerow.dev/owned-by": "controller"}
#: Seconds between two looks, for what only time changes.
INTERVAL: Final = 30.0
#: Steps that follow each other at once: a pair is made, announced and served.
_STEPS: Final = 4
_CERT_MANAGER: Final = ("cert-manager.io/certificate-name", "cert-manager.io/inject-ca-from")

type Document = dict[str, Any]


class WebhookCertificate:
    """A part of the cluster (:class:`~controller.kube.supervision.Part`).

    :param namespace: Hedgerow's own
    :param clock: seconds since the epoch
    """

    name = "webhook-certificate"

    def __init__(
        self,
        client: Client,
        namespace: str,
        clock: Callable[[], float],
        times: Times | None = None,
        interval: float = INTERVAL,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._clock = clock
        self._times = times or Times()
        self._interval = interval
        self._changed = asyncio.Event()
        self._host = f"{SERVICE}.{namespace}.svc"
        self._said = ""
        self.synced = False

    async def run(self) -> None:
        """Keep it until cancelled.

        :raises KubernetesError: as the API server refuses; the supervision tries again
        """
        await until_one_ends(
            self._follow(MUTATING_WEBHOOKS, NAME, ""),
            self._follow(SECRETS, SECRET, self._namespace),
            self._keep(),
        )

    async def _follow(self, resource: Resource, name: str, namespace: str) -> None:
        """Notice every change of one object. Without a version a watch begins with what there is."""
        while True:
            try:
                async for events in self._client.watch(resource, "", namespace, fields=f"metadata.name={name}"):
                    if any(event.kind != "BOOKMARK" for event in events):
                        self._changed.set()
            except Expired:
                continue

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            await self.reconcile()
            self.synced = True
            try:
                async with asyncio.timeout(self._interval):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def reconcile(self) -> None:
        """One round: everything as it should be now.

        :raises KubernetesError: as the API server refuses
        """
        for _ in range(_STEPS):
            hooks, secret = await self._present(MUTATING_WEBHOOKS, NAME, ""), await self._secret()
            if hooks is None:
                self._say("there is no webhook configuration %s: pods are not injected", NAME)
                return
            if _of_cert_manager(hooks) or _of_cert_manager(secret):
                self._say("cert-manager keeps the injector's certificate")
                return
            self._say("")
            try:
                if not await self._step(hooks, secret):
                    return
            except (Conflicting, NoSuchObject):
                continue  # somebody was faster: another controller, or whoever takes the old one's things away

    async def _step(self, hooks: Document, secret: Document | None) -> bool:
        """Whether there is more to do at once."""
        now = self._clock()
        told = next((bundle for hook in hooks["webhooks"] if (bundle := _bundle_of(hook))), "")
        held = Held.read((secret or {}).get("data") or {}, told, self._host, now)
        bundle = base64.b64encode(held.bundle()).decode()
        known = bool(held.bundle()) and all(_bundle_of(hook) == bundle for hook in hooks["webhooks"])
        wanted = advance(held, self._host, now, self._times, known=known)
        owned = secret is not None and _is_owned(secret, hooks)
        if wanted != held or not owned or wanted.data() != (secret or {}).get("data"):
            await self._write(secret, wanted, hooks)
            return True
        if known:
            return False
        await self._tell(hooks, bundle)
        return True

    async def _write(self, secret: Document | None, held: Held, hooks: Document) -> None:
        owner = {
            "apiVersion": MUTATING_WEBHOOKS.api_version,
            "kind": MUTATING_WEBHOOKS.kind,
            "name": NAME,
            "uid": hooks["metadata"]["uid"],
        }
        if secret is None:
            metadata: Document = {"name": SECRET, "namespace": self._namespace, "labels": LABELS}
            body: Document = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata}
        else:
            body = {**secret, "metadata": {**secret["metadata"]}}
            body["metadata"]["labels"] = {**(secret["metadata"].get("labels") or {}), **LABELS}
        body["metadata"]["ownerReferences"] = [owner]
        body["data"] = held.data()
        if secret is None:
            await self._client.create(SECRETS, body, self._namespace)
        else:
            await self._client.replace(SECRETS, SECRET, body, self._namespace)
        log.info("the injector's certificate was stored in Secret %s/%s", self._namespace, SECRET)

    async def _tell(self, hooks: Document, bundle: str) -> None:
        operations: list[Document] = []
        for index, hook in enumerate(hooks["webhooks"]):
            if _bundle_of(hook) != bundle:
                operations += [
                    {"op": "test", "path": f"/webhooks/{index}/name", "value": hook["name"]},
                    {"op": "add", "path": f"/webhooks/{index}/clientConfig/caBundle", "value": bundle},
                ]
        version = hooks["metadata"]["resourceVersion"]  # as a value: the API server answers 409 to another one
        operations.insert(0, {"op": "replace", "path": "/metadata/resourceVersion", "value": version})
        await self._client.patch(MUTATING_WEBHOOKS, NAME, operations, form="application/json-patch+json")
        log.info("API servers were told the injector's authorities (caBundle of %s)", NAME)

    async def _secret(self) -> Document | None:
        return await self._present(SECRETS, SECRET, self._namespace)

    async def _present(self, resource: Resource, name: str, namespace: str) -> Document | None:
        try:
            return await self._client.get(resource, name, namespace)
        except NoSuchObject:
            return None

    def _say(self, message: str, *arguments: str) -> None:
        """Once, until it is something else."""
        if message != self._said and message:
            log.warning(message, *arguments)
        self._said = message


def _bundle_of(hook: Document) -> str:
    return str((hook.get("clientConfig") or {}).get("caBundle") or "")


def _of_cert_manager(found: Document | None) -> bool:
    annotations = ((found or {}).get("metadata") or {}).get("annotations") or {}
    return any(name in annotations for name in _CERT_MANAGER)


def _is_owned(secret: Document, hooks: Document) -> bool:
    owners = secret["metadata"].get("ownerReferences") or []
    return len(owners) == 1 and owners[0].get("uid") == hooks["metadata"]["uid"]
