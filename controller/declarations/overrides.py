"""The override that an ``AccessOverride`` declares, and for which namespace it may speak. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from controller import overrides
from controller.declarations.values import OverrideDeclaration
from controller.errors import InvalidRequest
from controller.inventory import Inventory
from controller.overrides import OverrideRequest
from controller.view import Override
from graph.model import Verdict


def override_of(declaration: OverrideDeclaration, inventory: Inventory, *, longest: float) -> Override:
    """The override that a resource declares.

    :param longest: the longest life, seconds
    :raises InvalidRequest, UnknownWorkload: naming the field and the remedy
    """
    source, asked = declaration.source, declaration.asked
    check_namespace(asked, source.namespace)
    # a deny stays when an address becomes somebody's: it holds by address, and dropping it would open what was closed
    lenient = asked.effect is Verdict.DENY
    made = overrides.make(
        inventory, replace(asked, expires_in=None), now=source.created_at, longest=longest, any_address=lenient
    )
    ends = declaration.expires_at
    if ends is not None and not (math.isfinite(ends) and ends - source.created_at <= longest):
        raise InvalidRequest(
            f"it would hold for {ends - source.created_at:.0f} seconds",
            field="expires_at",
            remedy=f"let it end within {longest:.0f} seconds, or give it no end",
        )
    return replace(made, id=declaration.id, expires_at=ends)


def namespace_of(asked: OverrideRequest) -> str:
    """Where the resource for an override belongs: the destination's namespace, or the source's when that is outside.

    :raises InvalidRequest: when both ends are outside
    """
    if not asked.destination.is_external:
        return asked.destination.namespace
    if asked.source.is_external:
        raise InvalidRequest("both ends are outside the mesh", field="to", remedy="name a workload at one end")
    return asked.source.namespace


def check_namespace(asked: OverrideRequest, namespace: str) -> None:
    """Who may write in a namespace decides about that namespace alone: who is let into it, and what goes out of the
    mesh from it. A deny may also be about what is called from it.

    :raises InvalidRequest:
    """
    home = namespace_of(asked)
    if namespace == home or (asked.effect is Verdict.DENY and namespace == asked.source.namespace):
        return
    raise InvalidRequest(
        f"an AccessOverride in {namespace} does not speak for {home}",
        field="to",
        remedy=f"create it in the namespace {home}",
        code="wrong-namespace",
    )
