"""Layers and docker archives, byte by byte the same for the same files.

Times are zero, entries sorted, owners and modes those of the files. ``ctr images import``, ``docker load`` and
``podman load`` read the result.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2e.harness.errors import HarnessError

_EPOCH = "1970-01-01T00:00:00Z"
_PATH = "/opt/hedgerow/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer.

    :param digest: SHA-256 of the uncompressed tar, hexadecimal
    """

    tar: Path
    digest: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What a container of the image starts with.

    :param user: ``uid:gid``; empty is root
    """

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""
    directory: str = "/"
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


def architecture() -> str:
    """This machine's, as images name it.

    :raises HarnessError: when images are not made for it
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise HarnessError(f"no images for {machine}", f"images are made for {' and '.join(_ARCHITECTURES)}")
    return _ARCHITECTURES[machine]


def make_layer(root: Path, tar: Path) -> Layer:
    """Pack everything below ``root`` into one layer.

    :param tar: where it is written, whole or not at all
    """
    scratch = tar.with_name(f".{tar.name}.{os.getpid()}")
    with scratch.open("wb") as file:
        hashed = _Hashed(file)
        with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.GNU_FORMAT) as archive:
            for name in sorted(os.listdir(root)):
                archive.add(root / name, arcname=name, filter=_normal)
    digest = hashed.digest.hexdigest()
    _beside(tar).write_text(digest)
    scratch.rename(tar)
    return Layer(tar, digest)


def read_layer(tar: Path) -> Layer | None:
    """A layer that was packed before; None when it was not."""
    return Layer(tar, _beside(tar).read_text()) if tar.is_file() else None


def _beside(tar: Path) -> Path:
    return tar.with_name(f"{tar.name}.sha256")


def write_image(out: Path, reference: str, layers: Sequence[Layer], settings: Settings) -> None:
    """Write a docker archive.

    :param reference: the image's name with its tag
    :param layers: the lowest first
    """
    config = _config(layers, settings)
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [reference], "Layers": [f"{layer.digest}.tar" for layer in layers]}]
    scratch = out.with_name(f".{out.name}.{os.getpid()}")
    with tarfile.open(scratch, "w", format=tarfile.GNU_FORMAT) as archive:
        for member, content in ((name, config), ("manifest.json", json.dumps(manifest).encode())):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for layer in layers:
            entry = tarfile.TarInfo(f"{layer.digest}.tar")
            entry.size = layer.tar.stat().st_size
            with layer.tar.open("rb") as file:
                archive.addfile(entry, file)
    scratch.rename(out)


def _config(layers: Sequence[Layer], settings: Settings) -> bytes:
    started = {
        "Entrypoint": list(settings.entrypoint),
        "Cmd": list(settings.command),
        "User": settings.user,
        "WorkingDir": settings.directory,
        "Env": [f"{name}={value}" for name, value in sorted({"PATH": _PATH, **settings.environment}.items())],
        "Labels": dict(sorted(settings.labels.items())),
    }
    config = {
        "architecture": architecture(),
        "os": "linux",
        "created": _EPOCH,
        "config": started,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.digest}" for layer in layers]},
        "history": [{"created": _EPOCH} for _ in layers],
    }
    return json.dumps(config, sort_keys=True).encode()


def _normal(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if entry.isdev():
        return None
    entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is written."""

    def __init__(self, file: io.BufferedWriter) -> None:
        super().__init__()
        self._file = file
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # a buffer, as in RawIOBase
        self.digest.update(data)
        return self._file.write(data)
