"""What the controller may do on the cluster, as data: the chart's roles are this, one reason for each rule.

Rules:

1. A rule names the objects that it is for where RBAC can say so, and the namespace where there is one.
2. What is only read is listed and watched, and not fetched one by one; what is only written by server-side apply is
   patched (and created, which the API server asks for when it was not there) and not replaced.
3. Nothing is granted that is not used: ``e2e/apiserver/test_rbac.py`` runs the controller under exactly these rules and
   compares them with what the API server's audit log says that it did.

``python -m controller.kube.rbac > charts/hedgerow/files/rbac.yaml`` writes what the chart reads; a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from controller.injection.names import TRUST_CONFIG_MAP
from controller.injection.webhook_configuration import NAME as WEBHOOK
from controller.kube.inventory.following import WATCHED
from controller.kube.kinds import (
    CONFIG_MAPS,
    CUSTOM_RESOURCES,
    MUTATING_WEBHOOKS,
    NAMESPACES,
    NETWORK_POLICIES,
    PODS,
    SECRETS,
    TOKEN_REVIEWS,
    Resource,
)
from controller.kube.resources.kinds import ACCESS_OVERRIDES, LEARNED_POLICIES, SEGMENTATION_MODES
from controller.kube.webhook_certificate import SECRET as WEBHOOK_SECRET

ACCOUNT = "hedgerow-controller"
#: In YAML.
NOTHING = '""'


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a role.

    :param names: of the only objects that it is for; none: all
    :param subresource: such as ``status``; empty: the object itself
    :param own_namespace: only in the controller's own namespace (a Role); else everywhere (a ClusterRole)
    :param certificate: only where the controller makes the injector's certificate, and nobody else does
    """

    resource: Resource
    verbs: tuple[str, ...]
    reason: str
    names: tuple[str, ...] = ()
    subresource: str = ""
    own_namespace: bool = False
    certificate: bool = False

    @property
    def plural(self) -> str:
        return f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural

    def manifest(self) -> dict[str, Any]:
        """As a role has it."""
        made: dict[str, Any] = {
            "apiGroups": [self.resource.group],
            "resources": [self.plural],
            "verbs": list(self.verbs),
        }
        return made | ({"resourceNames": list(self.names)} if self.names else {})


_FOLLOWED = "the inventory follows it: which workload an address is, and who stands behind a service"

RULES: tuple[Rule, ...] = (
    *(
        Rule(resource, ("list", "watch"), _FOLLOWED)
        for resource in sorted(WATCHED, key=lambda each: (each.group, each.plural))
    ),
    Rule(PODS, ("get",), "attestation reads the pod that a token is bound to, from the API server and no cache"),
    Rule(TOKEN_REVIEWS, ("create",), "attestation has the tokens of sidecars reviewed"),
    Rule(
        CONFIG_MAPS,
        ("list", "watch", "create", "patch", "delete"),
        "the trust bundle is kept in every meshed namespace",
        names=(TRUST_CONFIG_MAP,),
    ),
    Rule(
        NETWORK_POLICIES,
        ("list", "watch", "create", "patch", "delete"),
        "learned policy is applied where a SegmentationMode says so; others' policies are read to tell what they open",
    ),
    Rule(
        ACCESS_OVERRIDES,
        ("list", "watch", "create", "delete"),
        "overrides are these objects; those that people make in the page or by command are made here",
    ),
    Rule(ACCESS_OVERRIDES, ("patch",), "says whether an override holds", subresource="status"),
    Rule(
        SEGMENTATION_MODES,
        ("list", "watch", "get", "create", "update"),
        "modes are these objects; those that people set in the page or by command are set here",
    ),
    Rule(SEGMENTATION_MODES, ("patch",), "says what became of a mode", subresource="status"),
    Rule(
        CUSTOM_RESOURCES,
        ("get",),
        "what overrides and modes said stays in force when they went with their definition",
        names=(str(ACCESS_OVERRIDES), str(SEGMENTATION_MODES)),
    ),
    Rule(
        NAMESPACES,
        ("get",),
        "modes and denials stay while their namespace ends; NetworkPolicies that people went back to end with it",
    ),
    Rule(
        LEARNED_POLICIES,
        ("list", "watch", "create", "patch", "delete"),
        "what was learned is shown as one object a workload",
    ),
    Rule(LEARNED_POLICIES, ("patch",), "says what was learned", subresource="status"),
    Rule(
        MUTATING_WEBHOOKS,
        ("get", "watch"),
        "the trust bundles belong to it, and go with it",
        names=(WEBHOOK,),
    ),
    Rule(
        MUTATING_WEBHOOKS,
        ("patch",),
        "the injector's authorities are written into its webhook",
        names=(WEBHOOK,),
        certificate=True,
    ),
    Rule(
        SECRETS,
        ("get", "watch", "update"),
        "the injector's certificate is kept there",
        names=(WEBHOOK_SECRET,),
        own_namespace=True,
        certificate=True,
    ),
    Rule(SECRETS, ("create",), "RBAC can not name what is not there yet", own_namespace=True, certificate=True),
)


