"""``hedgerow inject`` and ``uninject`` at a shell: pipes, files, settings, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hedgerow.test_shell import imported

APP = """\
# The cart.
apiVersion: apps/v1
kind: Deployment
metadata:
  name: cart
spec:
  template:
    spec:
      containers:
      - name: app  # the only one
        image: shop/cart:1
---
kind: Service
apiVersion: v1
"""


def hedgerow(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    command = [sys.executable, "-m", "hedgerow", *arguments]
    ended = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stdout, ended.stderr


def test_there_and_back_through_a_pipe() -> None:
    code, made, said = hedgerow("inject", "-f", "-", stdin=APP)
    assert (code, said) == (0, "Deployment/cart: injected\n")
    assert "hedgerow-capture" in made
    assert made.endswith("---\nkind: Service\napiVersion: v1\n")
    assert hedgerow("inject", "-f", "-", stdin=made) == (0, made, "Deployment/cart: unchanged\n")
    assert hedgerow("uninject", "-f", "-", stdin=made) == (0, APP, "Deployment/cart: uninjected\n")


@pytest.mark.parametrize("verb", ["inject", "uninject"])
def test_a_file_without_pods_passes_and_is_told(verb: str) -> None:
    for text in ("kind: Service\napiVersion: v1\n", "", "root:x:0:0\n"):
        assert hedgerow(verb, "-f", "-", stdin=text) == (0, text, "standard input: no pods in it, nothing to change\n")


def test_the_settings_of_the_webhook_hold_for_files(tmp_path: Path) -> None:
    file, config = tmp_path / "app.yaml", tmp_path / "injector.yaml"
    file.write_text(APP)
    config.write_text("certificate: x\nkey: y\ninjection: {image: 'registry.example/s:7', cluster: east}\n")
    _, made, _ = hedgerow("inject", "-f", str(file), "--config", str(config))
    assert "registry.example/s:7" in made
    assert '"cluster":"east"' in made
    _, made, _ = hedgerow("inject", "-f", str(file), "--config", str(config), "--image", "other:1")
    assert "registry.example" not in made
    _, made, _ = hedgerow("inject", "-f", str(file), "--kubernetes-version", "1.28")
    assert "restartPolicy" not in made
    assert hedgerow("inject", "-f", str(file), "-n", "kube-system")[1:] == (
        APP,
        "Deployment/cart: skipped: namespace\n",
    )


def test_what_is_wrong_is_said_with_file_and_place_and_nothing_is_written(tmp_path: Path) -> None:
    evil = APP.replace("image: shop/cart:1", "securityContext: {runAsUser: 1337}")
    code, made, said = hedgerow("inject", "-f", "-", stdin=evil)
    assert (code, made) == (1, "")
    assert said.startswith("error: -, document 1, Deployment/cart: spec.template.spec.containers[0].securityContext")
    assert "  try: run the application as another user" in said
    assert hedgerow("inject", "-f", str(tmp_path / "none"))[0] == 2
    assert hedgerow("inject", "-f", "-", "--image", "a b", stdin=APP)[0] == 2
    assert hedgerow("inject", "-f", "-", "--kubernetes-version", "x", stdin=APP)[0] == 2
    assert hedgerow("inject", "-f", "-", "--config", str(tmp_path / "none"), stdin=APP)[0] == 2
    code, _, said = hedgerow("inject", "-f", "-", stdin="a: [")
    assert (code, said.startswith("error: -, document 1: not YAML")) == (1, True)
    assert hedgerow("injector", "--config", str(tmp_path / "none"))[0] == 2


def test_warnings_go_beside_the_result() -> None:
    code, made, said = hedgerow(
        "inject", "-f", "-", stdin=APP.replace("    spec:\n", "    spec:\n      hostNetwork: true\n")
    )
    assert code == 0
    assert "hedgerow-sidecar" not in made
    assert "Deployment/cart: skipped: host-network\n  warning: not injected" in said


def test_help_loads_nothing_of_the_controller() -> None:
    for command in ("inject", "uninject", "injector"):
        loaded = imported(command, "--help")
        assert not any(name.startswith("controller") for name in loaded)
        assert not {"yaml", "aiohttp"} & loaded


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{limits: {connections: many}}", "injection.sidecar.limits.connections: 'many' is not such a number; write a"),
        ("{dns: {upstreams: [dns]}}", "injection.sidecar.dns.upstreams[0]: 'dns' is not host:port; write it as"),
        ("{hold_seconds: -1}", "injection.sidecar.hold_seconds: -1 is not such a duration; write seconds from 0 to"),
    ],
)
def test_what_no_sidecar_would_take_is_refused_before_any_pod_has_it(tmp_path: Path, given: str, said: str) -> None:
    config = tmp_path / "injector.yaml"
    config.write_text(f"certificate: x\nkey: y\ninjection: {{image: s, sidecar: {given}}}\n")
    code, made, why = hedgerow("inject", "-f", "-", "--config", str(config), stdin=APP)
    assert (code, made) == (2, "")
    assert why.startswith(f"error: {said}")
    code, _, why = hedgerow("injector", "--config", str(config))
    assert code == 2
    assert why.startswith(f"error: {said}")
