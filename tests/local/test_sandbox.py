"""A sandbox is gone with the process that made it, however that ends, and takes everything in it along."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hedgerow.local import views
from hedgerow.local.errors import SandboxUnavailable
from hedgerow.local.sandbox import Confinement, probe, run_in_sandbox
from tests.local.traces import changes, traces

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces as root")

#: Starts a sandbox around ``sh -c SCRIPT``. The script's ``$1`` is a scratch directory.
FRONT = """
import sys
from hedgerow.local.sandbox import Confinement, run_in_sandbox
sys.exit(run_in_sandbox(["sh", "-c", sys.argv[2], "sh", *sys.argv[3:]], kind=Confinement(sys.argv[1])))
"""

#: Makes one of everything that could be left behind, telling after each stage what is there.
FURNISH = """
echo started
ip netns add leftover; ip link add leftover0 type veth peer name eth0 netns leftover
echo namespaces
nft add table inet leftover; nsenter --net=/run/netns/leftover nft add table inet leftover
mkdir /run/hedgerow/files; echo secret > /run/hedgerow/files/key
echo rules
nsenter --net=/run/netns/leftover setsid sleep 1000 &
setsid setpriv --reuid 10001 sh -c 'trap "" TERM INT HUP; while :; do sleep 1000; done' &
sleep 1000 &
echo processes
wait
"""


def until(condition: Callable[[], object], what: str, deadline: float = 15.0) -> None:
    """Look at a condition until it holds; ``deadline`` in seconds."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about in {deadline} s"
        time.sleep(0.02)


class Front:
    """A front process, and a way to find everything that came from it: a mark in the environment."""

    def __init__(self, script: str, *arguments: str, kind: str = "root", prefix: tuple[str, ...] = ()) -> None:
        self.mark = f"HEDGEROW_TEST_MARK={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", FRONT, kind, script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, name: value},
            start_new_session=True,
        )

    def read_until(self, line: str) -> None:
        assert self.process.stdout is not None
        for got in self.process.stdout:
            if got.strip() == line:
                return
        assert self.process.stderr is not None
        pytest.fail(f"the sandbox ended before it said {line!r}: {self.process.stderr.read()}")

    def descendants(self) -> list[str]:
        """The command lines of every process that carries the mark, zombies aside."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (directory / "environ").read_bytes():
                    found.append((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def front(script: str, *arguments: str, kind: str = "root", prefix: tuple[str, ...] = ()) -> Iterator[Front]:
    made = Front(script, *arguments, kind=kind, prefix=prefix)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files of what is started go, and nobody else's: other tests may run beside this one.

    Every user can reach it, which pytest's own does not allow.
    """
    with tempfile.TemporaryDirectory(prefix="sandbox-") as name:
        Path(name).chmod(0o777)
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


def everything(temporary: Path) -> dict[str, str]:
    return {**traces(), "temporary": " ".join(sorted(str(path) for path in temporary.iterdir()))}


@needs_root
@pytest.mark.parametrize("stage", ["", "started", "namespaces", "rules", "processes"])
def test_kill_9_of_the_front_leaves_nothing(stage: str, temporary: Path) -> None:
    before = everything(temporary)
    with front(FURNISH) as made:
        if stage:
            made.read_until(stage)
        made.process.kill()
        made.process.wait()
        until(lambda: not made.descendants(), "the end of every process of the sandbox")
    assert changes(before, everything(temporary)) == {}


@needs_root
def test_there_was_something_to_leave() -> None:
    """The test above could not fail if the processes were not found by their mark while they run."""
    with front(FURNISH) as made:
        made.read_until("processes")
        until(lambda: len(made.descendants()) >= 6, "front, keeper, init, shell and three programs")
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait() == 128 + signal.SIGTERM
        until(lambda: not made.descendants(), "the end of every process of the sandbox")


@needs_root
@pytest.mark.parametrize("victim", ["keeper", "init"])
def test_kill_9_of_a_link_of_the_chain_ends_all_of_it(victim: str) -> None:
    with front(FURNISH) as made:
        made.read_until("processes")
        keeper = children(made.process.pid)[0]
        os.kill(keeper if victim == "keeper" else children(keeper)[0], signal.SIGKILL)
        assert made.process.wait(15) == 128 + signal.SIGKILL
        until(lambda: not made.descendants(), "the end of every process of the sandbox")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@needs_root
def test_ctrl_c_reaches_the_program_once_and_ends_everything() -> None:
    script = "trap 'echo interrupted' INT; trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    mark = uuid.uuid4().hex
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(
            sys.executable,
            [sys.executable, "-c", FRONT, "root", script],
            {**os.environ, "HEDGEROW_TEST_MARK": mark},
        )
    try:
        read_terminal(terminal, b"ready")
        os.write(terminal, b"\x03")
        said = read_terminal(terminal, b"interrupted")
        os.kill(pid, signal.SIGTERM)
        said += read_terminal(terminal, b"")
        assert said.count(b"interrupted") == 1
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    finally:
        os.close(terminal)


def read_terminal(terminal: int, wanted: bytes) -> bytes:
    """Read until ``wanted`` was written; until the end when it is empty."""
    said = b""
    while not wanted or wanted not in said:
        try:
            got = os.read(terminal, 4096)
        except OSError:  # EIO: the last process with this terminal is gone
            got = b""
        if not got:
            break
        said += got
    assert wanted in said
    return said