def manifests(namespace: str, *, certificate: bool = True) -> list[dict[str, Any]]:
    """The ServiceAccount with everything that it may do, for a controller in ``namespace``.

    :param certificate: whether the controller makes the injector's certificate
    """
    rbac, api = "rbac.authorization.k8s.io", "rbac.authorization.k8s.io/v1"
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}
    made: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": namespace}}
    ]
    for kind, own in (("ClusterRole", False), ("Role", True)):
        metadata = {"name": ACCOUNT} | ({"namespace": namespace} if own else {})
        chosen = [rule for rule in RULES if rule.own_namespace is own and (certificate or not rule.certificate)]
        if not chosen:
            continue
        rules = [rule.manifest() for rule in chosen]
        made.append({"apiVersion": api, "kind": kind, "metadata": metadata, "rules": rules})
        made.append(
            {
                "apiVersion": api,
                "kind": f"{kind}Binding",
                "metadata": dict(metadata),
                "roleRef": {"apiGroup": rbac, "kind": kind, "name": ACCOUNT},
                "subjects": [account],
            }
        )
    return made


def chart() -> str:
    """The rules as YAML, for the chart: those of the ClusterRole under ``cluster`` and, where the controller makes the
    injector's certificate, ``certificate``; those of the Role, which is there only then, under ``namespace``."""
    lines = ["# Written by controller/kube/rbac.py, which says what the controller may do and why. Do not edit."]
    assert all(rule.certificate for rule in RULES if rule.own_namespace), "the chart has a Role for nothing else"
    for title, own, certificate in (
        ("cluster", False, False),
        ("certificate", False, True),
        ("namespace", True, True),
    ):
        lines.append(f"{title}:")
        said = ""
        for reason, rule in _merged(own_namespace=own, certificate=certificate):
            if reason != said:
                lines.append(f"  # {reason}")
            said = reason
            mark = "-"
            for name, values in rule.items():
                lines.append(f"  {mark} {name}: [{', '.join(each or NOTHING for each in values)}]")
                mark = " "
    return "\n".join(lines) + "\n"


def _merged(*, own_namespace: bool, certificate: bool) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Rules that differ in the resource alone are one."""
    rules = [rule for rule in RULES if (rule.own_namespace, rule.certificate) == (own_namespace, certificate)]
    for key, group in groupby(rules, key=lambda rule: (rule.resource.group, rule.verbs, rule.reason, rule.names)):
        api, verbs, reason, names = key
        made = {"apiGroups": [api], "resources": sorted(rule.plural for rule in group), "verbs": list(verbs)}
        yield reason, made | ({"resourceNames": list(names)} if names else {})


if __name__ == "__main__":
    print(chart(), end="")
