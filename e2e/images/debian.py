"""The lowest layer: Debian with the packages that both images need, and programs run with it.

Programs inside it are run without chroot: its ``/usr`` is mounted over the machine's in a mount namespace of the
program's own, so that they see the machine's network settings, certificates and package indexes, and bring their own
libraries. The machine needs what every Debian and Ubuntu of today has: ``/bin`` and ``/lib`` as links into ``/usr``.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from e2e.harness.errors import HarnessError
from e2e.kube.fetching import fetch

SUITE = "trixie"
#: Its Python.
PYTHON = "python3.13"
#: Nothing here compiles, downloads or logs in.
PACKAGES = ("ca-certificates", "iptables", "netbase", "nftables", "python3", "tzdata")
#: The user that sidecars, controllers and injectors run as.
UID = 1337
#: Bump it when what is removed or added below changes.
RECIPE = "2"

_EMPTY = ("dev", "proc", "sys", "run", "tmp", "var/cache", "var/lib/apt/lists", "var/log", "var/tmp", "boot")
_REMOVED = ("usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/bash-completion", "usr/share/lintian")
_REMOVED_FILES = (
    "etc/machine-id",
    "etc/hostname",
    "etc/resolv.conf",
    "var/cache/ldconfig/aux-cache",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/available-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/statoverride-old",
)


def bootstrap(root: Path, say: Callable[[str], None]) -> None:
    """Make Debian in ``root``, which must not exist; takes a minute and the network.

    ``DEBOOTSTRAP_MIRROR`` names another mirror than debootstrap's own.

    :param say: told when it is tried again
    :raises HarnessError: with what debootstrap said
    """
    if os.geteuid() != 0:
        raise HarnessError("making an image's base needs root", "run it as root")
    program = shutil.which("debootstrap", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        raise HarnessError("debootstrap is not installed", "run: apt-get install debootstrap debian-archive-keyring")
    scratch = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        command = [program, "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(scratch)]
        mirror = os.environ.get("DEBOOTSTRAP_MIRROR")
        if mirror:
            command.append(mirror)
        done = fetch(command, say=say, before=lambda: _empty(scratch))
        if done.returncode:
            said = "\n".join([*done.stderr.splitlines(), *done.stdout.splitlines()][-15:])
            raise HarnessError(
                f"debootstrap could not make {SUITE}: {said}",
                "it needs a Debian mirror (DEBOOTSTRAP_MIRROR) and a file system that takes device files",
            )
        _clean(scratch)
        _forget_day(scratch)
        _add_user(scratch)
        compile_python(scratch, scratch, scratch / "usr" / "lib" / PYTHON)
        scratch.chmod(0o755)
        scratch.rename(root)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run_inside(root: Path, command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> str:
    """Run a program of the base (see above) and answer its output.

    :raises HarnessError: with what it said
    """
    if not Path("/lib").is_symlink():
        raise HarnessError("/lib is no link into /usr here", "images are made on Debian 12, Ubuntu 22.04 or later")
    script = 'mount --bind "$1/usr" /usr\nshift\nexec "$@"'
    wrapped = ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", script, "sh", str(root)]
    done = subprocess.run(
        [*wrapped, *map(str, command)],
        env=None if environment is None else dict(environment),
        cwd="/",
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).splitlines()[-15:])
        raise HarnessError(f"{command[0]} in the image ended with {done.returncode}: {said}")
    return done.stdout


def compile_python(root: Path, layer: Path, directory: Path) -> None:
    """Compile modules so that they stand without times: containers cannot write what they would compile themselves.

    :param root: the base, whose Python compiles
    :param layer: the root of the layer that ``directory`` is in
    """
    for stale in list(directory.rglob("__pycache__")):
        shutil.rmtree(stale)
    inside = f"/{directory.relative_to(layer)}"
    options = ["-q", "-f", "--invalidation-mode", "unchecked-hash", "-s", str(directory), "-p", inside]
    run_inside(root, [f"/usr/bin/{PYTHON}", "-I", "-m", "compileall", *options, directory])


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)


def _clean(root: Path) -> None:
    for name in _EMPTY:
        directory = root / name
        for entry in directory.iterdir() if directory.is_dir() else ():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for name in _REMOVED:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in _REMOVED_FILES:
        (root / name).unlink(missing_ok=True)
    for entry in (root / "usr" / "share" / "doc").rglob("*"):
        if entry.name != "copyright" and not entry.is_dir():
            entry.unlink()
    for folder, _, names in root.walk():
        for path in (folder / name for name in names):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                path.chmod(stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID))


def _forget_day(root: Path) -> None:
    """The password file notes the day on which each account, none of which has a password, was made."""
    for name in ("shadow", "shadow-"):
        path = root / "etc" / name
        if path.is_file():
            lines = [line.split(":") for line in path.read_text().splitlines()]
            path.write_text("".join(":".join([*fields[:2], "1", *fields[3:]]) + "\n" for fields in lines))


def _add_user(root: Path) -> None:
    for name, line in (
        ("passwd", f"hedgerow:x:{UID}:{UID}:Hedgerow:/var/lib/hedgerow:/usr/sbin/nologin\n"),
        ("group", f"hedgerow:x:{UID}:\n"),
    ):
        with (root / "etc" / name).open("a") as file:
            file.write(line)
    state = root / "var" / "lib" / "hedgerow"
    state.mkdir(mode=0o750)
    os.chown(state, UID, UID)
