"""What a cluster's custom resources declare, as values: overrides, modes, and how NetworkPolicies are handled.

The governing rules:

1. On Kubernetes the resources are the truth. What is in force follows from them, the inventory and the time alone, so
   that the same resources always mean the same.
2. Of several that speak of the same, the oldest speaks; and quarantine wins, whoever asks for it.
3. What is about one workload goes before what is about its namespace.
4. A resource speaks for its own namespace: it lets in what calls there and lets out what goes outside the mesh.

5. What is denied or closed stays so when it can not be judged any more: an end that has left, operations that nobody
   reads now, an edit that can not be read. Nobody has decided then that it shall be open.

Pure. How the resources are read is in :mod:`controller.kube.resources`, what the engine makes of them in
:mod:`controller.engine.declared`.
"""

from controller.declarations.modes import Modes, check_mode, check_mode_itself, gate_with
from controller.declarations.overrides import check_namespace, namespace_of, override_of
from controller.declarations.stored import declaration_of, document_of
from controller.declarations.values import (
    GATE_FIELDS,
    Declaration,
    Judgement,
    Kind,
    ModeDeclaration,
    NetworkPolicyMode,
    OverrideDeclaration,
    Source,
    key_of,
    refused,
)

__all__ = [
    "GATE_FIELDS",
    "Declaration",
    "Judgement",
    "Kind",
    "ModeDeclaration",
    "Modes",
    "NetworkPolicyMode",
    "OverrideDeclaration",
    "Source",
    "check_mode",
    "check_mode_itself",
    "check_namespace",
    "declaration_of",
    "document_of",
    "gate_with",
    "key_of",
    "namespace_of",
    "override_of",
    "refused",
]
