"""The demo, as a person starts it: in every way that a machine may permit, to its end and not quite to its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from hedgerow.local import views
from hedgerow.local.sandbox import probe
from hedgerow.local.shop.layout import EXPECTED
from tests.local.traces import changes, traces
from tests.networkpolicy.evaluator import Cluster

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces as root")

WORKLOAD = "hedgerow.dev/workload"
DEMO = (sys.executable, "-P", "-m", "hedgerow.local", "--port", "0")


class Run:
    """One demo, and a way to find every process that came from it: a mark in the environment."""

    def __init__(
        self, *arguments: str, prefix: tuple[str, ...] = (), temporary: Path | None = None, path: str = ""
    ) -> None:
        self._mark = uuid.uuid4().hex
        env = {**os.environ, "HEDGEROW_TEST_MARK": self._mark}
        if path:
            env["PATH"] = path
        if temporary is not None:
            env["TMPDIR"] = str(temporary)
        self.process = subprocess.Popen(
            [*prefix, *DEMO, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            cwd="/",
            start_new_session=True,
        )

    def finish(self, timeout: float = 170.0) -> tuple[str, str]:
        return self.process.communicate(timeout=timeout)

    def read_until(self, pattern: str, *, stdout: bool = False) -> str:
        """Read what it says until a line matches; what it was until then."""
        stream = self.process.stdout if stdout else self.process.stderr
        assert stream is not None
        said = []
        for line in stream:
            said.append(line)
            if re.search(pattern, line):
                return "".join(said)
        pytest.fail(f"the demo ended and never said {pattern!r} but:\n{''.join(said)}")

    def alive(self) -> list[str]:
        """Command lines of the demo's own processes; those of pods have an environment of their own."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._mark.encode() in (directory / "environ").read_bytes():
                    found.append((directory / "cmdline").read_text().replace("\0", " "))
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def demo(*arguments: str, prefix: tuple[str, ...] = (), temporary: Path | None = None, path: str = "") -> Iterator[Run]:
    made = Run(*arguments, prefix=prefix, temporary=temporary, path=path)
    try:
        yield made
    finally:
        made.close()


