"""The software bill of materials of an image: CycloneDX 1.6, the same bytes for the same contents.

It lists what the image really holds, read from what its package managers wrote down: Debian's status file and the
metadata beside each Python package. It needs nothing but Python, so that a ``Dockerfile`` runs it inside the build:

    python sbom.py --name hedgerow-sidecar --dpkg /var/lib/dpkg/status --python SITE_PACKAGES
"""

from __future__ import annotations

import argparse
import email.parser
import hashlib
import json
import platform
import sys
import urllib.parse
import uuid
from collections.abc import Iterable
from pathlib import Path

Component = dict[str, object]


def debian_packages(status: Path, distribution: str = "debian") -> list[Component]:
    """The installed packages of a dpkg status file (deb-control syntax)."""
    found = []
    for paragraph in status.read_text(encoding="utf-8").split("\n\n"):
        fields = email.parser.HeaderParser().parsestr(paragraph)
        if not str(fields.get("Status", "")).endswith(" installed"):
            continue
        name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
        found.append(
            {
                "type": "library",
                "bom-ref": f"deb:{name}:{architecture}",
                "name": name,
                "version": version,
                "purl": f"pkg:deb/{distribution}/{_quote(name)}@{_quote(version)}?arch={architecture}",
            }
        )
    return found


def python_packages(directory: Path) -> list[Component]:
    """The packages whose metadata (PEP 376 ``dist-info``) lies in a directory."""
    found = []
    for metadata in directory.glob("*.dist-info/METADATA"):
        fields = email.parser.HeaderParser().parsestr(metadata.read_text(encoding="utf-8"))
        name = str(fields["Name"]).lower().replace("_", "-").replace(".", "-")
        component: Component = {
            "type": "library",
            "bom-ref": f"pypi:{name}",
            "name": name,
            "version": fields["Version"],
            "purl": f"pkg:pypi/{_quote(name)}@{_quote(fields['Version'])}",
        }
        licence = fields.get("License-Expression")
        if licence:
            component["licenses"] = [{"expression": licence}]
        found.append(component)
    return found


def interpreter() -> list[Component]:
    """The Python that runs this, for images where no package manager knows of it."""
    version = platform.python_version()
    return [
        {
            "type": "platform",
            "bom-ref": "generic:python",
            "name": "python",
            "version": version,
            "licenses": [{"expression": "Python-2.0.1"}],
            "cpe": f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*",
            "purl": f"pkg:generic/python@{version}",
        }
    ]


def document(name: str, components: Iterable[Component]) -> bytes:
    """The bill of an image called ``name``."""
    listed = sorted(components, key=lambda component: str(component["bom-ref"]))
    content = hashlib.sha256(json.dumps([name, listed], sort_keys=True).encode()).digest()
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=content[:16], version=5)}",
        "version": 1,
        "metadata": {"component": {"type": "container", "bom-ref": name, "name": name}},
        "components": listed,
    }
    return json.dumps(bill, indent=1).encode() + b"\n"


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe="-._~")


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a CycloneDX bill of materials to standard output.")
    parser.add_argument("--name", required=True, help="the image's name")
    parser.add_argument("--dpkg", type=Path, required=True, help="Debian's status file")
    parser.add_argument("--python", type=Path, required=True, help="a directory with dist-info directories")
    parser.add_argument("--interpreter", action="store_true", help="list the Python that runs this, too")
    arguments = parser.parse_args()
    components = debian_packages(arguments.dpkg) + python_packages(arguments.python)
    if arguments.interpreter:
        components += interpreter()
    if not components:
        print("error: nothing found to list", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(document(arguments.name, components))
    return 0


if __name__ == "__main__":
    sys.exit(main())
