"""Writes what people ask of the web API and the command into custom resources.

What is asked is checked by the engine's own rules first, so that a mistake is told at once and nothing is written. Then
the resource is written, and the answer comes only after the watch has brought it back and the engine has taken it: what
people are told is in force is in force, and on the API server. When that is away, nothing is changed anywhere.

A resource that somebody else made is deleted when a person ends it here, and never edited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from controller import overrides
from controller.authoring import ModeRequest, ModesSet, Revoked
from controller.declarations import (
    Judgement,
    Kind,
    ModeDeclaration,
    Modes,
    check_mode,
    key_of,
    namespace_of,
)
from controller.engine import Engine, EngineSettings
from controller.engine.declared import Acting
from controller.errors import Conflict, ControllerError, InvalidRequest, NotFound, NotReady
from controller.kube.client import Client, Document
from controller.kube.errors import Conflicting, KubernetesError, NoSuchObject, Refused
from controller.kube.resources.kinds import ACCESS_OVERRIDES, SEGMENTATION_MODES, is_ours
from controller.kube.resources.reading import mode_declaration, moment_written
from controller.kube.resources.sync import ResourceSync
from controller.kube.resources.writing import asked_fields, mode_document, mode_name, override_document
from controller.overrides import OverrideRequest
from controller.view import Override
from graph.model import Direction, WorkloadRef

#: Seconds that the engine has to take what was written.
TAKING = 15.0
#: How often a resource of ours that is changed meanwhile (its status is, too) is read again.
MODE_ATTEMPTS = 5

#: By these others say that a resource comes out of their repository.
_GITOPS = (
    ("annotations", "argocd.argoproj.io/tracking-id", "Argo CD"),
    ("labels", "argocd.argoproj.io/instance", "Argo CD"),
    ("labels", "kustomize.toolkit.fluxcd.io/name", "Flux"),
    ("labels", "helm.toolkit.fluxcd.io/name", "Flux"),
    ("annotations", "meta.helm.sh/release-name", "Helm"),
)


class ResourceAuthor:
    """A :class:`controller.authoring.Author`.

    :param settings: the engine's, for its bounds
    :param clock: seconds since the epoch
    """

    def __init__(
        self,
        client: Client,
        engine: Engine,
        sync: ResourceSync,
        clock: Callable[[], float],
        settings: EngineSettings | None = None,
        taking: float = TAKING,
    ) -> None:
        self._client = client
        self._engine = engine
        self._sync = sync
        self._clock = clock
        self._settings = settings or EngineSettings()
        self._taking = taking

    # --- overrides

    async def create_override(self, asked: OverrideRequest) -> Override:
        now, view = self._ready(), self._engine.view
        made = overrides.make(view.inventory, asked, now=now, longest=self._settings.override_max)
        home = namespace_of(asked)
        overrides.check_room(view.overrides, now, self._settings.max_overrides)
        ours = {name: each for name, each in view.overrides.items() if key_of(name).split("/")[1] == home}
        overrides.check_room(ours, now, overrides.share_of_namespace(self._settings.max_overrides), f" of {home}")
        body = override_document(home, made, now)
        key = f"{Kind.OVERRIDE}/{home}/{body['metadata']['name']}"
        with self._sync.acting(key, Acting(made.owner, made.reason)):
            with _told(f"the AccessOverride {home}/{body['metadata']['name']}"):
                created = await self._client.create(ACCESS_OVERRIDES, body, home)
            judgement = await self._taken(key, created)
        found = self._engine.view.overrides.get(judgement.override_id)
        if found is None:
            raise _withdrawn(key)
        return found

    async def revoke_override(self, override_id: str, owner: str, reason: str) -> Revoked:
        now, view = self._ready(), self._engine.view
        owner, reason = overrides.checked_owner(owner), overrides.checked_reason(reason)
        overrides.revocable(view.overrides, override_id, now)
        key = key_of(override_id)
        judgement, document = view.judgements.get(key), self._sync.document(key)
        if judgement is None or judgement.override_id != override_id or document is None:
            raise NotFound(f"no AccessOverride declares {override_id} any more", field="id", remedy="try again")
        _, namespace, name = key.split("/")
        with self._sync.acting(key, Acting(owner, reason), ends=True):
            with _told(f"the AccessOverride {namespace}/{name}"):
                await self._client.delete(ACCESS_OVERRIDES, name, namespace, uid=judgement.uid)
            await self._gone(key, judgement.uid)
        ended = self._engine.view.overrides.get(override_id)
        if ended is None:
            raise _withdrawn(key)
        return Revoked(ended, _managed_note(document, f"AccessOverride {namespace}/{name}"))

    # --- modes

    async def set_mode(self, asked: ModeRequest) -> ModesSet:
        now, view = self._ready(), self._engine.view
        owner, reason = overrides.checked_owner(asked.owner), overrides.checked_reason(asked.reason)
        namespace = asked.target if isinstance(asked.target, str) else asked.target.namespace
        workload = "" if isinstance(asked.target, str) else asked.target.name
        if isinstance(asked.target, WorkloadRef):
            overrides.checked_workload(asked.target, view.inventory, "workload")
        elif namespace not in view.inventory.namespaces:
            known = ", ".join(sorted(view.inventory.namespaces)[:10])
            raise InvalidRequest(
                f"there is no namespace {namespace!r:.80}",
                field="namespace",
                remedy=f"use one of {known or 'none yet'}",
            )
        name = mode_name(workload)
        key = f"{Kind.MODE}/{namespace}/{name}"
        with self._sync.acting(key, Acting(owner, reason)):
            await self._taken(key, await self._put_mode(asked, namespace, name, workload, owner, reason, now))
        return self._effect(asked)

    async def _put_mode(
        self, asked: ModeRequest, namespace: str, name: str, workload: str, owner: str, reason: str, now: float
    ) -> Document:
        """Make our resource, or change it as it is now."""
        what = f"the SegmentationMode {namespace}/{name}"
        for attempt in range(MODE_ATTEMPTS):
            with _told(what):
                held = await self._present(namespace, name)
            if held is not None and not is_ours(held):
                raise Conflict(
                    f"{what} is not ours to edit",
                    remedy=f"change it where it comes from{_from_where(held)}, or rename it",
                )
            body = mode_document(namespace, name, workload, asked, owner, reason, held)
            self._check_effect(asked, body, held, now)
            with _told(what):
                try:
                    if held is None:
                        return await self._client.create(SEGMENTATION_MODES, body, namespace)
                    return await self._client.replace(SEGMENTATION_MODES, name, body, namespace)
                except Conflicting:  # it was changed, or made, since it was read
                    if attempt + 1 == MODE_ATTEMPTS:
                        raise
        raise AssertionError("unreachable")

    async def _present(self, namespace: str, name: str) -> Document | None:
        try:
            return await self._client.get(SEGMENTATION_MODES, name, namespace)
        except NoSuchObject:
            return None

    def _check_effect(self, asked: ModeRequest, body: Document, held: Document | None, now: float) -> None:
        """Whether what is asked would be what holds afterwards.

        :raises Conflict: when a resource of somebody else is heard before ours
        """
        # the API server's times are whole seconds: a new one is taken to be younger than what is there
        born = {"uid": "new", "creationTimestamp": moment_written(now + 2)}
        meta = held["metadata"] if held is not None else born
        planned = mode_declaration({**body, "metadata": {**meta, **body["metadata"]}})
        check_mode(planned, self._engine.view.inventory, self._settings.gate)
        declared = [each for each in self._sync.declarations() if isinstance(each, ModeDeclaration)]
        others = [each for each in declared if each.key != planned.key]
        about = [each for each in others if each.target == planned.target]
        wanted = asked_fields(asked)
        shadowed = [name for name in Modes.of([*others, planned]).shadowed(planned) if name in wanted]
        against = [
            each
            for each in about
            for name, value in wanted.items()
            if (name in shadowed and name in each.says())
            or (str(each.says().get(name)) == "quarantine" and str(value) != "quarantine")
        ]
        if against:
            first = against[0].source
            document = self._sync.document(against[0].key)
            where = _from_where(document) or f" (kubectl -n {first.namespace} edit segmentationmode {first.name})"
            raise Conflict(
                f"the SegmentationMode {first.namespace}/{first.name} says otherwise, and is heard before ours",
                field="mode",
                remedy=f"change it where it comes from{where}, or delete it; quarantine always wins",
            )

    def _effect(self, asked: ModeRequest) -> ModesSet:
        view = self._engine.view
        if isinstance(asked.target, WorkloadRef):
            return ModesSet((asked.target,))
        done: list[WorkloadRef] = []
        kept: list[WorkloadRef] = []
        for ref in sorted(view.inventory.workloads):
            if ref.namespace != asked.target:
                continue
            mode = view.modes[ref]
            sides = (
                [] if asked.mode is None else [(Direction.INBOUND, mode.inbound), (Direction.OUTBOUND, mode.outbound)]
            )
            as_asked = all(held is asked.mode for side, held in sides if asked.direction in (None, side))
            as_asked = as_asked and asked.inbound_tls in (None, mode.inbound_tls)
            (done if as_asked else kept).append(ref)
        return ModesSet(tuple(done), tuple(kept))

    # --- waiting

    def _ready(self) -> float:
        if not self._sync.synced:
            raise NotReady(
                "the cluster's AccessOverrides and SegmentationModes were not read yet",
                remedy="what was in force stays; `hedgerow status` and the controller's log say what is missing",
            )
        return self._clock()

    async def _taken(self, key: str, document: Document) -> Judgement:
        """Wait until the engine has judged this resource, in this or a later form.

        :raises InvalidRequest: when it was refused
        """
        meta = document["metadata"]
        generation = int(meta.get("generation", 1))

        def judged() -> Judgement | None:
            found = self._sync.judgement(key)
            return found if found and found.uid == meta["uid"] and found.generation >= generation else None

        judgement = await self._until(judged, key)
        if not judgement.accepted:
            raise InvalidRequest(judgement.problem, field=judgement.field, remedy=judgement.remedy, code=judgement.code)
        return judgement

    async def _gone(self, key: str, uid: str) -> None:
        def gone() -> bool:
            found = self._sync.judgement(key)
            return found is None or found.uid != uid

        await self._until(gone, key)

    async def _until[T](self, met: Callable[[], T | None], key: str) -> T:
        try:
            async with asyncio.timeout(self._taking):
                while not (found := met()):
                    await self._sync.taken()
        except TimeoutError:
            kind, namespace, name = key.split("/")
            raise NotReady(
                f"the {kind} {namespace}/{name} is changed on the API server, and the controller has not heard of it",
                remedy="nothing has to be done again: it comes into force when it does; `hedgerow check` tells more",
            ) from None
        return found


# --- what goes wrong


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn the API server's refusals into answers for the person who asked."""
    try:
        yield
    except NoSuchObject:
        raise NotFound(f"{what} is gone", remedy="look again with `hedgerow overrides`") from None
    except Conflicting as error:
        raise Conflict(
            f"{what} was changed by somebody else: {error.problem}", remedy="look again, then repeat"
        ) from None
    except Refused as error:
        raise InvalidRequest(
            f"the API server refuses {what}: {error.problem}", remedy=error.remedy, code="refused-by-cluster"
        ) from None
    except (KubernetesError, ControllerError) as error:
        raise NotReady(
            f"{what} was not written, and nothing is changed: {error.problem}",
            remedy=error.remedy or "what is in force stays; try again",
        ) from None


def _withdrawn(key: str) -> Conflict:
    kind, namespace, name = key.split("/")
    return Conflict(f"the {kind} {namespace}/{name} was changed meanwhile", remedy="see `hedgerow overrides`")


def _managers(document: Mapping[str, Any] | None) -> str:
    meta = (document or {}).get("metadata") or {}
    return next((who for where, name, who in _GITOPS if name in (meta.get(where) or {})), "")


def _from_where(document: Mapping[str, Any] | None) -> str:
    manager = _managers(document)
    return f" ({manager})" if manager else ""


def _managed_note(document: Mapping[str, Any], what: str) -> str:
    manager = _managers(document)
    return f"{what} comes from {manager}: remove it there, too, or it comes back" if manager else ""
