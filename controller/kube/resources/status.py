"""What a custom resource is told about itself. Pure.

No churn: nothing in a status changes with the clock alone, and a condition keeps its time until it turns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from controller.declarations import Declaration, Judgement, OverrideDeclaration
from controller.kube.resources.reading import moment_written

type Status = dict[str, Any]

ACCEPTED = "Accepted"
EXPIRED = "Expired"

_MAX_MESSAGE = 4_000


def condition(
    present: Mapping[str, Any], kind: str, holds: bool, reason: str, message: str, generation: int, now: float
) -> dict[str, Any]:
    """A condition as Kubernetes has them; its time is the present one's unless it turns.

    :param present: the resource's status as it is
    """
    status = "True" if holds else "False"
    before = next((each for each in present.get("conditions") or () if each.get("type") == kind), None)
    turned = before is None or before.get("status") != status
    return {
        "type": kind,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": moment_written(now) if turned or before is None else before["lastTransitionTime"],
        "reason": reason,
        "message": message[:_MAX_MESSAGE],
    }


def override_status(
    present: Mapping[str, Any], declaration: OverrideDeclaration | None, judgement: Judgement, now: float
) -> Status:
    """:param declaration: None when the resource could not be read"""
    generation = judgement.generation
    status: Status = {"observedGeneration": generation}
    if declaration is not None:
        status |= {"from": str(declaration.asked.source), "to": str(declaration.asked.destination)}
    ends = declaration.expires_at if declaration is not None else None
    if ends is not None:
        status["expiresAt"] = moment_written(ends)
    if judgement.accepted:
        status |= {"state": "Expired" if judgement.ended else "Active", "override": judgement.override_id}
        said = "it has come into force, and has ended" if judgement.ended else "it is in force"
        said += f"; {judgement.note}" if judgement.note and not judgement.ended else ""
        conditions = [condition(present, ACCEPTED, True, "InForce", said, generation, now)]
        if judgement.ended:
            conditions[0]["reason"] = "Ended"
        if ends is not None:
            when = f"at {moment_written(ends)}"
            word, said = ("Ended", f"it ended {when}") if judgement.ended else ("NotYet", f"it ends {when}")
            conditions.append(condition(present, EXPIRED, judgement.ended, word, said, generation, now))
    else:
        status["state"] = "Refused"
        conditions = [_refusal(present, judgement, now)]
    return status | {"conditions": conditions}


def mode_status(present: Mapping[str, Any], judgement: Judgement, now: float) -> Status:
    """Of a ``SegmentationMode``. :param present: its status, whose conditions keep their times"""
    generation = judgement.generation
    if not judgement.accepted:
        refusal = _refusal(present, judgement, now)
        return {"observedGeneration": generation, "state": "Refused", "conditions": [refusal]}
    if judgement.shadowed:
        fields = ", ".join(judgement.shadowed)
        said = f"an older SegmentationMode about the same says {fields}, and is heard: delete one of the two"
        shadowed = condition(present, ACCEPTED, False, "Shadowed", said, generation, now)
        return {"observedGeneration": generation, "state": "Shadowed", "conditions": [shadowed]}
    accepted = condition(present, ACCEPTED, True, "InForce", "it is in force", generation, now)
    return {"observedGeneration": generation, "state": "Active", "conditions": [accepted]}


def status_of(
    document: Mapping[str, Any], declaration: Declaration | None, judgement: Judgement, now: float, *, override: bool
) -> Status:
    """The status that a resource should have."""
    present = document.get("status") or {}
    if override:
        assert declaration is None or isinstance(declaration, OverrideDeclaration)
        return override_status(present, declaration, judgement, now)
    return mode_status(present, judgement, now)


def says_already(present: Mapping[str, Any] | None, wanted: Status) -> bool:
    """Whether a resource's status says what it should: its fields, and those of its conditions that are ours."""
    held = dict(present or {})
    ours = {each["type"] for each in wanted["conditions"]}
    conditions = held.get("conditions") or ()
    found = {each.get("type"): each for each in conditions if each.get("type") in ours}
    if found != {each["type"]: each for each in wanted["conditions"]}:
        return False
    if any(each.get("type") in (ACCEPTED, EXPIRED) and each.get("type") not in ours for each in conditions):
        return False
    plain = {name: value for name, value in wanted.items() if name != "conditions"}
    return {name: value for name, value in held.items() if name not in ("conditions", "networkPolicies")} == plain


def _refusal(present: Mapping[str, Any], judgement: Judgement, now: float) -> dict[str, Any]:
    where = f"spec.{judgement.field}: " if judgement.field and judgement.field != "spec" else ""
    said = f"{where}{judgement.problem}" + (f"; {judgement.remedy}" if judgement.remedy else "")
    return condition(present, ACCEPTED, False, _camel(judgement.code), said, judgement.generation, now)


def _camel(code: str) -> str:
    """``unknown-workload`` as a condition's reason is written: ``UnknownWorkload``."""
    return "".join(part.capitalize() for part in re.split(r"[^0-9A-Za-z]+", code)) or "Invalid"


def turned(conditions: Iterable[Mapping[str, Any]], kind: str) -> str:
    """The status of one condition; empty when it is not there."""
    return next((str(each.get("status", "")) for each in conditions if each.get("type") == kind), "")
