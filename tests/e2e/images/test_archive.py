"""Layers and archives: the same files give the same bytes, and what a container engine reads is there."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import time
from pathlib import Path

from e2e.images.archive import Settings, make_layer, read_layer, write_image
from e2e.images.programs import program_image


def tree(root: Path) -> Path:
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "bin" / "tool").write_text("#!/bin/sh\n")
    (root / "bin" / "tool").chmod(0o755)
    (root / "bin" / "same").hardlink_to(root / "bin" / "tool")
    (root / "bin" / "link").symlink_to("tool")
    (root / "etc" / "motd").write_text("welcome\n")
    return root


def test_a_layer_depends_on_the_files_alone(tmp_path: Path) -> None:
    first = make_layer(tree(tmp_path / "a"), tmp_path / "a.tar")
    os.utime(tmp_path / "a" / "etc" / "motd", (1, time.time()))
    second = make_layer(tree(tmp_path / "b"), tmp_path / "b.tar")

    assert first.digest == second.digest == hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest()

    (tmp_path / "b" / "etc" / "motd").write_text("changed\n")
    assert make_layer(tmp_path / "b", tmp_path / "c.tar").digest != first.digest


def test_a_layer_keeps_modes_and_links_and_no_times(tmp_path: Path) -> None:
    make_layer(tree(tmp_path / "a"), tmp_path / "a.tar")

    with tarfile.open(tmp_path / "a.tar") as archive:
        entries = {entry.name: entry for entry in archive}
    assert list(entries) == sorted(entries)
    assert {entry.mtime for entry in entries.values()} == {0}
    assert entries["bin/tool"].mode == 0o755 or entries["bin/same"].mode == 0o755
    assert entries["bin/link"].linkname == "tool"
    assert entries["bin/tool"].islnk() or entries["bin/same"].islnk()


def test_a_layer_is_read_back(tmp_path: Path) -> None:
    assert read_layer(tmp_path / "a.tar") is None

    made = make_layer(tree(tmp_path / "a"), tmp_path / "a.tar")

    assert read_layer(tmp_path / "a.tar") == made


def test_an_image_names_its_layers_and_settings(tmp_path: Path) -> None:
    layers = [make_layer(tree(tmp_path / name), tmp_path / f"{name}.tar") for name in ("low", "high")]
    settings = Settings(entrypoint=("/bin/tool",), user="1337:1337", environment={"A": "b"}, labels={"l": "v"})

    write_image(tmp_path / "image.tar", "e2e.local/x:1", layers, settings)

    with tarfile.open(tmp_path / "image.tar") as archive:
        members = {entry.name: archive.extractfile(entry).read() for entry in archive}
    (manifest,) = json.loads(members["manifest.json"])
    config = json.loads(members[manifest["Config"]])
    assert manifest["RepoTags"] == ["e2e.local/x:1"]
    assert manifest["Config"] == f"{hashlib.sha256(members[manifest['Config']]).hexdigest()}.json"
    contents = [hashlib.sha256(members[name]).hexdigest() for name in manifest["Layers"]]
    assert [f"sha256:{digest}" for digest in contents] == config["rootfs"]["diff_ids"]
    assert (config["config"]["Entrypoint"], config["config"]["User"]) == (["/bin/tool"], "1337:1337")
    assert "A=b" in config["config"]["Env"]


def test_an_image_is_the_same_each_time(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"\x7fELF")
    first = program_image(program, "e2e.local/pause:1", tmp_path / "1.tar").read_bytes()

    assert program_image(program, "e2e.local/pause:1", tmp_path / "2.tar").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.tar", "2.tar", "pause"]
