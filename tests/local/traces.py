"""What a mesh could leave on this machine: namespaces, links, rules, mounts, state."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path


def traces() -> dict[str, str]:
    """All of it, as it is now."""

    def said(*argv: str) -> str:
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    return {
        "namespaces": said("ip", "netns", "list"),
        "links": said("ip", "-br", "link"),
        "rules": said("nft", "list", "ruleset"),
        "mounts": Path("/proc/self/mounts").read_text(),
        "state": " ".join(sorted(str(path) for path in Path("/run").glob("hedgerow/*"))),
    }


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """What is otherwise than it was; empty when nothing was left.

    Of mounts only what is new: those of the machine outside, of which a sandbox has a copy, go with their mount point,
    whoever removes that.
    """
    mounts = set(now["mounts"].splitlines()) - set(before["mounts"].splitlines())
    changed = {name: found for name, found in now.items() if name != "mounts" and found != before[name]}
    return changed | ({"mounts": "\n".join(sorted(mounts))} if mounts else {})
