"""Takes an injection back: what is left is the pod as its author wrote it.

The record of an injection is an annotation, so anybody may have written it. Therefore nothing is believed because it
stands there: whoever injects first undoes and then injects anew, with every check. A wrong record can make of a pod
only what its author could have written as well. Rules:

1. Our containers and volumes are known by their names; they go whatever they hold.
2. A probe, an annotation or a variable goes back to what it was only where it still is what we made of it.
3. Of our containers only amounts of resources that we do not set ourselves stay, for :mod:`.shape`: a LimitRange
   puts them there, and refuses pods without them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from controller.injection import names
from controller.injection.documents import mapping, mappings
from controller.injection.errors import InjectionRefused
from controller.injection.probes import KINDS, is_rewritten
from controller.injection.roots import Added, take_away

#: What the record may say of these places: that they were there, and empty.
EMPTIES: Final = ("metadata", "metadata.annotations", "spec.initContainers", "spec.volumes")
#: Annotations that an injection may change.
CHANGED: Final = (names.DEFAULT_CONTAINER, "prometheus.io/port", "prometheus.io/path")
_LISTS: Final = ("initContainers", "containers")
_VERSION: Final = 1
_PARTS: Final = frozenset({"version", "annotations", "empties", "probes", "roots"})


@dataclass(slots=True)
class Record:
    """What an injection changed.

    :param probes: by container and the kubelet's word, as they were
    :param annotations: what we made of each, and what it was; None: absent
    :param empties: by place, what stood there: an empty list or mapping, or nothing
    :param roots: by container, what tells its application whom to trust
    """

    probes: dict[str, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    empties: dict[str, Any] = field(default_factory=dict)
    roots: dict[str, Added] = field(default_factory=dict)

    def dump(self) -> str:
        """One line of JSON, the same for the same record."""
        added = {name: one.document() for name, one in self.roots.items()}
        parts = {"annotations": self.annotations, "empties": self.empties, "probes": self.probes, "roots": added}
        document = {"version": _VERSION, **{name: part for name, part in parts.items() if part}}
        return json.dumps(document, sort_keys=True, separators=(",", ":"))

    @classmethod
    def load(cls, written: str) -> Record:
        """Read a record strictly.

        :raises InjectionRefused: when it is none
        """
        try:
            document = json.loads(written)
            if document["version"] != _VERSION or set(document) - _PARTS:
                raise ValueError("of another version")
            record = cls(
                probes={
                    container: {name: dict(probe) for name, probe in probes.items() if name in KINDS}
                    for container, probes in document.get("probes", {}).items()
                },
                empties={
                    place: value for place, value in document.get("empties", {}).items() if value in ({}, [], None)
                },
                roots={container: Added.read(added) for container, added in document.get("roots", {}).items()},
            )
            for name, (ours, was) in document.get("annotations", {}).items():
                if name not in CHANGED or not isinstance(ours, str) or not isinstance(was, str | None):
                    raise ValueError("an annotation that is never changed")
                record.annotations[name] = (ours, was)
            if set(record.empties) - set(EMPTIES):
                raise ValueError("a place that is never made")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InjectionRefused(
                "not what Hedgerow wrote there",
                field=f"metadata.annotations[{names.RECORD}]",
                remedy="remove the annotation and the containers and volumes whose names begin with hedgerow-",
            ) from None
        return record


@dataclass(frozen=True, slots=True)
class Undone:
    """A pod without its injection.

    :param resources: by the names of our containers, what they had
    """

    pod: dict[str, Any]
    resources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def is_injected(pod: Mapping[str, Any]) -> bool:
    """Whether the pod says that it has been injected."""
    return names.RECORD in mapping(mapping(dict(pod), "metadata", "pod"), "annotations", "metadata")


def undo(pod: Mapping[str, Any]) -> Undone:
    """The pod as it was before it was injected; a copy of it where it was not.

    :raises InjectionRefused: when the record can not be read
    """
    bare = copy.deepcopy(dict(pod))
    if not is_injected(bare):
        return Undone(bare)
    annotations = mapping(bare["metadata"], "annotations", "metadata")
    record = Record.load(str(annotations.pop(names.RECORD)))
    spec = mapping(bare, "spec", "pod")
    resources: dict[str, Mapping[str, Any]] = {}
    for part in _LISTS:
        found = mappings(spec, part, "spec")
        resources |= {one["name"]: mapping(one, "resources", part) for one in found if _is_ours(one)}
        if part in spec:
            spec[part] = [one for one in found if not _is_ours(one)]
    if "volumes" in spec:
        spec["volumes"] = [one for one in mappings(spec, "volumes", "spec") if one.get("name") not in names.VOLUMES]
    for container in (*mappings(spec, "initContainers", "spec"), *mappings(spec, "containers", "spec")):
        _restore_probes(container, record.probes)
        take_away(container, record.roots.get(str(container.get("name"))))
    for name, (ours, was) in record.annotations.items():
        if annotations.get(name) == ours:
            annotations.pop(name)
            if was is not None:
                annotations[name] = was
    _restore_empties(bare, record.empties)
    return Undone(bare, resources)


def _is_ours(container: Mapping[str, Any]) -> bool:
    return container.get("name") in names.CONTAINERS


def _restore_probes(container: dict[str, Any], probes: Mapping[str, Mapping[str, Any]]) -> None:
    name = container.get("name")
    for kind, was in probes.get(str(name), {}).items():
        probe = container.get(kind)
        if isinstance(probe, Mapping) and is_rewritten(str(name), kind, probe):
            container[kind] = dict(was)


def _restore_empties(bare: dict[str, Any], empties: Mapping[str, Any]) -> None:
    for place in reversed(EMPTIES):
        section, _, name = place.rpartition(".")
        parent = bare.get(section) if section else bare
        if isinstance(parent, dict) and name in parent and not parent[name]:
            del parent[name]
            if place in empties:
                parent[name] = copy.deepcopy(empties[place])


def empties_of(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The places that an injection fills and that are there, and empty."""
    found: dict[str, Any] = {}
    for place in EMPTIES:
        section, _, name = place.rpartition(".")
        parent: Any = pod.get(section) if section else pod
        if isinstance(parent, Mapping) and name in parent and not parent[name]:
            found[place] = copy.deepcopy(parent[name])
    return found


def merged_resources(ours: Mapping[str, Mapping[str, str]], before: Mapping[str, Any]) -> dict[str, Any]:
    """Our resources, and those amounts from before that we say nothing of."""
    merged: dict[str, dict[str, Any]] = {part: dict(amounts) for part, amounts in ours.items()}
    for part in ("limits", "requests"):
        given = before.get(part)
        if isinstance(given, Mapping):
            for name, value in _plain(given):
                merged.setdefault(part, {}).setdefault(name, value)
    return merged


def _plain(amounts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return ((name, value) for name, value in amounts.items() if isinstance(name, str) and isinstance(value, str))
