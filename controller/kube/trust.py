"""Keeps the trust bundle in every meshed namespace, where pods mount it: ConfigMap ``hedgerow-trust``.

Rules:

1. A namespace with the injection label has it. Whoever edits or deletes it gets it back; with another sidecar's roots
   in it, its pods would trust strangers, so our key is taken over by force and nothing else in the object is touched.
2. It is ours by its labels and its field manager. One without both is never deleted, in whatever namespace.
3. Where the label has gone it stays for as long as the inventory has a pod with a sidecar there, then it is deleted.
4. New roots of the authority are everywhere within a few seconds.
5. Who fights with us about one of them is answered more and more slowly, and it is in the log.
6. It belongs to the webhook configuration, so that Kubernetes takes it away with that when Hedgerow is uninstalled.
   While one that was there is gone, nothing is put anywhere for :data:`GONE`: so begins an uninstall, and what we put
   then would be left behind. Where there is none at all (pods are injected into files) it belongs to nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from controller.injection.names import INJECTION, TRUST_CONFIG_MAP, TRUST_KEY
from controller.injection.webhook_configuration import NAME as WEBHOOK
from controller.kube.client import FIELD_MANAGER, Client, Document
from controller.kube.errors import Conflicting, NoSuchObject, Refused, Unreachable
from controller.kube.kinds import CONFIG_MAPS, MUTATING_WEBHOOKS, NAMESPACES
from controller.kube.reflector import Changed, Ledger, Reflector, Selection
from controller.kube.retry import Retry

log = logging.getLogger("hedgerow.kube.trust")

OWNED = {"app.kubernetes.io/managed-by": "hedgerow", "hedgerow.dev/owned-by": "controller"}

#: Seconds between two looks at what no event tells: our roots, and pods that have gone.
LOOK = 3.0
#: Seconds between two looks whether the owner is still the same one, where nothing gives a reason to.
OWNER_LOOK = 30.0
#: Seconds that an owner must be gone before it counts as one that does not come back.
GONE = 120.0
#: Seconds without a repair after which a namespace's next one is not put off.
SETTLED = 60.0


@dataclass(frozen=True, slots=True)
class Held:
    """A ConfigMap of our name.

    :param digest: of the text under our key; empty when there is none
    :param labelled: it has our labels
    :param ours: it has our labels, and we have written to it
    :param owners: the uids of those with whom it goes
    """

    uid: str
    digest: str
    labelled: bool
    ours: bool
    immutable: bool
    owners: frozenset[str] = frozenset()


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_held(document: Document) -> Held:
    """What is needed of a ConfigMap."""
    metadata = _mapping(document, "metadata")
    labels, data = _mapping(metadata, "labels"), _mapping(document, "data")
    text = data.get(TRUST_KEY)
    labelled = all(labels.get(name) == value for name, value in OWNED.items())
    fields = metadata.get("managedFields")
    references = metadata.get("ownerReferences")
    owners = [each.get("uid") for each in references if isinstance(each, dict)] if isinstance(references, list) else []
    managers = {each.get("manager") for each in fields if isinstance(each, dict)} if isinstance(fields, list) else set()
    return Held(
        uid=str(metadata.get("uid", "")),
        digest=digest_of(text) if isinstance(text, str) else "",
        labelled=labelled,
        ours=labelled and FIELD_MANAGER in managers,
        immutable=document.get("immutable") is True,
        owners=frozenset(owner for owner in owners if isinstance(owner, str)),
    )


def body(namespace: str, text: str, owner: str) -> Document:
    """What we apply.

    :param owner: the uid of the webhook configuration; empty where there is none
    """
    metadata: Document = {"name": TRUST_CONFIG_MAP, "namespace": namespace, "labels": OWNED}
    if owner:
        reference = {"apiVersion": MUTATING_WEBHOOKS.api_version, "kind": MUTATING_WEBHOOKS.kind, "name": WEBHOOK}
        metadata["ownerReferences"] = [{**reference, "uid": owner}]
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": metadata,
        "data": {TRUST_KEY: text},
    }


class _Owner:
    """The webhook configuration, as far as it was looked at."""

    def __init__(self, client: Client, clock: Callable[[], float]) -> None:
        self._client = client
        self._clock = clock
        self._looked: float | None = None
        self._gone_since: float | None = None
        self.uid = ""

    async def look(self, *, now_if_ever: bool) -> None:
        """Find out whether it is there.

        :param now_if_ever: something may depend on it; else it is looked at once in a while
        :raises KubernetesError: when that can not be found out
        """
        now = self._clock()
        if self._looked is not None and now - self._looked < OWNER_LOOK and not now_if_ever:
            return
        try:
            found = await self._client.get(MUTATING_WEBHOOKS, WEBHOOK)
        except NoSuchObject:
            if self.uid and self._gone_since is None:
                self._gone_since = now
            elif self._gone_since is not None and now - self._gone_since >= GONE:
                self.uid, self._gone_since = "", None
        else:
            self.uid, self._gone_since = str(_mapping(found, "metadata").get("uid", "")), None
        self._looked = now

    @property
    def gone(self) -> bool:
        """It was there, is not any more, and may be so because everything of ours is being taken away."""
        return self._gone_since is not None


class TrustDistributor:
    """A :class:`~controller.kube.supervision.Part`; the watches that it needs are parts of their own.

    :param bundle: the roots in force as PEM
    :param in_use: whether a namespace has a pod with a sidecar
    :param clock: seconds; only differences count
    """

    name = "trust bundle"

    def __init__(
        self,
        client: Client,
        bundle: Callable[[], str],
        in_use: Callable[[str], bool],
        clock: Callable[[], float],
        random: Random | None = None,
    ) -> None:
        self._client = client
        self._bundle = bundle
        self._in_use = in_use
        self._clock = clock
        self._random = random or Random()  # noqa: S311  # spreads retries, keeps no secret
        self._woken = asyncio.Event()
        self._owner = _Owner(client, clock)
        self._repairs: dict[str, _Repairs] = {}
        self.synced = False
        self._namespaces: Ledger[bool] = Ledger(_lives)
        self._held = Ledger(read_held)
        self.watches = (
            Reflector(client, NAMESPACES, self._namespaces, self._wake, Selection(labels=f"{INJECTION}=enabled")),
            Reflector(
                client, CONFIG_MAPS, self._held, self._wake, Selection(fields=f"metadata.name={TRUST_CONFIG_MAP}")
            ),
        )

    def _wake(self, _: list[Changed[bool]] | list[Changed[Held]]) -> None:
        self._woken.set()

    async def run(self) -> None:
        """Bring everything in order, again and again, until cancelled.

        :raises KubernetesError: when the API server is away or forbids it
        """
        while True:
            self._woken.clear()
            if all(watch.synced for watch in self.watches):
                await self._reconcile()
                self.synced = True
            try:
                async with asyncio.timeout(LOOK):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _reconcile(self) -> None:
        text = self._bundle()
        meshed = {namespace for (_, namespace), lives in self._namespaces.items.items() if lives}
        digest = digest_of(text)
        await self._owner.look(now_if_ever=self._owner.gone or any(self._wrong(meshed, digest)))
        for namespace in () if self._owner.gone else tuple(self._wrong(meshed, digest)):
            await self._put(namespace, text)
        for (namespace, _), held in tuple(self._held.items.items()):
            if held.ours and ("", namespace) not in self._namespaces.items and not self._in_use(namespace):
                await self._remove(namespace, held)
        self._repairs = {namespace: each for namespace, each in self._repairs.items() if namespace in meshed}

    def _wrong(self, meshed: set[str], digest: str) -> Iterator[str]:
        """The meshed namespaces whose ConfigMap is not there or not right, and that are to be seen to now."""
        now = self._clock()
        for namespace in sorted(meshed):
            held = self._held.items.get((namespace, TRUST_CONFIG_MAP))
            owned = held is not None and (not self._owner.uid or self._owner.uid in held.owners)
            if held is not None and held.digest == digest and held.labelled and owned:
                continue
            repairs = self._repairs.get(namespace)
            if repairs is None or now >= repairs.not_before:
                yield namespace

    async def _put(self, namespace: str, text: str) -> None:
        held = self._held.items.get((namespace, TRUST_CONFIG_MAP))
        self._count(namespace)
        try:
            if held is not None and held.immutable and held.labelled:
                await self._client.delete(CONFIG_MAPS, TRUST_CONFIG_MAP, namespace, uid=held.uid)
            await self._client.apply(
                CONFIG_MAPS, TRUST_CONFIG_MAP, body(namespace, text, self._owner.uid), namespace, force=True
            )
        except NoSuchObject:
            return  # the namespace has gone; the watch will say so
        except (Refused, Conflicting, Unreachable) as error:
            if isinstance(error, Unreachable) and not error.status:
                raise  # nobody answered at all
            # such as a namespace that is ending, or whose admission webhook is broken; not a reason to leave the
            # others without
            log.warning("ConfigMap %s/%s can not be kept: %s", namespace, TRUST_CONFIG_MAP, error)
            return
        log.info("ConfigMap %s/%s holds the trust bundle%s", namespace, TRUST_CONFIG_MAP, " again" if held else "")

    def _count(self, namespace: str) -> None:
        """One more write there; the next one waits, the longer the more of them there were lately."""
        now = self._clock()
        repairs = self._repairs.get(namespace)
        if repairs is None or now - repairs.not_before > SETTLED:
            repairs = self._repairs[namespace] = _Repairs(Retry(self._random))
        repairs.not_before = now + repairs.retry.failed()

    async def _remove(self, namespace: str, held: Held) -> None:
        try:
            await self._client.delete(CONFIG_MAPS, TRUST_CONFIG_MAP, namespace, uid=held.uid)
        except (NoSuchObject, Conflicting):
            return
        except (Refused, Unreachable) as error:
            if isinstance(error, Unreachable) and not error.status:
                raise
            log.warning("ConfigMap %s/%s can not be deleted: %s", namespace, TRUST_CONFIG_MAP, error)
            return
        log.info("ConfigMap %s/%s is deleted: the namespace is not meshed any more", namespace, TRUST_CONFIG_MAP)


def _lives(namespace: Document) -> bool:
    """Nothing can be put into a namespace that is ending."""
    return "deletionTimestamp" not in _mapping(namespace, "metadata")


@dataclass(slots=True)
class _Repairs:
    retry: Retry
    not_before: float = 0.0


def _mapping(document: Document, name: str) -> Document:
    found = document.get(name)
    return found if isinstance(found, dict) else {}
