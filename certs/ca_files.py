"""The authority on disk: one PEM file, so that a crash can never leave a certificate beside another one's key.

The file is replaced whole (written beside, flushed, renamed, directory flushed) and can be read by its owner alone; one
that others can read is refused instead of used.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from certs.ca import CertificateAuthority
from certs.ca_format import REMEDY
from certs.errors import AuthorityError

AUTHORITY_FILE = "authority.pem"

_MAX_BYTES = 1024 * 1024


def save_authority(directory: Path, authority: CertificateAuthority) -> None:
    """Replace the authority in ``directory``, which is made (mode 0700) when it does not exist.

    :raises AuthorityError: when the file cannot be written; the old one is then still there
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(directory / AUTHORITY_FILE, authority.dump())
    except OSError as error:
        raise AuthorityError(f"{directory / AUTHORITY_FILE}: cannot be written: {error.strerror}") from None


def load_authority(directory: Path) -> CertificateAuthority | None:
    """The authority saved in ``directory``, or nothing when none ever was.

    :raises AuthorityError: when it cannot be read, others can read it, or it is damaged
    """
    path = directory / AUTHORITY_FILE
    pem = read_private(path)
    if pem is None:
        return None
    try:
        return CertificateAuthority.load(pem)
    except AuthorityError as error:
        raise AuthorityError(f"{path}: {error}") from None


def read_private(path: Path) -> bytes | None:
    """What :func:`write_private` wrote; nothing when there is no such file.

    :raises AuthorityError: when it cannot be read, or others can read it
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuthorityError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        _check_secret(path, os.fstat(descriptor))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise AuthorityError(f"{path}: cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _check_secret(path: Path, about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
        raise AuthorityError(f"{path}: not a regular file of ours; chown it to the controller's user")
    if about.st_mode & 0o077:
        raise AuthorityError(f"{path}: others can read it, so its keys are not secret; chmod 600 it if nobody did")
    if about.st_size > _MAX_BYTES:
        raise AuthorityError(f"{path}: {about.st_size} bytes long, at most {_MAX_BYTES} are read; {REMEDY}")


def write_private(path: Path, data: bytes) -> None:
    """Replace a file atomically; the new one can be read by its owner alone (0600), whatever the umask.

    :raises OSError: when it cannot be written; the old one is then still there
    """
    beside = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()  # of a writer that was killed
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
