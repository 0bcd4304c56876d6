"""The form of declarations in the store, by which they hold while the API server is away. Pure.

What was written once has to be read by every later version: a start that cannot read one does not start at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from controller.declarations.values import (
    Declaration,
    Kind,
    ModeDeclaration,
    NetworkPolicyMode,
    OverrideDeclaration,
    Source,
)
from controller.overrides import OverrideRequest
from graph.model import InboundTls, Mode, Protocol, Verdict
from graph.outside import parse_end


def document_of(declaration: Declaration) -> dict[str, Any]:
    """As JSON; :func:`declaration_of` reads it back."""
    source = declaration.source
    document: dict[str, Any] = {
        "namespace": source.namespace,
        "name": source.name,
        "uid": source.uid,
        "generation": source.generation,
        "createdAt": source.created_at,
        "author": source.author,
    }
    if isinstance(declaration, OverrideDeclaration):
        asked = declaration.asked
        return document | {
            "kind": str(Kind.OVERRIDE),
            "effect": str(asked.effect),
            "from": str(asked.source),
            "to": str(asked.destination),
            "port": asked.port,
            "protocol": str(asked.protocol),
            "operations": list(asked.operations),
            "owner": asked.owner,
            "reason": asked.reason,
            "expiresAt": declaration.expires_at,
        }
    return document | {
        "kind": str(Kind.MODE),
        "workload": declaration.workload,
        "inbound": declaration.inbound,
        "outbound": declaration.outbound,
        "inboundTLS": declaration.inbound_tls,
        "networkPolicy": declaration.network_policy,
        "gate": dict(declaration.gate),
        "owner": declaration.owner,
        "reason": declaration.reason,
    }


def declaration_of(document: Mapping[str, Any]) -> Declaration:
    """:raises KeyError, ValueError, TypeError, InvalidValue: when it is not what :func:`document_of` wrote"""
    source = Source(
        document["namespace"],
        document["name"],
        document["uid"],
        document["generation"],
        document["createdAt"],
        document["author"],
    )
    if document["kind"] == Kind.OVERRIDE:
        asked = OverrideRequest(
            effect=Verdict(document["effect"]),
            source=parse_end(document["from"]),
            destination=parse_end(document["to"]),
            port=document["port"],
            protocol=Protocol(document["protocol"]),
            owner=document["owner"],
            reason=document["reason"],
            expires_in=None,
            operations=tuple(document["operations"]),
        )
        return OverrideDeclaration(source, asked, document["expiresAt"])
    return ModeDeclaration(
        source,
        document["workload"],
        _read(Mode, document["inbound"]),
        _read(Mode, document["outbound"]),
        _read(InboundTls, document["inboundTLS"]),
        _read(NetworkPolicyMode, document["networkPolicy"]),
        tuple(sorted(document["gate"].items())),
        document["owner"],
        document["reason"],
    )


def _read[E: StrEnum](kind: type[E], value: str | None) -> E | None:
    return None if value is None else kind(value)
