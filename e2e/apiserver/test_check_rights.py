"""``helm test`` runs ``hedgerow check`` under an account of its own, which may read what the checks ask for alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.apiserver.custom_resources import remove_crds
from e2e.harness.apiserver import ApiServer
from hedgerow.checking.finding import Finding, Outcome
from hedgerow.checking.running import run

CHART = Path(__file__).parents[2] / "charts" / "hedgerow"
SYSTEM, ACCOUNT = "hedgerow-system", "hedgerow-check"
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


@pytest.fixture
def hooks(apiserver: ApiServer) -> Iterator[list[dict[str, Any]]]:
    """The chart is there, and so are the account and the roles that ``helm test`` would make for its pod."""
    flags = ["-n", SYSTEM, "--set", "controller.persistence.enabled=false"]
    remove_crds(apiserver)
    apiserver.create_namespace(name=SYSTEM)
    try:
        apiserver.helm("install", "hedgerow", str(CHART), *flags)
        said = apiserver.helm("get", "hooks", "hedgerow", "-n", SYSTEM)
        made = [each for each in yaml.safe_load_all(said) if each and each["kind"] in RIGHTS]
        apiserver.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all(made))
        yield made
        apiserver.kubectl("delete", "-f", "-", stdin=yaml.safe_dump_all(made))
    finally:
        apiserver.helm("uninstall", "hedgerow", "-n", SYSTEM, check=False)
        apiserver.kubectl("delete", "namespace", SYSTEM, "--wait=true")


def granted(hooks: list[dict[str, Any]]) -> set[tuple[str, str, str, str, str]]:
    """Namespace (empty: all), API group, resource, name (empty: all), verb."""
    return {
        (each["metadata"].get("namespace", ""), group, resource, name, verb)
        for each in hooks
        for rule in each.get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


def test_it_may_read_what_it_reads_and_no_more(apiserver: ApiServer, hooks: list[dict[str, Any]]) -> None:
    assert {each["kind"] for each in hooks} == {*RIGHTS}
    space = apiserver.create_namespace({"hedgerow.dev/injection": "enabled"})
    apiserver.kubectl("-n", space, "create", "configmap", "hedgerow-trust")
    # an authority, so that the check of the webhook goes on to who answers behind it
    path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hedgerow-injector"
    found = apiserver.request("GET", path)
    bundle = apiserver.kubectl("config", "view", "--raw", "--flatten", "-o", "yaml")
    for hook in found["webhooks"]:
        hook["clientConfig"]["caBundle"] = yaml.safe_load(bundle)["clusters"][0]["cluster"][
            "certificate-authority-data"
        ]
    apiserver.request("PUT", path, found)

    told: list[Finding] = []
    kubeconfig = apiserver.kubeconfig_of(SYSTEM, ACCOUNT)
    asyncio.run(run(kubeconfig, "", pre=False, wait=0.0, tell=told.append))

    for finding in told:
        assert "forbidden" not in finding.text.lower() + finding.hint.lower(), finding
    outcomes = {finding.check: finding.outcome for finding in told}
    assert (outcomes["resources"], outcomes["controller"]) == (Outcome.OK, Outcome.FAILED), "nobody runs its pods"
    user = f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"
    asked = {
        (about.get("namespace", ""), about.get("apiGroup", ""), about["resource"], about.get("name", ""), event["verb"])
        for event in apiserver.audited()
        if event["user"].get("username") == user and (about := event.get("objectRef"))
    }
    allowed = granted(hooks)

    def covers(grant: tuple[str, str, str, str, str], use: tuple[str, str, str, str, str]) -> bool:
        return grant[1:3] == use[1:3] and grant[4] == use[4] and grant[0] in ("", use[0]) and grant[3] in ("", use[3])

    assert [each for each in sorted(asked) if not any(covers(grant, each) for grant in allowed)] == []
    assert [each for each in sorted(allowed) if not any(covers(each, use) for use in asked)] == [], "granted, not used"
    apiserver.delete_namespace(space)
