"""Which failures of a fetching command are tried again, and how often."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.kube.fetching import ATTEMPTS, fetch


def program(folder: Path, says: str, *, fails: int) -> list[str]:
    """One that says this and fails so many times, and notes each start."""
    script = folder / "program"
    script.write_text(
        f'#!/bin/sh\necho x >>"{folder}/starts"\n[ "$(wc -l <"{folder}/starts")" -gt {fails} ] && exit 0\n'
        f"cat >&2 <<'TEXT'\n{says}\nTEXT\nexit 7\n"
    )
    script.chmod(0o755)
    return [str(script)]


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text().splitlines())


@pytest.mark.parametrize(
    "says",
    [
        "go: k8s.io/api@v0.36.3: Get x: dial tcp 192.0.2.1:443: i/o timeout",
        "reading mod: 502 Bad Gateway",
        "read tcp 192.0.2.1:1->192.0.2.1:443: read: connection reset by peer",
        "zip: Get x: unexpected EOF",
        "go: github.com/a/b@v1: Get x: EOF",
        "dial tcp: lookup proxy.test: no such host",
        "stream error: stream ID 5; INTERNAL_ERROR",
        "ERROR: HTTP error 503 while getting x",
        "E: Couldn't download dists/trixie/main/binary-amd64/Packages",
    ],
)
def test_what_the_network_did_is_tried_again(tmp_path: Path, says: str) -> None:
    told: list[str] = []
    cleaned: list[int] = []
    done = fetch(
        program(tmp_path, f"go: downloading a\n{says}", fails=2),
        say=told.append, before=lambda: cleaned.append(starts(tmp_path)), pause=0.0,
    )  # fmt: skip
    assert (done.returncode, starts(tmp_path), cleaned) == (0, 3, [1, 2])
    assert [each.endswith(f"({number} of {ATTEMPTS}): {says}") for number, each in enumerate(told, 2)] == [True, True]


@pytest.mark.parametrize(
    "says",
    [
        "main.go:502:10: undefined: x",
        "go: verifying k8s.io/api@v0.36.3: checksum mismatch",
        "reading mod: 404 Not Found",
        "no space left on device",
        "",
    ],
)
def test_what_would_fail_again_is_not(tmp_path: Path, says: str) -> None:
    told: list[str] = []
    done = fetch(program(tmp_path, says, fails=9), say=told.append, pause=0.0)
    assert (done.returncode, starts(tmp_path), told) == (7, 1, [])
    assert done.stderr.strip() == says


def test_it_ends_when_nobody_ever_answers(tmp_path: Path) -> None:
    told: list[str] = []
    done = fetch(program(tmp_path, "connection refused", fails=99), say=told.append, pause=0.0)
    assert (done.returncode, starts(tmp_path)) == (7, ATTEMPTS)
    assert len(told) == ATTEMPTS - 1
