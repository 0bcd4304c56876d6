"""What the controller may do, as data: the chart has exactly that, and nothing in it is wider than it has to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from controller.kube import rbac
from controller.kube.inventory.following import WATCHED
from controller.kube.rbac import Rule

FILE = Path(__file__).parents[3] / "charts" / "hedgerow" / "files" / "rbac.yaml"


def test_the_chart_has_what_is_written_here() -> None:
    remedy = "run: python -m controller.kube.rbac > charts/hedgerow/files/rbac.yaml"
    assert FILE.read_text() == rbac.chart(), remedy


def triples(rules: list[dict[str, list[str]]]) -> list[tuple[str, str, str, str]]:
    return sorted(
        (group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    )


def test_the_chart_s_form_says_the_same_as_the_roles() -> None:
    written = yaml.safe_load(rbac.chart())
    by_kind = {each["kind"]: each for each in rbac.manifests("hedgerow-system")}
    assert triples(written["cluster"] + written["certificate"]) == triples(by_kind["ClusterRole"]["rules"])
    assert triples(written["namespace"]) == triples(by_kind["Role"]["rules"])
    assert by_kind["Role"]["metadata"]["namespace"] == "hedgerow-system"
    for kind in ("ClusterRole", "Role"):
        binding = by_kind[f"{kind}Binding"]
        assert binding["roleRef"]["kind"] == kind
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": "hedgerow-controller", "namespace": "hedgerow-system"}
        ]


def test_without_the_injector_s_certificate_no_secret_and_no_webhook_is_written() -> None:
    less = rbac.manifests("hedgerow-system", certificate=False)
    assert [each["kind"] for each in less] == ["ServiceAccount", "ClusterRole", "ClusterRoleBinding"]
    assert triples(less[1]["rules"]) == triples(yaml.safe_load(rbac.chart())["cluster"])
    assert not [rule for rule in less[1]["rules"] if "secrets" in rule["resources"]]
    hooks = [rule for rule in less[1]["rules"] if "mutatingwebhookconfigurations" in rule["resources"]]
    assert [rule["verbs"] for rule in hooks] == [["get", "watch"]]


@pytest.mark.parametrize("rule", rbac.RULES, ids=lambda rule: f"{rule.plural}-{'-'.join(rule.verbs)}")
def test_no_rule_is_wider_than_it_has_to_be(rule: Rule) -> None:
    assert rule.reason
    assert "*" not in (*rule.verbs, *rule.names, rule.resource.group, rule.plural)
    assert not {"escalate", "bind", "impersonate", "deletecollection"} & {*rule.verbs}
    assert len(set(rule.verbs)) == len(rule.verbs)
    if rule.resource.plural == "secrets":
        assert rule.own_namespace, "no Secret of others is read"
        assert rule.names or rule.verbs == ("create",)
    if rule.resource.plural in ("configmaps", "mutatingwebhookconfigurations"):
        assert rule.names, "these are everybody's"
    assert rule.resource.plural not in ("pods", "nodes", "namespaces") or set(rule.verbs) <= {"get", "list", "watch"}


def test_everything_that_the_inventory_watches_may_be_watched() -> None:
    granted = {rule.resource for rule in rbac.RULES if {"list", "watch"} <= {*rule.verbs} and not rule.names}
    assert set(WATCHED) <= granted
