"""An image out of a docker archive, unpacked: its files to be read, its programs to be run as a container's are."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: A layer's mark that a file of a lower one is gone (OCI image specification, "Whiteouts").
_GONE = ".wh."
_EMPTIED = ".wh..wh..opq"
# The root cannot be written, as the charts have it; programs find what every container has.
_START = """
root=$1 user=$2
shift 2
mount --rbind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/dev"
for name in null zero random urandom; do
    : > "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" "$root" env -i "$@"
"""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The image.

    :param root: its files
    :param settings: how its containers start: ``config`` of the OCI image specification
    """

    root: Path
    settings: dict[str, Any]

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command with the image's user and variables, from its directory, in a root that nobody can write."""
        start = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        inside = [*self.settings["Env"], *command]
        whole = [*start, "sh", "-e", "-c", _START, "sh", str(self.root), self.settings["User"] or "0:0", *inside]
        return subprocess.run(whole, capture_output=True, text=True, check=False)

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run its entrypoint."""
        return self.run([*self.settings["Entrypoint"], *arguments])

    def files(self, below: str = "") -> Iterator[Path]:
        """Regular files, relative to the root."""
        for path in (self.root / below).rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(self.root)


def unpack(archive: Path, root: Path) -> Unpacked:
    """Put an image's layers on top of each other.

    :param root: an empty directory
    """
    with tarfile.open(archive) as whole:
        manifest = json.load(_member(whole, "manifest.json"))[0]
        config = json.load(_member(whole, manifest["Config"]))
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=_member(whole, name)) as layer:
                _apply(layer, root)
    root.chmod(0o755)  # temporary directories are their owner's alone, and no layer says how the root is
    return Unpacked(root, config["config"])


def _member(archive: tarfile.TarFile, name: str) -> Any:
    file = archive.extractfile(name)
    assert file is not None, name
    return file


def _apply(layer: tarfile.TarFile, root: Path) -> None:
    entries = layer.getmembers()
    for entry in entries:
        path = Path(entry.name)
        if path.name == _EMPTIED:
            _remove(root / path.parent)
        elif path.name.startswith(_GONE):
            _remove(root / path.parent / path.name.removeprefix(_GONE))
    real = [entry for entry in entries if not Path(entry.name).name.startswith(_GONE)]
    for entry in real:
        path = root / entry.name
        if not entry.isdir() and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    layer.extractall(root, members=real, numeric_owner=True, filter="fully_trusted")  # we have built it ourselves


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
