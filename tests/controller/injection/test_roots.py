"""Inspected hosts: what the application is told to trust, that it is all taken away again, and what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.injection import names
from controller.injection.injecting import Injected, Refused, inject, uninject
from controller.injection.roots import BUNDLE, OURS, VARIABLES
from graph.model import InspectedHost
from tests.controller.injection.pods import (
    EXPLICIT,
    SHOP,
    accepted,
    container,
    document,
    injected,
    pod,
    refused,
    settings,
)

ASKING = {"inspect-egress": "api.example.com, pay.example.com:8443"}
MOUNT = {"mountPath": names.ROOTS_DIRECTORY, "name": names.ROOTS_VOLUME, "readOnly": True}


def env(made: dict[str, Any], name: str = "app") -> dict[str, str]:
    return {one["name"]: one.get("value") for one in container(made, name).get("env", ())}


def test_the_application_reads_what_the_sidecar_writes() -> None:
    made = injected(pod(annotations=ASKING, initContainers=[{"name": "migrate", "image": "m"}])).pod
    volumes = {one["name"]: one for one in made["spec"]["volumes"]}
    assert volumes[names.ROOTS_VOLUME] == {"name": names.ROOTS_VOLUME, "emptyDir": {"sizeLimit": "16Mi"}}
    for name in ("app", "migrate"):
        assert env(made, name) == dict(VARIABLES)
        assert container(made, name)["volumeMounts"] == [MOUNT]
    assert (VARIABLES["SSL_CERT_FILE"], VARIABLES["NODE_EXTRA_CA_CERTS"]) == (BUNDLE, OURS)
    mounts = {one["name"]: one for one in container(made, names.SIDECAR)["volumeMounts"]}
    assert mounts[names.ROOTS_VOLUME] == {"mountPath": names.ROOTS_DIRECTORY, "name": names.ROOTS_VOLUME}
    for ours in (names.CAPTURE, names.VALIDATION):
        assert names.ROOTS_VOLUME not in str(container(made, ours))
    egress = accepted(made).inspect.egress
    assert str(egress.directory) == names.ROOTS_DIRECTORY
    assert egress.hosts == {InspectedHost("api.example.com"), InspectedHost("pay.example.com", 8443)}
    assert egress.roots is None


def test_keys_stay_in_the_sidecars_own_volume() -> None:
    made = injected(pod(annotations=ASKING)).pod
    mounted = {one["name"] for one in container(made, "app")["volumeMounts"]}
    assert mounted == {names.ROOTS_VOLUME}
    assert not accepted(made).state_dir.is_relative_to(names.ROOTS_DIRECTORY)


def test_without_the_annotation_nothing_of_it_is_there() -> None:
    for nothing in ({}, {"inspect-egress": ""}):
        made = injected(pod(annotations=nothing)).pod
        assert names.ROOTS_VOLUME not in json.dumps(made)
        assert accepted(made).inspect.egress.hosts == frozenset()


def test_a_pod_has_its_hosts_beside_what_holds_for_all() -> None:
    everywhere = {"inspect": {"visible": ["x-kind"], "egress": {"roots": "/etc/roots.pem", "hosts": ["a.example.com"]}}}
    said = document(injected(pod(annotations=ASKING | {"inspect-ports": "8080"}), sidecar=everywhere).pod)["inspect"]
    assert (said["visible"], said["ports"]) == (["x-kind"], [8080])
    assert said["egress"] == {
        "directory": names.ROOTS_DIRECTORY,
        "roots": "/etc/roots.pem",
        "hosts": ["api.example.com:443", "pay.example.com:8443"],
    }


def test_roots_of_a_config_map_are_the_sidecars_alone() -> None:
    made = injected(pod(annotations=ASKING | {"egress-roots": "company-roots/ca.crt"})).pod
    volumes = {one["name"]: one for one in made["spec"]["volumes"]}
    assert volumes[names.EGRESS_ROOTS_VOLUME]["configMap"] == {
        "defaultMode": 0o644,
        "items": [{"key": "ca.crt", "path": "roots.pem"}],
        "name": "company-roots",
    }
    assert names.EGRESS_ROOTS_VOLUME in str(container(made, names.SIDECAR)["volumeMounts"])
    assert names.EGRESS_ROOTS_VOLUME not in str(container(made, "app"))
    assert str(accepted(made).inspect.egress.roots) == "/var/run/secrets/hedgerow/egress-roots/roots.pem"


def test_what_a_container_sets_itself_stays_and_its_author_is_told() -> None:
    own = {"name": "SSL_CERT_FILE", "value": "/own.pem"}
    given = pod(
        {"name": "app", "image": "i", "env": [own], "envFrom": [{"configMapRef": {"name": "more"}}]}, annotations=ASKING
    )
    made = injected(given)
    assert env(made.pod) == dict(VARIABLES) | {"SSL_CERT_FILE": "/own.pem"}
    warnings = [one for one in made.warnings if one.startswith("container app ")]
    assert any("sets SSL_CERT_FILE itself" in one for one in warnings)
    assert any("envFrom" in one for one in warnings)
    assert uninject(made.pod) == Injected(given)


def test_init_containers_before_a_plain_sidecar_are_left_alone() -> None:
    plain = ASKING | {"native-sidecar": "false"}
    made = injected(pod(annotations=plain, initContainers=[{"name": "migrate", "image": "m"}])).pod
    assert env(made, "migrate") == {}
    assert env(made) == dict(VARIABLES)


def hand_written() -> dict[str, Any]:
    """Somebody did as docs/escapes.md says, and a webhook put more in since."""
    made = {"name": "SSL_CERT_FILE", "value": BUNDLE}
    return pod(
        {"name": "app", "image": "i", "env": [made], "volumeMounts": []},
        {"name": "bare", "image": "i"},
        {"name": "empty", "image": "i", "env": None, "volumeMounts": None},
        {"name": "other", "image": "i", "env": [], "volumeMounts": [{"name": "x", "mountPath": "/x"}]},
        annotations=ASKING,
        volumes=[{"name": "x", "emptyDir": {}}],
    )


def test_it_is_all_taken_away_and_nothing_else() -> None:
    given = hand_written()
    before = copy.deepcopy(given)
    made = injected(given).pod
    assert given == before
    assert uninject(made) == Injected(before)
    again = inject(made, SHOP, settings())
    assert isinstance(again, Injected)
    assert json.dumps(again.pod) == json.dumps(made)


def test_what_came_later_stays_when_ours_goes() -> None:
    made = injected(pod(annotations=ASKING)).pod
    later = container(made, "app")
    later["env"].insert(0, {"name": "LATER", "value": "1"})
    later["env"] = [one for one in later["env"] if one["name"] != "CURL_CA_BUNDLE"]
    later["env"].append({"name": "CURL_CA_BUNDLE", "value": "/elsewhere.pem"})
    outcome = uninject(made)
    assert isinstance(outcome, Injected)
    assert env(outcome.pod) == {"LATER": "1", "CURL_CA_BUNDLE": "/elsewhere.pem"}
    assert "volumeMounts" not in container(outcome.pod, "app")
    del made["metadata"]["annotations"]["hedgerow.dev/inspect-egress"]
    without = inject(made, SHOP, settings())
    assert isinstance(without, Injected)
    assert names.ROOTS_VOLUME not in json.dumps(without.pod)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "env": st.one_of(
                    st.none(),
                    st.lists(
                        st.builds(
                            lambda name, value: {"name": name, "value": value},
                            st.sampled_from([*VARIABLES, "A", "B"]),
                            st.sampled_from([BUNDLE, OURS, "x"]),
                        ),
                        max_size=4,
                        unique_by=lambda one: one["name"],
                    ),
                ),
                "volumeMounts": st.one_of(st.none(), st.just([]), st.just([{"name": "x", "mountPath": "/x"}])),
            },
        ),
        min_size=1,
        max_size=3,
    )
)
def test_back_is_as_it_was_whatever_the_containers_say(parts: list[dict[str, Any]]) -> None:
    given = pod(*({"name": f"c{n}", "image": "i", **one} for n, one in enumerate(parts)), annotations=ASKING)
    made = injected(given).pod
    assert uninject(made) == Injected(given)
    assert injected(made).pod == made


@pytest.mark.parametrize(
    "forged",
    [
        {"roots": {"app": {"env": ["PATH"]}}},
        {"roots": {"app": {"env": [["A"]]}}},
        {"roots": {"app": {"env": [], "empties": {"command": []}}}},
        {"roots": {"app": {"env": [], "empties": {"env": ["x"]}}}},
        {"roots": {"app": {}}},
        {"roots": {"app": []}},
        {"roots": []},
    ],
    ids=json.dumps,
)
def test_a_record_that_somebody_made_up_is_refused(forged: dict[str, Any]) -> None:
    given = pod(annotations={names.RECORD: json.dumps({"version": 1, **forged})})
    for outcome in (inject(given, SHOP, settings()), uninject(given)):
        assert isinstance(outcome, Refused)
        assert "not what Hedgerow wrote" in str(outcome.error)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("inspect-egress", "*.example.com"),
        ("inspect-egress", "example"),
        ("inspect-egress", "10.0.0.1"),
        ("inspect-egress", "https://api.example.com"),
        ("inspect-egress", "API.example.com"),
        ("inspect-egress", "api.example.com:0"),
        ("inspect-egress", "a_b.example.com"),
        ("inspect-egress", "api.example.com,,b.example.com"),
        ("inspect-egress", ",".join(f"h{n}.example.com" for n in range(65))),
        ("inspect-egress", "$(HOME).example.com"),
        ("egress-roots", "company-roots"),
        ("egress-roots", "Company/ca.crt"),
        ("egress-roots", "company/../ca.crt"),
        ("egress-roots", "company/.."),
        ("egress-roots", "company/"),
        ("egress-roots", "company/ca crt"),
    ],
)
def test_what_names_no_host_or_no_roots_is_refused(name: str, written: str) -> None:
    message = refused(pod(annotations=ASKING | {name: written}))
    assert message.startswith(f"metadata.annotations[hedgerow.dev/{name}]")
    assert len(message) < 500


def test_what_can_not_work_is_refused_with_a_remedy() -> None:
    assert "set hedgerow.dev/inspect-egress too" in refused(pod(annotations={"egress-roots": "company/ca.crt"}))
    assert "answers of DNS" in refused(pod(annotations=ASKING | EXPLICIT))
    assert "answers of DNS" in refused(pod(annotations=ASKING), sidecar={"dns": {"proxy": False}})
    allowed = {"allow_annotations": ["dns-proxy"]}
    assert "answers of DNS" in refused(pod(annotations=ASKING | {"dns-proxy": "false"}), **allowed)
    for path in (names.ROOTS_DIRECTORY, f"{names.ROOTS_DIRECTORY}/"):
        mounting = {"name": "app", "image": "i", "volumeMounts": [{"name": "x", "mountPath": path}]}
        assert "mount it elsewhere" in refused(pod(mounting, annotations=ASKING))
    for volume in (names.ROOTS_VOLUME, names.EGRESS_ROOTS_VOLUME):
        assert "rename it" in refused(pod(volumes=[{"name": volume, "emptyDir": {}}]))
        mounting = {"name": "app", "image": "i", "volumeMounts": [{"name": volume, "mountPath": "/x"}]}
        assert "the sidecar's alone" in refused(pod(mounting))


def test_opaque_ports_may_be_ranges() -> None:
    made = injected(pod(annotations={"opaque-ports": "3306, 9000-9002, 9001"})).pod
    assert accepted(made).opaque_ports == {3306, 9000, 9001, 9002}
    for wrong in ("9002-9000", "1-60000", "1-", "-1", "1-2-3", "0-5", "65530-65536", "1-200,1000-1100"):
        assert "opaque-ports" in refused(pod(annotations={"opaque-ports": wrong}))