@needs_root
def test_the_third_interrupt_ends_a_program_that_ignores_them() -> None:
    with front("trap '' INT; echo ready; while :; do sleep 1; done") as made:
        made.read_until("ready")
        for _ in range(3):
            made.process.send_signal(signal.SIGINT)
            # Signals of one number merge while one waits: give each its own arrival.
            until(lambda: not pending(made.process.pid, signal.SIGINT), "the front to take the signal")
        assert made.process.wait(15) == 128 + signal.SIGKILL
        until(lambda: not made.descendants(), "the end of every process of the sandbox")


def pending(pid: int, number: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return any(
        int(line.split()[1], 16) >> (number - 1) & 1
        for line in status.splitlines()
        if line.startswith(("SigPnd", "ShdPnd"))
    )


@needs_root
@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)])
def test_the_exit_code_is_the_programs(script: str, code: int) -> None:
    assert run_in_sandbox(["sh", "-c", script]) == code


@needs_root
def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(SandboxUnavailable, match="no-such-program"):
        run_in_sandbox(["no-such-program"])


@needs_root
def test_a_sandbox_has_its_own_processes_network_and_run(tmp_path: Path) -> None:
    script = """
    ps -e -o pid= | wc -l >> $1; ip -br link | wc -l >> $1; ls /run/netns | wc -l >> $1; cat /run/hedgerow/sandbox >> $1
    """
    report = tmp_path / "report"
    assert run_in_sandbox(["sh", "-c", script, "sh", str(report)]) == 0
    processes, links, namespaces, kind = report.read_text().split()
    assert int(processes) <= 4  # init, sh, ps, wc
    assert (links, namespaces, kind) == ("1", "0", "root")


@needs_root
def test_orphans_do_not_stay_as_zombies() -> None:
    script = """
    for i in 1 2 3 4 5 6 7 8; do sh -c 'true &' ; done
    n=0; while ps -e -o stat= | grep -q Z; do n=$((n+1)); [ $n -lt 100 ] || exit 1; sleep 0.05; done
    """
    assert run_in_sandbox(["sh", "-c", script]) == 0


@needs_root
def test_descriptors_are_passed_and_others_are_not() -> None:
    read, write = os.pipe()
    secret = os.open("/dev/null", os.O_RDONLY)
    try:
        script = f"echo given >/proc/self/fd/{write}; [ ! -e /proc/self/fd/{secret} ]"
        assert run_in_sandbox(["sh", "-c", script], pass_fds=[write]) == 0
        os.close(write)
        assert os.read(read, 100) == b"given\n"
    finally:
        os.close(read)
        os.close(secret)


@needs_root
def test_root_without_capabilities_is_told_what_is_not_permitted() -> None:
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", sys.executable, "-c", FRONT, "root", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Operation not permitted" in done.stderr
    assert "--explicit" in done.stderr


@needs_root
def test_probe_finds_root_and_leaves_nothing(temporary: Path) -> None:
    before = everything(temporary)
    assert probe().confinement is Confinement.ROOT
    assert changes(before, everything(temporary)) == {}


# --- without root


def as_nobody(*argv: str) -> tuple[str, ...]:
    """A command line that runs another as an ordinary user who can run this interpreter."""
    script = views.infrastructure_script(other_users=True)
    become = 'exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'
    return ("unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", f"{script}\n{become}", "sh", *argv)


@needs_root
def test_an_ordinary_user_gets_a_sandbox_with_pods_and_rules(temporary: Path) -> None:
    script = """
    set -e
    ip netns add pod; ip link add pod0 type veth peer name eth0 netns pod
    nsenter --net=/run/netns/pod nft add table inet hedgerow
    nsenter --net=/run/netns/pod nft list ruleset | grep -q hedgerow
    cat /proc/self/uid_map /run/hedgerow/sandbox
    """
    before = everything(temporary)
    done = subprocess.run(
        as_nobody(sys.executable, "-c", FRONT, "user-namespace", script), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "65534", "1", "user-namespace"]
    assert changes(before, everything(temporary)) == {}


@needs_root
def test_kill_9_leaves_nothing_of_an_ordinary_users_sandbox(temporary: Path) -> None:
    before = everything(temporary)
    furnish = FURNISH.replace("setpriv --reuid 10001 ", "")
    with front(furnish, kind="user-namespace", prefix=as_nobody()) as made:
        made.read_until("processes")
        made.process.kill()  # setpriv and unshare became the front: it is the same process
        made.process.wait()
        until(lambda: not made.descendants(), "the end of every process of the sandbox")
    assert changes(before, everything(temporary)) == {}


@needs_root
def test_probe_says_why_nothing_is_permitted() -> None:
    """In a user namespace that may have no further ones, for a program without capabilities, nothing is left to try."""
    ask = "from hedgerow.local.sandbox import probe; found = probe(); print(found.confinement); print(found.why_not)"
    script = f"""
    echo 0 > /proc/sys/user/max_user_namespaces
    exec setpriv --bounding-set -all --inh-caps -all {sys.executable} -c '{ask}'
    """
    done = subprocess.run(
        as_nobody(sys.executable, "-c", FRONT, "user-namespace", script), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    kind, *why = done.stdout.strip().splitlines()
    assert kind == "none"
    assert len(why) == 2
    assert all("Operation not permitted" in line or "No space left" in line for line in why), why
