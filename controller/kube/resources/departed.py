"""Tells resources that somebody deleted from those that went because what holds them is being taken away.

A definition (CRD) that is deleted takes every resource of its kind along, and a namespace that ends loses its resources
one by one while its pods still run. Nobody has decided then that these workloads shall be open: ``helm uninstall``
deletes the definitions while the controller still serves, and what it pushes in that moment is the last policy that the
sidecars have. So:

1. While the definition of a kind is ending, is not there, or can not be looked at, what its resources said stays. When
   it was made anew, what is older than it stays for :data:`GONE`: whoever replaces it puts the resources back.
2. While a namespace is ending, or is gone and workloads of it are known, its modes and its denials stay. What it
   allowed ends at once, as ever.
3. It is the API server itself that is asked, after the resource was gone; a definition's or namespace's end begins
   before anything in it is deleted, so that the answer can not be too old.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping

from controller.declarations import Declaration, Kind, ModeDeclaration
from controller.kube.batches import batches, together
from controller.kube.client import Client, Document
from controller.kube.errors import Forbidden, NoSuchObject
from controller.kube.kinds import CUSTOM_RESOURCES, NAMESPACES, Resource
from controller.kube.resources.reading import moment_of
from controller.kube.supervision import Complaints
from graph.model import Verdict

log = logging.getLogger("hedgerow.kube.resources")

#: Seconds for which what went with a definition stays after that was first seen to be made anew.
GONE = 120.0
#: Seconds until what was found ending is looked at again.
LOOK = 5.0
#: Namespaces that are looked at at one time.
LOOKERS = 8


class Departed:
    """
    :param resources: where the API server has each kind
    :param inhabited: whether the inventory has somebody in a namespace
    :param clock: seconds; only differences count
    """

    def __init__(
        self,
        client: Client,
        resources: Mapping[Kind, Resource],
        inhabited: Callable[[str], bool],
        gone: float = GONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._resources = resources
        self._inhabited = inhabited
        self._clock = clock
        self._gone = gone
        self._seen: dict[Kind, tuple[str, float]] = {}  # the uid of its definition, and when that was first seen
        self._ending: dict[str, float] = {}  # namespaces, and when they were found so
        self._complaints = Complaints()

    async def held(self, gone: Iterable[Declaration]) -> list[Declaration]:
        """Those of the resources that are not there any more whose word stays.

        :raises KubernetesError: when the API server is away
        """
        given = list(gone)
        begun = {kind: await self._begun(kind) for kind in sorted({_kind(each) for each in given})}
        went = [each for each in given if each.source.created_at < begun[_kind(each)]]
        for kind in begun:
            many = sum(_kind(each) is kind for each in went)
            if many:
                self._say(
                    f"{many} of {self._resources[kind]} went with their definition, and nobody deleted them: "
                    "what they said stays in force"
                )
        others = {each.key for each in given} - {each.key for each in went}
        closing = [each for each in given if each.key in others and closes(each)]
        spaces = await self._ending_of({each.source.namespace for each in closing})
        return went + [each for each in closing if each.source.namespace in spaces]

    # --- definitions

    async def _begun(self, kind: Kind) -> float:
        """Resources of an earlier creation went with their definition; of now if all did, of never if none."""
        now, name = self._clock(), str(self._resources[kind])
        try:
            found = await self._client.get(CUSTOM_RESOURCES, name)
        except NoSuchObject:
            return math.inf
        except Forbidden as error:
            self._say(f"whether {name} is being taken away can not be seen: {error}")
            return math.inf
        if _is_ending(found):
            return math.inf
        meta = found["metadata"]
        uid, seen = self._seen.get(kind, ("", now))
        if uid != meta["uid"]:
            self._seen[kind] = uid, seen = meta["uid"], now
        return moment_of(meta["creationTimestamp"]) if now - seen < self._gone else -math.inf

    # --- namespaces

    async def _ending_of(self, names: set[str]) -> set[str]:
        now = self._clock()
        self._ending = {name: at for name, at in self._ending.items() if now - at < LOOK}
        for batch in batches(sorted(names - self._ending.keys()), LOOKERS):
            await together(self._look(name, now) for name in batch)
        return names & self._ending.keys()

    async def _look(self, name: str, now: float) -> None:
        try:
            ends = _is_ending(await self._client.get(NAMESPACES, name))
        except NoSuchObject:
            ends = self._inhabited(name)  # whoever is still there is not left open
        except Forbidden as error:
            self._say(f"whether namespaces are ending can not be seen: {error}")
            ends = True
        if ends:
            self._ending[name] = now

    def _say(self, complaint: str) -> None:
        if self._complaints.is_new(complaint, self._clock()):
            log.warning("%s", complaint)


def _kind(declaration: Declaration) -> Kind:
    return Kind.MODE if isinstance(declaration, ModeDeclaration) else Kind.OVERRIDE


def closes(declaration: Declaration) -> bool:
    """Whether something may be open without it."""
    return isinstance(declaration, ModeDeclaration) or declaration.asked.effect is Verdict.DENY


def _is_ending(document: Document) -> bool:
    return "deletionTimestamp" in document["metadata"]
