"""What this machine knows of package registries, as secrets of the build: they reach its commands and no image."""

from __future__ import annotations

import ast
import configparser
import io
import os
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

from e2e.harness.errors import HarnessError

_SYSTEM = Path("/etc/ssl/certs/ca-certificates.crt")
#: Where pip may have a setting, the strongest last.
_SECTIONS = ("global", "download", "install", ":env:")
_PIP = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
_APT = re.compile(r"Acquire::(?:Retries|https?::(?:Proxy|Timeout)\S*) ")


def secrets(directory: Path) -> dict[str, Path]:
    """The Dockerfile's secrets by their ids.

    :param directory: where those are written that are no files yet, readable by nobody else
    :raises HarnessError: when pip cannot say how it is set up
    """
    pip = _pip_settings()
    found = {
        "pip": _write(directory / "pip.conf", _pip_file(pip)),
        "apt": _write(directory / "apt.conf", _apt_settings()),
    }
    npm = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    if npm.is_file():
        found["npm"] = npm
    for candidate in (pip.get("cert"), os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, _SYSTEM):
        if candidate and Path(candidate).is_file():
            found["certificates"] = Path(candidate)
            break
    return found


def _pip_settings() -> dict[str, str]:
    """pip's settings from all its files and variables, the strongest of each."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HarnessError(f"pip does not say how it is set up: {done.stderr.strip()}", "run: make setup")
    settings: dict[str, str] = {}
    ranks: dict[str, int] = {}
    for line in done.stdout.splitlines():
        where, _, value = line.partition("=")
        section, _, name = where.rpartition(".")
        rank = _SECTIONS.index(section) if section in _SECTIONS else -1
        if rank >= ranks.get(name, 0):
            settings[name] = str(ast.literal_eval(value))
            ranks[name] = rank
    return settings


def _pip_file(settings: dict[str, str]) -> str:
    file = configparser.RawConfigParser()
    file["global"] = {name: settings[name] for name in _PIP if name in settings}
    text = io.StringIO()
    file.write(text)
    return text.getvalue()


def _apt_settings() -> str:
    lines = ['Acquire::Retries "4";']
    if shutil.which("apt-config"):
        done = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=False)
        lines += [line for line in done.stdout.splitlines() if _APT.match(line)]
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path
