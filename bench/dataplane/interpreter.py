"""What our sidecars run with: the Python of their own image, or the one that runs the benchmark.

Peers are measured as they are released: Envoy's wheel, Debian's HAProxy. So are we: a sidecar in a pod runs with its
image's Python, which is built with profile-guided optimisation, and with its image's OpenSSL. A Python that was built
on a developer's machine is mostly built without, and is a fifth slower.
"""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_CODE = ("certs", "graph", "sidecar")
_MITMDUMP = "import sys; from mitmproxy.tools.main import mitmdump; sys.exit(mitmdump())"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One Python.

    :param layers: the directories of the image's base and of its packages; None: the Python that runs this
    :param note: what people should know of the choice
    """

    layers: tuple[Path, Path] | None
    note: str

    @property
    def command(self) -> str:
        """The program, in a view of the file system in which :attr:`mounts` are made."""
        return "/opt/hedgerow/bin/python" if self.layers else sys.executable

    @property
    def mitmdump(self) -> list[str]:
        """Stock mitmdump of the same Python."""
        return [self.command, "-P", "-c", _MITMDUMP]

    @property
    def mounts(self) -> str:
        """Lines of shell that put it in its place, for :func:`hedgerow.local.views.make_view`."""
        if self.layers is None:
            return "true"
        base, packages = (shlex.quote(str(path)) for path in self.layers)
        return "\n".join(
            [
                "mount -t tmpfs -o nosuid,nodev,mode=0755 tmpfs /opt",
                "mkdir /opt/hedgerow",
                f"mount --bind {packages}/opt/hedgerow /opt/hedgerow",
                f"mount --bind {base}/usr /usr",
            ]
        )

    @property
    def version(self) -> str:
        """For the results."""
        if self.layers is None:
            return f"{platform.python_version()} ({self.note})"
        from e2e.images import debian

        program = f"/usr/bin/{debian.PYTHON}"
        said = debian.run_inside(
            self.layers[0], [program, "-I", "-c", "import platform; print(platform.python_version())"]
        )
        return f"{said.strip()} ({self.note})"


def own(why: str) -> Interpreter:
    """The Python that runs this."""
    return Interpreter(None, why)


def of_image(root: Path, say: Callable[[str], None]) -> Interpreter:
    """The image's, made when it is not there; this one where it cannot be made.

    :param root: the checkout, whose modules are compiled for it: a container's are
    """
    from e2e.harness.errors import HarnessError
    from e2e.images import build, debian

    try:
        base, packages = build.layers(build.SIDECAR, say)
        program = f"/usr/bin/{debian.PYTHON}"
        debian.run_inside(base, [program, "-I", "-m", "compileall", "-q", *(root / name for name in _CODE)])
    except (HarnessError, subprocess.SubprocessError, OSError) as error:
        say(f"our sidecars run with this Python, because their image's cannot be had: {error}")
        return own("not the image's, which cannot be had here")
    return Interpreter((base, packages), "as in the image")
