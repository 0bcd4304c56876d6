"""What goes into an injection beside the pod, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from controller.injection.errors import InjectionRefused


class PodSecurity(StrEnum):
    """The Pod Security Standard that a namespace enforces."""

    PRIVILEGED = "privileged"
    BASELINE = "baseline"
    RESTRICTED = "restricted"


@dataclass(frozen=True, slots=True)
class Namespace:
    """What matters of a pod's namespace.

    :param enforces: the Pod Security Standard that the API server holds its pods to
    """

    name: str
    enforces: PodSecurity = PodSecurity.PRIVILEGED


@dataclass(frozen=True, slots=True)
class Injected:
    """A pod with its sidecar, and what its author should know."""

    pod: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A pod that stays as it is.

    :param reason: a word for programs
    :param warnings: empty where nobody would expect a sidecar
    """

    reason: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A pod that must not be made as it stands.

    :param error: names the field, what is wrong with it and the remedy
    """

    error: InjectionRefused


type Outcome = Injected | Skipped | Refused
