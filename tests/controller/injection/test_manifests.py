"""Files: what is changed in them, what is not, and that all of it can be taken back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.injection.manifests import ManifestError, inject_text, uninject_text
from controller.injection.yaml_text import NotYaml, block, edited, load, rewritten
from tests.controller.injection.pods import pod, settings


def injected(text: str) -> str:
    """With the three properties that every file has to have."""
    once = inject_text(text, settings(), "shop").text
    assert inject_text(once, settings(), "shop").text == once, "twice is not once"
    back = uninject_text(once).text
    assert documents(back) == documents(text), "taken back it says something else"
    assert uninject_text(back).text == back
    return once


def documents(text: str) -> list[Any]:
    return list(yaml.safe_load_all(text))


FILE = """\
# Everything that the shop needs.
apiVersion: v1
kind: Service  # the front door
metadata: {name: cart}
spec: {ports: [{port: 80}]}
---
# The cart itself.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: cart   # its name
spec:
  template:
    metadata:
      labels:
        app: "cart"
        commit: "12e4567"   # no number
    spec:
      # what runs
      containers:
      - name: app   # first
        image: 'shop/cart:1'
        args: [--date, 2024-01-01, "yes", 0644]
        ports:
        - {name: http, containerPort: 8080}
        livenessProbe:
          httpGet: {path: /healthz, port: http}   # alive?
          periodSeconds: 3
        readinessProbe:
          tcpSocket:
            port: 9000
      # done
  replicas: 2

