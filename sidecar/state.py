"""The state directory: what a sidecar must still know after a restart, on disk.

The governing rules:

1. A file is complete or absent: written beside, synced, renamed, the directory synced.
2. Nobody else reads or writes here: the directory is 0700, files are 0600, links are not followed, and a second sidecar
   that is pointed at the same directory is refused.
3. While another process may write here (:mod:`sidecar.takeover`) we do not; what we would have written is kept for
   the case that it does not stay.
4. What is read is not trusted because it lies here. A damaged file is a :class:`~sidecar.errors.StateError`; what it
   says (a chain, a signature) is verified by the part that asked for it.

All calls block; callers on the event loop run the writing ones in a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from sidecar.errors import StateBusy, StateError

SVID = "svid.pem"
TRUST_BUNDLE = "trust-bundle.pem"
INSTANCE = "instance.json"
SNAPSHOT = "snapshot.bin"
DIRECTORY = "directory.bin"
NAMES = "names.bin"
LOCK = "lock"

MAX_STATE_BYTES = 16 * 1024 * 1024

_MAGIC = b"hedgerow-state 1 "


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """Whose state this is: a directory that moved to another instance is not used."""

    instance: str
    workload: str
    spiffe_id: str


class StateDirectory:
    """An open, locked state directory.

    :param path: made when it does not exist
    :param lock: a descriptor of its locked lock, from the process that had it before
    :raises StateError: when it can not be made or is not ours alone; StateBusy when another process holds it
    """

    def __init__(self, path: Path, lock: int = -1) -> None:
        self.path = path
        self._lock = lock
        self._writing = threading.Lock()
        self._suspended = False
        self._abandoned = False
        self._kept: dict[str, bytes | None] = {}  # what to write when we stay; None: to remove
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise StateError(f"state_dir: {path}: {error.strerror}; name a directory that this user can make") from None
        try:
            self._own()
            if lock < 0:
                self._lock = self._take_lock()
        except BaseException:
            os.close(self._directory)
            raise

    def close(self) -> None:
        """Let another process have it."""
        if self._lock >= 0:
            os.close(self._lock)
            os.close(self._directory)
            self._lock = self._directory = -1

    def _own(self) -> None:
        status = os.fstat(self._directory)
        if status.st_uid != os.geteuid():
            raise StateError(
                f"state_dir: {self.path} belongs to user {status.st_uid} and this is user {os.geteuid()}; "
                f"run `chown {os.geteuid()} {self.path}` or name another directory"
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.fchmod(self._directory, 0o700)

    def _take_lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            lock = os.open(LOCK, flags, 0o600, dir_fd=self._directory)
        except OSError as error:
            raise StateError(f"state_dir: {self.path / LOCK}: {error.strerror}; make it writable") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise StateBusy(
                f"state_dir: {self.path} is in use by another sidecar; give every instance its own directory"
            ) from None
        return lock

    # Handing over ----------------------------------------------------------------------------------------------------

    @property
    def lock(self) -> int:
        """The descriptor of the lock, which whoever gets a copy of holds as we do."""
        return self._lock

    def short_path(self, name: str) -> str:
        """A path of ``name`` that is short enough for a socket's address, good as long as the directory is open."""
        return f"/proc/self/fd/{self._directory}/{name}"

    def suspend(self) -> None:
        """Write nothing from here on; waits for what is being written."""
        with self._writing:
            self._suspended = True

    def resume(self) -> None:
        """Write again, first of all what was held back.

        :raises StateError: when that failed
        """
        with self._writing:
            self._suspended = False
            kept, self._kept = self._kept, {}
            for name, data in kept.items():
                self._write(name, data) if data is not None else self._remove(name)

    def abandon(self) -> None:
        """Never write again: the directory is another's."""
        with self._writing:
            self._abandoned = True
            self._kept = {}

    @property
    def abandoned(self) -> bool:
        """Whether the directory is another's, so that nothing of ours is written any more."""
        return self._abandoned

    def release(self, name: str) -> None:
        """Write one file that was held back, though the rest is not: whoever takes over is to find it.

        :raises StateError: when that failed
        """
        with self._writing:
            data = self._kept.pop(name, None)
            if data is not None:
                self._write(name, data)

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Changes whenever a file is replaced; None when there is none."""
        try:
            status = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    # Files ------------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, None when there is none.

        :raises StateError: when it is a link, belongs to or is open to others, is too long or can not be read
        """
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refused(name, f"can not be opened ({error.strerror})") from None
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise self._refused(name, "is not a regular file")
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise self._refused(name, "was open to other users, so what it says may be theirs")
            with open(file, "rb", closefd=False) as opened:
                data = opened.read(MAX_STATE_BYTES + 1)
        except OSError as error:
            raise self._refused(name, f"can not be read ({error.strerror})") from None
        finally:
            os.close(file)
        if len(data) > MAX_STATE_BYTES:
            raise self._refused(name, f"is longer than {MAX_STATE_BYTES} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Replace a file; when this returns it survives a power cut.

        :raises StateError: when that failed; the old file is then still there
        """
        with self._writing:
            if self._suspended or self._abandoned:
                self._keep(name, data)
            else:
                self._write(name, data)

    def _keep(self, name: str, data: bytes | None) -> None:
        if not self._abandoned:
            self._kept[name] = data

    def _write(self, name: str, data: bytes) -> None:
        beside = f".{name}.new"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(beside, flags, 0o600, dir_fd=self._directory)
            with open(file, "wb") as opened:
                os.fchmod(file, 0o600)
                opened.write(data)
                opened.flush()
                os.fsync(file)
            os.replace(beside, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.fsync(self._directory)
        except OSError as error:
            raise StateError(
                f"{self.path / name} can not be written: {error.strerror}; make room and see that it is writable"
            ) from None

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        :raises StateError: when it is there and can not be removed
        """
        with self._writing:
            if self._suspended or self._abandoned:
                self._keep(name, None)
            else:
                self._remove(name)

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(f"{self.path / name} can not be removed: {error.strerror}") from None

    # What is in them --------------------------------------------------------------------------------------------------

    def read_checked(self, name: str) -> bytes | None:
        """What :meth:`write_checked` wrote.

        :raises StateError: also when the file is not what was written
        """
        data = self.read(name)
        if data is None:
            return None
        header, newline, payload = data.partition(b"\n")
        if not newline or header != _header(name, payload):
            raise self._refused(name, "is damaged (its checksum does not match)")
        return payload

    def write_checked(self, name: str, payload: bytes) -> None:
        """Replace a file of a form without redundancy of its own, with a checksum against damage (not forgery)."""
        self.write(name, _header(name, payload) + b"\n" + payload)

    def read_instance(self) -> StoredInstance | None:
        """Whose state this is, None at the first start.

        :raises StateError: when the file is damaged
        """
        data = self.read(INSTANCE)
        if data is None:
            return None
        try:
            match json.loads(data):
                case {"instance": str(instance), "workload": str(workload), "spiffe_id": str(spiffe_id), **rest} if (
                    not rest
                ):
                    return StoredInstance(instance, workload, spiffe_id)
        except (ValueError, RecursionError):
            pass
        raise self._refused(INSTANCE, "is damaged (not what a sidecar writes)")

    def write_instance(self, stored: StoredInstance) -> None:
        """:raises StateError: when it can not be written"""
        document = {"instance": stored.instance, "workload": stored.workload, "spiffe_id": stored.spiffe_id}
        self.write(INSTANCE, json.dumps(document, indent=2).encode() + b"\n")

    def _refused(self, name: str, problem: str) -> StateError:
        return StateError(f"{self.path / name} {problem}; it is not used. Remove it to have a new one made")


def _header(name: str, payload: bytes) -> bytes:
    return _MAGIC + name.encode() + b" " + hashlib.sha256(payload).hexdigest().encode()
