"""The authority on disk."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from certs.ca import CertificateAuthority
from certs.ca_files import AUTHORITY_FILE, load_authority, save_authority, write_private
from certs.errors import AuthorityError

AUTHORITY = CertificateAuthority.create("hedgerow.local", time.time())


def test_an_authority_is_saved_for_its_owner_alone(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "ca"
    old = os.umask(0)
    try:
        save_authority(directory, AUTHORITY)
    finally:
        os.umask(old)
    assert stat.S_IMODE((directory / AUTHORITY_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    loaded = load_authority(directory)
    assert loaded is not None
    assert loaded.dump() == AUTHORITY.dump()
    assert [path.name for path in directory.iterdir()] == [AUTHORITY_FILE]


def test_no_authority_yet_is_no_error(tmp_path: Path) -> None:
    assert load_authority(tmp_path) is None
    assert load_authority(tmp_path / "nowhere") is None


def test_saving_replaces_whole_and_survives_a_killed_writer(tmp_path: Path) -> None:
    save_authority(tmp_path, AUTHORITY)
    (tmp_path / f".{AUTHORITY_FILE}.new").write_text("half of a")
    renewed = AUTHORITY.renew_issuing(time.time())
    save_authority(tmp_path, renewed)
    loaded = load_authority(tmp_path)
    assert loaded is not None
    assert loaded.dump() == renewed.dump()
    assert [path.name for path in tmp_path.iterdir()] == [AUTHORITY_FILE]


def test_a_failed_save_leaves_the_old_one(tmp_path: Path) -> None:
    save_authority(tmp_path, AUTHORITY)
    (tmp_path / f".{AUTHORITY_FILE}.new").mkdir()  # so that nothing can be written there
    with pytest.raises(AuthorityError, match="cannot be written"):
        save_authority(tmp_path, AUTHORITY.renew_issuing(time.time()))
    loaded = load_authority(tmp_path)
    assert loaded is not None
    assert loaded.dump() == AUTHORITY.dump()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_an_authority_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    save_authority(tmp_path, AUTHORITY)
    (tmp_path / AUTHORITY_FILE).chmod(mode)
    with pytest.raises(AuthorityError, match="chmod 600"):
        load_authority(tmp_path)


def test_a_link_or_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    save_authority(tmp_path / "real", AUTHORITY)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / AUTHORITY_FILE).symlink_to(tmp_path / "real" / AUTHORITY_FILE)
    with pytest.raises(AuthorityError, match="cannot be read"):
        load_authority(linked)
    (tmp_path / "other" / AUTHORITY_FILE).mkdir(parents=True)
    with pytest.raises(AuthorityError, match="not a regular file"):
        load_authority(tmp_path / "other")


def test_a_damaged_or_huge_file_is_refused_by_name(tmp_path: Path) -> None:
    write_private(tmp_path / AUTHORITY_FILE, AUTHORITY.dump()[:500])
    with pytest.raises(AuthorityError, match=AUTHORITY_FILE):
        load_authority(tmp_path)
    write_private(tmp_path / AUTHORITY_FILE, b"#" * 2_000_000)
    with pytest.raises(AuthorityError, match="at most 1048576"):
        load_authority(tmp_path)
