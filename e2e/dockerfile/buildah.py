"""buildah with a storage of its own, in a directory that goes with it.

Commands of a build run in a chroot and in the machine's network (``--isolation chroot``): nothing else is needed on the
machine, no daemon and no runtime. Layers are kept between builds where the kernel has overlays here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from e2e.harness.errors import HarnessError
from e2e.kube.fetching import fetch

_SAID = 40


class Buildah:
    """Use it as a context manager: at its end nothing of it is left.

    :param directory: where its storage is made
    :raises HarnessError: when it is not installed, or cannot work here, with the remedy
    """

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        if os.geteuid() != 0:
            raise HarnessError("building images needs root", "run it as root")
        program = shutil.which("buildah")
        if program is None:
            raise HarnessError("buildah is not installed", "run: .ci/system-packages dockerfile")
        self._say = say
        self._directory = Path(tempfile.mkdtemp(prefix=".buildah-", dir=directory))
        self._environment = os.environ | {"TMPDIR": str(self._directory)}
        self._program = [program, "--root", str(self._directory / "root"), "--runroot", str(self._directory / "run")]
        overlay = [*self._program, "--storage-driver", "overlay"]
        self._overlay = self._run([*overlay, "info"]).returncode == 0
        if not self._overlay:
            self._forget()
            self._directory.mkdir()
        self._program = overlay if self._overlay else [*self._program, "--storage-driver", "vfs"]

    def __enter__(self) -> Buildah:
        return self

    def __exit__(self, *_: object) -> None:
        self._run([*self._program, "rm", "--all"])
        self._forget()

    def load(self, archive: Path, reference: str) -> str:
        """Take a docker archive into the storage.

        :param reference: the name and tag that the archive carries
        :returns: its name with its digest
        """
        self._check(["pull", "--quiet", f"docker-archive:{archive}"])
        listed = self._check(["inspect", "--type", "image", "--format", "{{.FromImageDigest}}", reference])
        return f"{reference.rpartition(':')[0]}@{listed.strip()}"

    def build(
        self, context: Path, target: str, reference: str, arguments: Mapping[str, str], secrets: Mapping[str, Path]
    ) -> None:
        """Build a stage of the Dockerfile in ``context``; nothing but the packages is fetched.

        :param reference: what the image is called then
        :raises HarnessError: with what the build said last
        """
        command = [*self._program, "build", "--isolation", "chroot", "--pull-never", "--format", "docker"]
        command += ["--layers"] if self._overlay else []
        for name, value in arguments.items():
            command += ["--build-arg", f"{name}={value}"]
        for name, path in secrets.items():
            command += ["--secret", f"id={name},src={path}"]
        command += ["--target", target, "--tag", reference, str(context)]
        done = fetch(command, say=self._say, env=self._environment, cwd=context)
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-_SAID:])
            raise HarnessError(f"the Dockerfile's target {target} could not be built:\n{said}")

    def save(self, reference: str, archive: Path) -> None:
        """Write an image as a docker archive, whole or not at all."""
        scratch = self._directory / archive.name
        self._check(["push", "--quiet", reference, f"docker-archive:{scratch}:{reference}"])
        scratch.rename(archive)

    def _check(self, arguments: list[str]) -> str:
        done = self._run([*self._program, *arguments])
        if done.returncode:
            raise HarnessError(f"buildah {arguments[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)

    def _forget(self) -> None:
        """Unmount what buildah has mounted upon itself; remove its storage."""
        mounts = [line.split()[1].replace("\\040", " ") for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in reversed(mounts):
            if mount.startswith(f"{self._directory}/"):
                subprocess.run(["umount", mount], check=True)
        shutil.rmtree(self._directory)
