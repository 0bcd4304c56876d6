"""Images that hold one static program: what the cluster itself is made of."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from e2e.images.archive import Settings, make_layer, write_image


def program_image(program: Path, reference: str, out: Path) -> Path:
    """An image with ``program`` at its root, which it starts.

    :returns: ``out``, the archive
    """
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        inside = root / program.name
        shutil.copyfile(program, inside)
        inside.chmod(0o755)
        layer = make_layer(root, Path(scratch) / "layer.tar")
        write_image(out, reference, [layer], Settings(entrypoint=(f"/{program.name}",)))
    return out
