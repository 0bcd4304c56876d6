"""Injects into files: every document that has a pod's template, and nothing else.

Documents of other kinds leave byte for byte as they came. A file in which one pod is refused is refused as a whole, so
that nobody applies half of it.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from controller.errors import ControllerError
from controller.injection.injecting import Injected, Namespace, Outcome, Refused, Skipped, inject, uninject
from controller.injection.settings import InjectionSettings
from controller.injection.yaml_text import NotYaml, edited, load
from graph.text import printable

#: Bytes of one file.
MAX_BYTES: Final = 64 << 20

_TEMPLATE: Final = ("spec", "template")
#: Where a kind keeps the template of its pods, by API group and kind; the version does not matter.
TEMPLATES: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("", "Pod"): (),
    ("", "PodTemplate"): ("template",),
    ("", "ReplicationController"): _TEMPLATE,
    ("apps", "DaemonSet"): _TEMPLATE,
    ("apps", "Deployment"): _TEMPLATE,
    ("apps", "ReplicaSet"): _TEMPLATE,
    ("apps", "StatefulSet"): _TEMPLATE,
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
    ("batch", "Job"): _TEMPLATE,
}
#: A line that begins a document, wherever it stands (YAML 1.2, section 9.1.2).
_MARKER: Final = re.compile(r"^(?=---(?:[ \t\r]|$))", re.MULTILINE)


class ManifestError(ControllerError):
    """A file that can not be used as it is; the field names document and object."""

    code = "invalid-manifest"


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of one object with pods.

    :param what: ``injected``, ``uninjected``, ``unchanged`` or ``skipped: <reason>``
    """

    object: str
    what: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The whole text, and what became of each object that has pods."""

    text: str
    seen: tuple[Seen, ...]


def inject_text(text: str, settings: InjectionSettings, namespace: str) -> Done:
    """Put sidecars into every pod of a file.

    :param namespace: of objects that name none
    :raises ManifestError: naming the document, the object, and the remedy
    """

    def change(pod: dict[str, Any], where: str) -> Outcome:
        return inject(pod, Namespace(where or namespace), settings)

    return _changed(text, change, "injected")


def uninject_text(text: str) -> Done:
    """Take sidecars out again.

    :raises ManifestError: as :func:`inject_text`
    """
    return _changed(text, lambda pod, _: uninject(pod), "uninjected")


type Change = Callable[[dict[str, Any], str], Outcome]


def _changed(text: str, change: Change, word: str) -> Done:
    if len(text) > MAX_BYTES:
        raise ManifestError(f"larger than {MAX_BYTES} bytes", remedy="inject the objects in several files")
    parts: list[str] = []
    seen: list[Seen] = []
    for number, part in enumerate(_documents(text), 1):
        try:
            document = load(part)
        except NotYaml as error:
            raise ManifestError(
                printable(f"not YAML: {error}"), field=f"document {number}", remedy="correct the file there"
            ) from None
        made = copy.deepcopy(document)
        seen += [_change_one(found, change, word) for found in _objects(made, f"document {number}")]
        parts.append(edited(part, document, made))
    return Done("".join(parts), tuple(seen))


def _documents(text: str) -> list[str]:
    """The text in parts, each with the marker before it; together they are the text again."""
    starts = [match.start() for match in _MARKER.finditer(text)]
    cuts = [0, *(start for start in starts if start), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(cuts)]


@dataclass(frozen=True, slots=True)
class _Object:
    """One with a pod's template: where it stands in the file, and where its template is."""

    document: dict[str, Any]
    kind: str
    path: tuple[str, ...]
    where: str

    @property
    def name(self) -> str:
        metadata = self.document.get("metadata")
        named = metadata if isinstance(metadata, dict) else {}
        return printable(f"{self.kind}/{named.get('name') or named.get('generateName') or ''}"[:300])

    @property
    def namespace(self) -> str:
        metadata = self.document.get("metadata")
        return str(metadata.get("namespace") or "") if isinstance(metadata, dict) else ""


def _objects(document: Any, where: str, version: str = "", kind: str = "") -> Iterator[_Object]:
    """The objects with pods in a document, which may be a list of them.

    :param version: that an entry of a typed list has when it does not say its own; ``kind`` likewise
    """
    if not isinstance(document, dict):
        return
    own_version, own_kind = document.get("apiVersion") or version, document.get("kind") or kind
    if not isinstance(own_version, str) or not isinstance(own_kind, str):
        return
    items = document.get("items")
    if own_kind.endswith("List") and isinstance(items, list):
        single = own_kind.removesuffix("List")
        for index, item in enumerate(items):
            yield from _objects(item, f"{where}, items[{index}]", own_version if single else "", single)
        return
    group = own_version.rpartition("/")[0]
    path = TEMPLATES.get(("apps" if group == "extensions" else group, own_kind))
    if path is not None:
        yield _Object(document, own_kind, path, where)


def _change_one(found: _Object, change: Change, word: str) -> Seen:
    parent: Any = None
    pod: Any = found.document
    for step in found.path:
        parent, pod = pod, pod.get(step) if isinstance(pod, dict) else None
    path = ".".join(found.path)
    if not isinstance(pod, dict):
        raise ManifestError(
            "it has no template of a pod",
            field=f"{found.where}, {found.name}: {path}",
            remedy="write it as Kubernetes' API reference has it",
        )
    match change(pod, found.namespace):
        case Refused(error):
            at = f"{path}." if path else ""
            field = f"{found.where}, {found.name}: {at}{error.field}"
            raise ManifestError(error.problem, field=field, remedy=error.remedy)
        case Skipped(reason, warnings):
            return Seen(found.name, "unchanged" if reason == "not-injected" else f"skipped: {reason}", warnings)
        case Injected(made, warnings):
            if made == pod:
                return Seen(found.name, "unchanged", warnings)
            if parent is None:
                found.document.clear()
                found.document.update(made)
            else:
                parent[found.path[-1]] = made
            return Seen(found.name, word, warnings)
