"""Layers lie upon each other as the OCI image specification says."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from e2e.dockerfile.unpacked import unpack


def layer(**files: str | None) -> bytes:
    """A layer with files by their names, ``__`` for a slash; None is a directory."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("GONE_", ".wh.").replace("EMPTIED", ".wh..wh..opq"))
            if text is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            entry.size = len(text or "")
            tar.addfile(entry, io.BytesIO((text or "").encode()))
    return packed.getvalue()


def image(path: Path, *layers: bytes) -> Path:
    names = [f"{position}.tar" for position in range(len(layers))]
    config = {"config": {"User": "1:2", "Env": ["A=b"]}}
    manifest = [{"Config": "config.json", "Layers": names}]
    with tarfile.open(path, "w") as tar:
        for name, content in (
            ("manifest.json", json.dumps(manifest).encode()),
            ("config.json", json.dumps(config).encode()),
            *zip(names, layers, strict=True),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def found(tmp_path: Path, *layers: bytes) -> dict[str, str]:
    root = tmp_path / "root"
    root.mkdir()
    unpacked = unpack(image(tmp_path / "image.tar", *layers), root)
    assert unpacked.settings == {"User": "1:2", "Env": ["A=b"]}
    return {str(path): (root / path).read_text() for path in unpacked.files()}


def test_the_higher_layer_counts(tmp_path: Path) -> None:
    assert found(tmp_path, layer(a="1", b="1"), layer(b="2", c="2")) == {"a": "1", "b": "2", "c": "2"}


def test_a_mark_takes_away_what_lies_below(tmp_path: Path) -> None:
    lower = layer(d=None, d__a="1", d__b="1", e=None, e__a="1")

    assert found(tmp_path, lower, layer(d=None, d__GONE_a="", GONE_e="")) == {"d/b": "1"}


def test_an_emptied_directory_holds_what_its_own_layer_puts_there(tmp_path: Path) -> None:
    lower = layer(d=None, d__a="1")

    assert found(tmp_path, lower, layer(d=None, d__b="2", d__EMPTIED="")) == {"d/b": "2"}


def test_a_file_takes_the_place_of_a_directory(tmp_path: Path) -> None:
    assert found(tmp_path, layer(d=None, d__a="1"), layer(d="2")) == {"d": "2"}
