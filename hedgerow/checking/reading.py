"""Reading from objects as the API server gives them: JSON, in which anything may be missing."""

from __future__ import annotations

from typing import Any

from hedgerow.checking.finding import listed
from hedgerow.words import many

type Document = dict[str, Any]


def name_of(document: Document) -> str:
    return str(document.get("metadata", {}).get("name", ""))


def full_name(document: Document) -> str:
    """``namespace/name``."""
    return f"{document.get('metadata', {}).get('namespace', '')}/{name_of(document)}"


def labels_of(document: Document) -> dict[str, str]:
    return dict(document.get("metadata", {}).get("labels") or {})


def annotations_of(document: Document) -> dict[str, str]:
    return dict(document.get("metadata", {}).get("annotations") or {})


def leaving(document: Document) -> bool:
    """Whether it is being deleted."""
    return "deletionTimestamp" in document.get("metadata", {})


def condition(document: Document, kind: str) -> Document:
    """The condition of this type; empty when there is none."""
    for each in document.get("status", {}).get("conditions") or ():
        if each.get("type") == kind:
            return dict(each)
    return {}


def containers(pod: Document) -> list[Document]:
    """All of a pod's containers, init containers included."""
    spec = pod.get("spec", {})
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


def statuses(pod: Document) -> list[Document]:
    """The states of all of a pod's containers."""
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def waits_for_a_node(pod: Document) -> bool:
    """Whether no container of it was begun, because no node takes it: its log does not exist."""
    return condition(pod, "PodScheduled").get("status") == "False"


def trouble(pod: Document) -> str:
    """Why a pod does not run, in the kubelet's or the scheduler's words; empty when nobody says anything."""
    for status in statuses(pod):
        waiting = status.get("state", {}).get("waiting") or {}
        ended = status.get("lastState", {}).get("terminated") or status.get("state", {}).get("terminated") or {}
        reason = str(waiting.get("reason") or "")
        if reason and reason not in ("PodInitializing", "ContainerCreating"):
            told = str(waiting.get("message") or ended.get("message") or "")
            return f"{status.get('name')}: {reason}{f': {told}' if told else ''}"
    if waits_for_a_node(pod):
        return str(condition(pod, "PodScheduled").get("message") or "it is not scheduled")
    return ""


def is_ready(pod: Document) -> bool:
    return condition(pod, "Ready").get("status") == "True"


def without_a_log(pod: Document) -> bool:
    """Whether what is wrong with it is in its events, and no container has said anything yet."""
    waiting = [str((status.get("state", {}).get("waiting") or {}).get("reason") or "") for status in statuses(pod)]
    if waits_for_a_node(pod) or not waiting:
        return True
    return any("Image" in reason or "ConfigError" in reason for reason in waiting)


def starter(pod: Document) -> str:
    """The kind that ``kubectl rollout restart`` knows its pods by; empty for those that it can not start again."""
    kinds = {"ReplicaSet": "deployment", "StatefulSet": "statefulset", "DaemonSet": "daemonset"}
    owners = pod.get("metadata", {}).get("ownerReferences") or ()
    return next((kinds[each["kind"]] for each in owners if each.get("controller") and each.get("kind") in kinds), "")


def ended(pod: Document) -> bool:
    """Whether all that it ran is over, as in a Job's."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def started_again(pods: list[Document], most: int = 3) -> str:
    """What starts the pods again, StatefulSets and DaemonSets included.

    :param most: namespaces for which it is said
    """
    spaces = sorted({str(pod.get("metadata", {}).get("namespace", "")) for pod in pods})
    steps = [step for space in spaces[:most] for step in _started_again(space, pods)]
    if len(spaces) > most:
        steps.append(f"and so in {many(len(spaces) - most, 'other namespace')}")
    return "; ".join(steps)


def _started_again(space: str, pods: list[Document]) -> list[str]:
    here = [pod for pod in pods if pod.get("metadata", {}).get("namespace", "") == space]
    kinds = sorted({starter(pod) for pod in here} - {""})
    by_hand = [name_of(pod) for pod in here if not starter(pod)]
    steps = [f"kubectl -n {space} rollout restart {','.join(kinds)}"] if kinds else []
    return steps + ([f"delete and make anew {listed(by_hand)} in {space}"] if by_hand else [])