---
apiVersion: example.com/v1
kind: Anything
x: &a [1,   2]
y: *a
...
---
"""


def test_only_what_is_injected_is_changed_and_it_comes_back_byte_for_byte() -> None:
    made = injected(FILE)
    assert uninject_text(made).text == FILE
    new = made.splitlines()
    kept = [
        line for line in FILE.splitlines() if "httpGet" not in line and "tcpSocket" not in line and "9000" not in line
    ]
    left = iter(new)
    assert all(line in left for line in kept), "a line was changed, or its place"
    assert made.startswith(FILE.partition("---")[0])
    assert made.endswith(FILE.rpartition("replicas: 2\n")[2])
    assert 'commit: "12e4567"   # no number' in made


@pytest.mark.parametrize("kind", ["DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"])
def test_every_kind_of_apps(kind: str) -> None:
    text = yaml.safe_dump(
        {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "x"}, "spec": {"template": pod()}}
    )
    assert "hedgerow-sidecar" in injected(text)


@pytest.mark.parametrize(
    ("kind", "version", "wrap"),
    [
        ("Pod", "v1", lambda inner: inner),
        ("PodTemplate", "v1", lambda inner: {"template": inner}),
        ("ReplicationController", "v1", lambda inner: {"spec": {"template": inner}}),
        ("Job", "batch/v1", lambda inner: {"spec": {"template": inner}}),
        ("CronJob", "batch/v1beta1", lambda inner: {"spec": {"jobTemplate": {"spec": {"template": inner}}}}),
        ("Deployment", "extensions/v1beta1", lambda inner: {"spec": {"template": inner}}),
    ],
)
def test_every_other_kind_with_pods(kind: str, version: str, wrap: Any) -> None:
    inner = {"metadata": {"name": "x"}, "spec": pod()["spec"]}
    document = {"apiVersion": version, "kind": kind, **wrap(inner)}
    assert "hedgerow-sidecar" in injected(yaml.safe_dump(document, sort_keys=False))
    assert "hedgerow-sidecar" in injected(json.dumps(document))
    for listed in (
        {"apiVersion": "v1", "kind": "List", "items": [{"kind": "Service"}, document]},
        {"apiVersion": version, "kind": f"{kind}List", "items": [wrap(inner)]},
    ):
        assert "hedgerow-sidecar" in injected(yaml.safe_dump(listed, sort_keys=False))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "---\n",
        "# only a comment",
        "a: 1\n---\nb: 2",
        "kind: Deployment\napiVersion: example.com/v1\nspec: {template: {spec: {containers: []}}}\n",
        "kind: [Pod]\napiVersion: v1\n",
        "- 1\n- 2\n",
        "\ufeffa: 1\r\n---\r\nb:  2\r\n",
        "x: |\n  --- not a marker\n  y\n---   \nz: 1\n",
        "kind: Pod\napiVersion: v1\nmetadata: {namespace: kube-system, name: x}\nspec: {containers: [{name: a}]}\n",
        "kind: Pod\napiVersion: v1\nmetadata: {annotations: {hedgerow.dev/injection: disabled}}\n"
        "spec: {containers: [{name: a}]}\n",
    ],
)
def test_everything_else_leaves_as_it_came(text: str) -> None:
    assert inject_text(text, settings(), "shop").text == text
    assert uninject_text(text).text == text


def test_inspected_hosts_come_and_go_byte_for_byte() -> None:
    annotation = '      annotations:\n        hedgerow.dev/inspect-egress: "api.example.com"   # its partner\n'
    asking = FILE.replace("      labels:\n", f"{annotation}      labels:\n")
    for mine in (
        "",
        "        env: []   # none\n",
        '        env:\n        - {name: SSL_CERT_FILE, value: "x"}   # own\n',
    ):
        text = asking.replace("        livenessProbe:\n", f"{mine}        livenessProbe:\n")
        made = injected(text)
        assert uninject_text(made).text == text
        assert "NODE_EXTRA_CA_CERTS" in made
        assert ("# own" in made) is ("# own" in text)


def test_odd_texts_are_changed_rightly_too() -> None:
    base = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  containers:\n  - name: a\n    image: i"
    for text in (
        base,  # no line break at the end
        base.replace("\n", "\r\n") + "\r\n",
        base + "\n\n\n# the end\n",
        base.replace("  - name: a\n    image: i", "    -   name: a\n        image: i\n"),
        base.replace("{name: x}", "{name: &n x}") + "\n",  # an anchor: written anew
        base.replace("spec:\n", "spec:\n  initContainers: []\n  volumes:\n") + "\n",
        base.replace("image: i", "args:\n    - |\n      a\n      b\n\n"),
        "{apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {containers: [{name: a}]}}\n",
        json.dumps(load(base), indent=2) + "\n",
        json.dumps(load(base)),
        json.dumps(load(base), separators=(",", ":")),
    ):
        made = injected(text)
        assert "hedgerow-sidecar" in made
        if "&n" not in text and "volumes:\n" not in text and not text.startswith("{api"):
            assert uninject_text(made).text == text


def test_a_refused_pod_refuses_the_file_and_is_named() -> None:
    text = FILE.replace("      # what runs\n", "      securityContext: {runAsUser: 1337}\n")
    with pytest.raises(ManifestError) as refused:
        inject_text(text, settings(), "shop")
    assert refused.value.field == "document 2, Deployment/cart: spec.template.spec.securityContext.runAsUser"
    assert refused.value.remedy == "run the application as another user"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "document 1: not YAML: "),
        ("a: 1\n---\na: 1\na: 2\n", "document 2: not YAML: line 2: 'a' is written twice"),
        ("a: {{ .Values.x }}\n", "not YAML"),
        ("[" * 200 + "]" * 200, "nested more than 100 levels"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)),
            "more than 500000 values",
        ),
        ("kind: Job\napiVersion: batch/v1\nspec: {}\n", "it has no template of a pod"),
        ("kind: Pod\napiVersion: v1\nspec: {containers: x}\n", "spec.containers: 'x' is not a list"),
        ("a: !!python/object:os.system x\n", "not YAML"),
    ],
)
def test_files_that_can_not_be_used_are_refused_with_a_place(text: str, said: str) -> None:
    with pytest.raises(ManifestError) as refused:
        inject_text(text, settings(), "shop")
    assert said in str(refused.value)


# --- the text itself

ODD = ["yes", "1e3", "0644", "2024-01-01", "", "a: b", "- x", "a #b", "1:30", "~", "=", "<<", "\u2028", "é", "'", '"']
ODD += [
    "a\nb",
    "\x07",
    "\x7f",
    "\U0001f600",
    "\U000e0001",
    "y",
    "NULL",
    "0x1F",
    ".5",
    "null ",
    "---",
    "...",
    "%a",
    "@a",
    "`a",
]
NUMBERS = st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.sampled_from(ODD) | st.text(max_size=6)
NAMES = st.sampled_from(["a", "b", "yes", "1", "x y", "a/b", "", "é", "c:"]) | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(NAMES, inner, max_size=3)
        | st.lists(st.fixed_dictionaries({"name": st.sampled_from("abcd"), "v": inner}), max_size=3)
    ),
    max_leaves=12,
)
MAPPINGS = st.dictionaries(NAMES, VALUES, min_size=1, max_size=4)


@given(MAPPINGS)
def test_what_is_written_is_read_again(value: dict[str, Any]) -> None:
    text = "\n".join(block(value, "")) + "\n"
    assert load(text) == value
    assert yaml.safe_load(text) == value, "another reader"
    assert load(rewritten("---\n# why\n", value)) == value


@given(MAPPINGS, MAPPINGS, st.booleans(), st.sampled_from([None, True, False]))
def test_a_text_is_led_from_any_value_to_any_other(
    before: dict[str, Any], after: dict[str, Any], ours: bool, style: bool | None
) -> None:
    text = "\n".join(block(before, "")) + "\n" if ours else yaml.safe_dump(before, default_flow_style=style)
    assert load(text) == before
    made = edited(text, before, after)
    assert load(made) == after
    assert edited(made, after, after) == made


@given(MAPPINGS, MAPPINGS)
def test_what_is_put_in_comes_out_without_a_trace(before: dict[str, Any], more: dict[str, Any]) -> None:
    text = "# head\n" + "\n".join(block(before, "")) + "  # why\n\n# tail\n"
    if load(text) != before:
        return  # the remark became part of a value
    grown = {**before, **{f"new {name}": value for name, value in more.items()}}
    made = edited(text, before, grown)
    assert load(made) == grown
    if any(isinstance(value, dict | list) and not value for value in before.values()):
        return
    assert edited(made, grown, before) == text


def test_a_name_twice_is_no_document() -> None:
    with pytest.raises(NotYaml, match="twice"):
        load("a:\n  b: 1\n  b: 2\n")