def until(condition: Callable[[], object], what: str, deadline: float = 20.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about in {deadline} s"
        time.sleep(0.05)


def programs() -> set[str]:
    """Everything that runs and could be of a mesh, by process id and command line."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (directory / "cmdline").read_text().replace("\0", " ")
            if re.search(r"-m (sidecar|controller|hedgerow\.local)", command):
                found.add(f"{directory.name} {command}")
    return found


def everything() -> dict[str, str]:
    return {**traces(), "programs": "\n".join(sorted(programs()))}


def changed_since(before: dict[str, str]) -> dict[str, str]:
    return changes(before, everything())


#: Runs another command as an ordinary user who can run this interpreter.
AS_NOBODY = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-e", "-c"),
    f'{views.infrastructure_script(other_users=True)}\nexec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"',
    "sh",
)


@pytest.fixture
def out() -> Iterator[Path]:
    """A folder for the demo's files that every user can reach: pytest closes its own to others, again and again."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@needs_root
@pytest.mark.timeout(200)
@pytest.mark.parametrize("way", ["root", "user-namespace", "none"])
def test_the_whole_story(way: str, out: Path, tmp_path: Path) -> None:
    if way == "root":
        assert probe().confinement == way  # else this would test something else
    before = everything()
    prefix = AS_NOBODY if way == "user-namespace" else ()
    options = ("--explicit",) if way == "none" else ()
    temporary = tmp_path if way == "none" else None
    with demo("--once", "--json", "--out", str(out), *options, prefix=prefix, temporary=temporary) as run:
        stdout, stderr = run.finish()
        assert run.process.returncode == 0, stdout[-3000:] + stderr[-6000:]
    result = json.loads(stdout.splitlines()[-1])
    check_result(result, way)
    check_manifests(out, result)
    assert changed_since(before) == {}
    assert not list(tmp_path.glob("hedgerow-*"))


def check_result(result: dict[str, Any], way: str) -> None:
    assert result["confinement"] == way
    expected = {(str(edge.source), str(edge.destination), edge.port, str(edge.protocol)) for edge in EXPECTED}
    observed = {(edge["from"], edge["to"], edge["port"], edge["protocol"]) for edge in result["edges_observed"]}
    assert observed == expected
    assert result["edges_missing"] == result["edges_unexpected"] == []
    assert (result["services"], result["instances"]) == (9, 13)
    assert result["mtls_ratio"] == 1.0
    assert result["mtls_connections"] > len(EXPECTED)
    assert (result["false_denies"], result["failed_requests"]) == (0, 0)
    assert result["requests"] > 100
    assert {attack["from"] for attack in result["attacks"]} == {"shop/intruder", "shop/recommendation", "shop/shipping"}
    assert all(attack["blocked"] and attack["witnessed"] for attack in result["attacks"])
    override = result["override"]
    opened = ("from", "to", "port")
    assert [override[name] for name in opened] in [[attack[name] for name in opened] for attack in result["attacks"]]
    assert override["denied_before"]
    assert override["allowed_after"]
    assert override["denied_after_expiry"]
    assert override["cut_after_expiry"]
    assert override["push_ms"] > 0
    assert bool(result["cannot_show"]) == (way != "root")


def check_manifests(out: Path, result: dict[str, Any]) -> None:
    policies = [yaml.safe_load(path.read_text()) for path in sorted((out / "networkpolicies").glob("*.yaml"))]
    assert len(policies) == result["network_policies"] > 0
    for policy in policies:
        assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
        kubernetes_validate.validate(policy, "1.30", strict=True)
    pods = list(yaml.safe_load_all((out / "inventory" / "pods.yaml").read_text()))
    namespaces = list(yaml.safe_load_all((out / "inventory" / "namespaces.yaml").read_text()))
    for manifest in (*pods, *namespaces):
        kubernetes_validate.validate(manifest, "1.30", strict=True)
    assert {namespace["metadata"]["name"] for namespace in namespaces} == {"data", "shop", "hedgerow-system"}
    assert len(pods) == result["instances"] + 1  # the controller is a pod too
    assert len({pod["status"]["podIP"] for pod in pods}) == len(pods)
    workloads = [pod["metadata"]["annotations"][WORKLOAD] for pod in pods]
    assert workloads.count("shop/catalogue") == 3
    check_fence([*policies, *pods, *namespaces])


def check_fence(manifests: list[dict[str, Any]]) -> None:
    """What a cluster makes of these files: the shop's calls, names, the controller, and nothing else between pods."""
    dns = {"apiVersion": "v1", "kind": "Pod"}
    dns |= {"metadata": {"namespace": "kube-system", "name": "coredns-0", "labels": {"k8s-app": "kube-dns"}}}
    dns |= {"spec": {"containers": [{"name": "coredns"}]}, "status": {"phase": "Running", "podIP": "10.96.0.10"}}
    system = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}}
    cluster = Cluster([*manifests, system, dns])
    of = {
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}": pod["metadata"]["annotations"][WORKLOAD]
        for pod in manifests
        if pod["kind"] == "Pod"
    } | {"kube-system/coredns-0": "kube-system/coredns"}
    controller = "hedgerow-system/hedgerow-controller"
    meshed = set(of.values()) - {controller, "kube-system/coredns"}
    # 15020 and 15021 are the sidecars' own ports, for kubelets, who are no pods
    ports = [(port, protocol) for port, protocol in cluster.atoms() if not 15020 <= port <= 15021]
    allowed = {
        (of[source], of[destination], port, protocol)
        for source, destination, port, protocol in cluster.allowed(ports)
        if {of[source], of[destination]} & meshed
    }
    expected = {(str(edge.source), str(edge.destination), edge.port, str(edge.protocol)) for edge in EXPECTED}
    expected |= {(workload, controller, port, "TCP") for workload in meshed for port in (15012, 15013)}
    expected |= {(workload, "kube-system/coredns", 53, each) for workload in meshed for each in ("TCP", "UDP")}
    assert allowed == expected
    for edge in EXPECTED:  # between every two replicas, not only some
        for source in (pod for pod in of if of[pod] == str(edge.source)):
            for destination in (pod for pod in of if of[pod] == str(edge.destination)):
                assert cluster.pod_to_pod(source, destination, edge.port, str(edge.protocol))


@needs_root
@pytest.mark.timeout(120)
@pytest.mark.parametrize("moment", [None, "Start a controller", "Learn who"])
def test_kill_9_half_way_leaves_nothing(moment: str | None) -> None:
    before = everything()
    with demo("--once") as run:
        if moment is None:  # in the middle of starting: somebody is there who is not the front
            until(lambda: any("-m controller" in program for program in programs()), "a controller")
        else:
            run.read_until(moment)
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        until(lambda: not run.alive() and not changed_since(before), "the end of every process, namespace and rule")


@needs_root
@pytest.mark.timeout(120)
def test_an_interrupt_half_way_stops_everything() -> None:
    before = everything()
    with demo("--once") as run:
        run.read_until("Start a controller")
        run.process.send_signal(signal.SIGINT)
        _, stderr = run.finish()
        assert run.process.returncode == 130
        assert "Interrupted" in stderr
        until(lambda: not changed_since(before), "the end of every process, namespace and rule")


