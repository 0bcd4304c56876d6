"""What pip, npm and apt are told on this machine reaches the build, and what is no address of a registry does not."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from e2e.dockerfile import registries


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose pip is set up by one file alone."""
    for name in ("PIP_INDEX_URL", "PIP_CERT", "PIP_DEFAULT_TIMEOUT", "PIP_TIMEOUT", "PIP_FIND_LINKS", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.delenv("NPM_CONFIG_USERCONFIG", raising=False)
    (tmp_path / "secrets").mkdir()
    return tmp_path


def address(host: str) -> str:
    """Of a registry that nobody has (RFC 2606)."""
    return f"https://{host}.example"


def pip_settings(secrets: dict[str, Path]) -> dict[str, str]:
    file = configparser.RawConfigParser()
    file.read(secrets["pip"])
    return dict(file["global"])


def test_pips_addresses_are_told_and_folders_of_the_machine_are_not(machine: Path) -> None:
    index = address("user:p%%ss@index")
    text = f"[global]\nindex-url = {index}\nfind-links = /wheels\ncache-dir = /cache\n"
    (machine / "pip.conf").write_text(text)

    settings = pip_settings(registries.secrets(machine / "secrets"))

    assert settings["index-url"] == index
    assert not {"find-links", "cache-dir"} & settings.keys()


def test_a_variable_is_stronger_than_a_file(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "pip.conf").write_text(f"[global]\nindex-url = {address('a')}\n[install]\nindex-url = {address('b')}\n")

    assert pip_settings(registries.secrets(machine / "secrets"))["index-url"] == address("b")
    monkeypatch.setenv("PIP_INDEX_URL", address("c"))
    assert pip_settings(registries.secrets(machine / "secrets"))["index-url"] == address("c")


def test_the_authorities_that_pip_believes_are_told(machine: Path) -> None:
    (machine / "own.pem").write_text("certificates")
    (machine / "pip.conf").write_text(f"[global]\ncert = {machine / 'own.pem'}\n")

    assert registries.secrets(machine / "secrets")["certificates"] == machine / "own.pem"


def test_npms_settings_are_told_where_there_are_any(machine: Path) -> None:
    (machine / "pip.conf").write_text("")

    assert "npm" not in registries.secrets(machine / "secrets")
    (machine / ".npmrc").write_text(f"registry={address('npm')}\n")
    assert registries.secrets(machine / "secrets")["npm"] == machine / ".npmrc"


def test_what_is_written_down_for_the_build_is_nobody_elses_to_read(machine: Path) -> None:
    (machine / "pip.conf").write_text("")

    secrets = registries.secrets(machine / "secrets")

    for name in ("pip", "apt"):
        assert secrets[name].stat().st_mode & 0o077 == 0
    assert 'Acquire::Retries "4";' in secrets["apt"].read_text()
