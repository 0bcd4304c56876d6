"""The state directory against damage, strangers and power cuts."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from sidecar.errors import StateBusy, StateError
from sidecar.state import INSTANCE, SNAPSHOT, StateDirectory, StoredInstance


@pytest.fixture
def state(tmp_path):
    directory = StateDirectory(tmp_path / "deep" / "state")
    yield directory
    directory.close()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_directory_and_files_are_ours_alone_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        state = StateDirectory(tmp_path / "state")
        state.write("a", b"1")
    finally:
        os.umask(old)
    assert mode(tmp_path / "state") == 0o700
    assert mode(tmp_path / "state" / "a") == 0o600
    state.close()


def test_an_open_directory_is_closed_to_others(tmp_path):
    (tmp_path / "state").mkdir(mode=0o755)
    StateDirectory(tmp_path / "state").close()
    assert mode(tmp_path / "state") == 0o700


def test_a_directory_of_another_user_is_refused(tmp_path):
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(path, 12345, 12345)
    with pytest.raises(StateError, match=r"belongs to user 12345.*chown"):
        StateDirectory(path)


def test_a_link_is_no_state_directory(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "real")
    with pytest.raises(StateError, match="state_dir"):
        StateDirectory(tmp_path / "state")


def test_a_file_is_no_state_directory(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="state_dir"):
        StateDirectory(tmp_path / "state")


def test_two_sidecars_can_not_share_a_directory(state):
    with pytest.raises(StateError, match="in use by another sidecar"):
        StateDirectory(state.path)
    state.close()
    StateDirectory(state.path).close()


def test_what_was_written_is_read_and_nothing_is_none(state):
    assert state.read("a") is None
    state.write("a", b"one")
    state.write("a", b"two")
    assert state.read("a") == b"two"
    state.remove("a")
    state.remove("a")
    assert state.read("a") is None


def test_a_failed_write_keeps_the_old_file_and_says_why(state, monkeypatch):
    state.write("a", b"old")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        with pytest.raises(StateError, match="No space left on device; make room"):
            state.write("a", b"new")
    assert state.read("a") == b"old"
    state.write("a", b"new")  # the left-over of the failure is no obstacle
    assert state.read("a") == b"new"


def test_a_half_written_file_of_a_crash_is_not_read(state):
    (state.path / ".a.new").write_bytes(b"half")
    assert state.read("a") is None


@pytest.mark.parametrize("permissions", [0o640, 0o604, 0o666, 0o620])
def test_a_file_that_others_could_reach_is_not_trusted(state, permissions):
    state.write("a", b"1")
    (state.path / "a").chmod(permissions)
    with pytest.raises(StateError, match=r"open to other users.*Remove it"):
        state.read("a")


def test_links_fifos_and_directories_are_not_files_of_ours(state, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"1")
    (state.path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(state.path / "fifo", 0o600)
    (state.path / "folder").mkdir(mode=0o700)
    for name in ("link", "fifo", "folder"):
        with pytest.raises(StateError, match=name):
            state.read(name)


def test_a_file_of_absurd_size_is_not_read(state, monkeypatch):
    monkeypatch.setattr("sidecar.state.MAX_STATE_BYTES", 10)
    state.write("a", b"x" * 11)
    with pytest.raises(StateError, match="longer than 10 bytes"):
        state.read("a")


def test_a_checked_file_that_was_damaged_is_refused(state):
    payload = bytes(range(256))
    state.write_checked(SNAPSHOT, payload)
    assert state.read_checked(SNAPSHOT) == payload
    good = state.read(SNAPSHOT)
    for position in range(0, len(good), 7):
        damaged = bytearray(good)
        damaged[position] ^= 4
        state.write(SNAPSHOT, bytes(damaged))
        with pytest.raises(StateError, match="damaged"):
            state.read_checked(SNAPSHOT)
    for cut in (0, 1, 40, len(good) - 1):
        state.write(SNAPSHOT, good[:cut])
        with pytest.raises(StateError, match="damaged"):
            state.read_checked(SNAPSHOT)


def test_one_file_does_not_pass_for_another(state):
    state.write_checked("directory.bin", b"1")
    os.rename(state.path / "directory.bin", state.path / SNAPSHOT)
    with pytest.raises(StateError, match="damaged"):
        state.read_checked(SNAPSHOT)


def test_the_instance_is_read_as_written(state):
    stored = StoredInstance("cart-1", "shop/cart", "spiffe://t/x")
    assert state.read_instance() is None
    state.write_instance(stored)
    assert state.read_instance() == stored


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"instance": 1}', b"\xff", b"[" * 100_000, b'{"instance":"a","workload":"b"}'],
)
def test_a_damaged_instance_file_is_refused(state, content):
    state.write(INSTANCE, content)
    with pytest.raises(StateError, match=r"instance\.json is damaged"):
        state.read_instance()


# --- handing over


def test_the_lock_goes_from_hand_to_hand_and_is_never_free(state):
    copy = os.dup(state.lock)
    taken = StateDirectory(state.path, copy)
    state.close()
    with pytest.raises(StateBusy):
        StateDirectory(taken.path)
    taken.close()
    StateDirectory(taken.path).close()


def test_what_is_written_while_another_may_write_is_kept_for_the_case_that_it_leaves(state):
    state.write("a", b"old")
    state.write("b", b"old")
    state.suspend()
    state.write("a", b"newer")
    state.write("a", b"newest")
    state.remove("b")
    state.write_checked("c", b"data")
    assert (state.read("a"), state.read("b"), state.read("c")) == (b"old", b"old", None)
    state.resume()
    assert (state.read("a"), state.read("b"), state.read_checked("c")) == (b"newest", None, b"data")
    state.write("a", b"again")
    assert state.read("a") == b"again"


def test_what_was_given_away_is_never_written_again(state):
    state.write("a", b"old")
    state.suspend()
    state.write("a", b"ours")
    state.abandon()
    state.write("a", b"ours")
    state.remove("a")
    state.resume()
    state.write("a", b"ours")
    assert state.read("a") == b"old"


def test_suspending_waits_for_what_is_being_written(state):
    """Threads write while it is suspended: from then on nothing changes."""
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            state.write("a", str(number).encode())

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        while state.read("a") is None:
            pass
        state.suspend()
        before = state.stamp("a"), state.read("a")
        for _ in range(200):
            assert (state.stamp("a"), state.read("a")) == before
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)


def test_a_stamp_changes_with_the_file(state):
    assert state.stamp("a") is None
    state.write("a", b"1")
    first = state.stamp("a")
    assert state.stamp("a") == first
    state.write("a", b"1")
    assert state.stamp("a") != first