@needs_root
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_it_finds_out_what_is_permitted_starts_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    before, reached, go_on = everything(), tmp_path / "reached", tmp_path / "go-on"
    slow = tmp_path / "bin" / "ip"
    slow.parent.mkdir()
    real = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    slow.write_text(f'#!/bin/sh\n: >{reached}\nwhile [ ! -e {go_on} ]; do sleep 0.05; done\nexec {real} "$@"\n')
    slow.chmod(0o755)
    with demo("--once", temporary=tmp_path, path=f"{slow.parent}:{os.environ['PATH']}") as run:
        until(reached.exists, "the rehearsal")
        run.process.send_signal(number)
        go_on.touch()
        stdout, stderr = run.finish()
        assert (run.process.returncode, stdout) == (130, ""), stderr
        assert stderr == "Interrupted; nothing was started.\n"
        until(lambda: not run.alive() and not changed_since(before), "the end of every process")
    assert list(tmp_path.glob("hedgerow-mesh-*")) == []


@needs_root
@pytest.mark.timeout(120)
def test_an_interrupt_while_its_sandbox_begins_ends_it_in_good_order() -> None:
    before = everything()
    with demo("--once") as run:
        until(lambda: any("--inside" in each for each in run.alive()), "the program inside", 60.0)
        run.process.send_signal(signal.SIGINT)
        stdout, stderr = run.finish()
        assert (run.process.returncode, stdout) == (130, ""), stderr
        assert "Interrupted; everything is stopped and removed." in stderr
        assert "Traceback" not in stderr
        until(lambda: not changed_since(before), "the end of every process, namespace and rule")


@pytest.mark.timeout(120)
def test_in_explicit_mode_the_next_run_removes_what_kill_9_left(tmp_path: Path) -> None:
    before = programs()
    with demo("--once", "--explicit", temporary=tmp_path) as run:
        run.read_until("Start a controller")
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        until(lambda: programs() == before, "the end of every process")
    (left,) = tmp_path.glob("hedgerow-mesh-*")
    with demo("--once", "--explicit", temporary=tmp_path) as run:
        until(lambda: not left.exists(), "the removal of what was left")
        until(lambda: list(tmp_path.glob("hedgerow-mesh-*/controller.yaml")), "the next run's state")
        run.process.send_signal(signal.SIGINT)
        run.finish()
    assert list(tmp_path.glob("hedgerow-mesh-*")) == []
    assert programs() == before


@needs_root
@pytest.mark.timeout(120)
def test_the_next_run_removes_the_folder_of_one_that_was_to_serve(tmp_path: Path) -> None:
    """It stands outside of the sandbox, for people to look into, so that the kernel does not clear it away."""
    with demo(temporary=tmp_path) as run:
        run.read_until("Start a controller")
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait()
        until(lambda: not run.alive(), "the end of every process")
    (left,) = tmp_path.glob("hedgerow-mesh-*")
    with demo("--once", temporary=tmp_path) as run:
        until(lambda: not left.exists(), "the removal of what was left", 60.0)
        run.process.send_signal(signal.SIGINT)
        run.finish()
    assert list(tmp_path.glob("hedgerow-mesh-*")) == []


@needs_root
@pytest.mark.timeout(200)
def test_it_serves_until_ctrl_c_and_people_can_use_it_meanwhile() -> None:
    before = everything()
    with demo() as run:
        said = run.read_until("Ctrl-C stops everything", stdout=True)
        found = re.search(r"export (HEDGEROW_SERVER=\S+) (HEDGEROW_TOKEN_FILE=\S+)", said)
        assert found is not None, said
        access = dict(pair.split("=", 1) for pair in found.groups())
        asked = subprocess.run(
            [sys.executable, "-P", "-m", "hedgerow", "status", "-o", "json"],
            capture_output=True, text=True, check=False, env={**os.environ, **access},
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr
        modes = {one["workload"]: one["inbound_mode"] for one in json.loads(asked.stdout)["workloads"]}
        assert modes["shop/payment"] == "enforce"
        page = re.search(r"http://127\.0\.0\.1:\d+/#token=\S+", said)
        assert page is not None
        run.process.send_signal(signal.SIGINT)
        run.finish()
        assert run.process.returncode == 0
    until(lambda: not changed_since(before), "the end of every process, namespace and rule")


def test_a_busy_port_is_named_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with demo("--once", "--port", port) as run:
            _, stderr = run.finish()
    assert run.process.returncode == 2
    assert f"--port: cannot listen on 127.0.0.1:{port}: Address already in use" in stderr
    assert "name another port" in stderr
    assert "Traceback" not in stderr


def test_a_folder_that_cannot_be_written_is_named_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    with demo("--once", "--out", str(file / "out")) as run:
        _, stderr = run.finish()
    assert run.process.returncode == 2
    assert "--out: cannot write" in stderr
    assert "✓" not in stderr
    assert "Traceback" not in stderr
