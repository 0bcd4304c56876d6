"""A place that the kernel clears away: private process, mount, network, IPC and host-name namespaces.

Everything a local mesh makes (processes, network namespaces, nft rules, state) lives in one sandbox, and the sandbox
lives exactly as long as the process that called :func:`run_in_sandbox`. The governing rules:

1. Each process of the chain *front → keeper → init* is killed by the kernel when the one before it ends, however that
   comes about.
2. *init* is process 1 of the process namespace: when it ends, the kernel kills whatever else runs there, and with the
   last process go the mounts, the network namespaces and their rules. Nobody has to clean up, so nobody can forget to.
3. The sandbox has no way to the host's network. A front process that wants one hands down open sockets
   (:mod:`hedgerow.local.host_sockets`).

Real root gets no user namespace, so that programs may run as other users (PostgreSQL, nginx). Anybody else gets one
with their own user id alone in it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from hedgerow.local import kernel
from hedgerow.local.errors import SandboxUnavailable

#: A private tmpfs inside every sandbox; :mod:`hedgerow.local.mesh` keeps all its state here.
STATE = Path("/run/hedgerow")
_MARKER = STATE / "sandbox"

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
#: This many interrupts end the sandbox at once, whatever the program in it does with them.
_IMPATIENT = 3

_NAMESPACES = os.CLONE_NEWPID | os.CLONE_NEWNS | os.CLONE_NEWNET | os.CLONE_NEWIPC | os.CLONE_NEWUTS

#: What a mesh does in its sandbox, tried once, small.
_REHEARSAL = """
set -e
ip link add rehearsal type bridge
ip netns add rehearsal
ip link add rehearsal-pod type veth peer name eth0 netns rehearsal
nsenter --net=/run/netns/rehearsal nft -f - <<'RULES'
table inet rehearsal {
  chain output {
    type nat hook output priority -100; policy accept;
    meta mark 0x1 return
    meta nfproto ipv4 meta l4proto tcp redirect to :15001
  }
}
RULES
unshare --mount --propagation private sh -e -c '
  exec 9</run/netns/rehearsal
  mount -t tmpfs tmpfs /run
  nsenter --net=/proc/$$/fd/9 setpriv --bounding-set -all --inh-caps -all --ambient-caps -all --no-new-privs true
'
"""


class Confinement(StrEnum):
    """How a mesh can be kept apart on this machine."""

    ROOT = "root"
    USER = "user-namespace"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Permitted:
    """What :func:`probe` found.

    :param why_not: why it is no better, empty for ``ROOT``; one reason a line
    """

    confinement: Confinement
    why_not: str = ""


def is_sandboxed() -> bool:
    """Whether this process runs in a sandbox made by :func:`run_in_sandbox`."""
    return _MARKER.is_file()


def confinement() -> Confinement:
    """The kind of sandbox that this process is in."""
    return Confinement(_MARKER.read_text()) if is_sandboxed() else Confinement.NONE


def probe() -> Permitted:
    """Find out by trying, in this order: root's namespaces, a user namespace, neither. Leaves nothing behind."""
    missing = [
        tool for tool in ("ip", "nft", "nsenter", "unshare", "setpriv") if shutil.which(tool, path=_path()) is None
    ]
    if missing:
        return Permitted(
            Confinement.NONE, f"not installed: {', '.join(missing)} (Debian packages iproute2, nftables, util-linux)"
        )
    reasons = []
    for kind in (Confinement.ROOT, Confinement.USER):
        if kind is Confinement.ROOT and os.geteuid() != 0:
            reasons.append("not started as root")
            continue
        reason = _rehearse(kind)
        if not reason:
            return Permitted(kind, "\n".join(reasons))
        reasons.append(f"{kind}: {reason}")
    return Permitted(Confinement.NONE, "\n".join(reasons))


def run_in_sandbox(
    argv: Sequence[str],
    *,
    kind: Confinement = Confinement.ROOT,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    beside: Callable[[], None] | None = None,
) -> int:
    """Run a program in a new sandbox and wait for it.

    Signals that this process gets are passed on to the program; the third interrupt kills it. Call it from the main
    thread: the sandbox dies with the thread that made it.

    :param kind: ``ROOT`` or ``USER``; take the one that :func:`probe` names
    :param env: the program's environment; this process' own when None
    :param pass_fds: descriptors that the program inherits under the same numbers
    :param beside: called once in this process, after the sandbox is made; must not block
    :returns: the program's exit code, 128 + n when signal n ended it
    :raises SandboxUnavailable: when the sandbox could not be made, or the program could not be started
    """
    return _run(argv, kind, env, pass_fds, beside, [])


def _run(
    argv: Sequence[str],
    kind: Confinement,
    env: Mapping[str, str] | None,
    pass_fds: Sequence[int],
    beside: Callable[[], None] | None,
    passed: list[int],
) -> int:
    """:param passed: gets the signals that came meanwhile"""
    sys.stdout.flush()
    sys.stderr.flush()
    environment = dict(os.environ if env is None else env)
    environment["PATH"] = _path(environment.get("PATH"))
    watched = {*_FORWARDED, signal.SIGCHLD}
    before = {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, watched)}
    report_read, report_write = os.pipe()
    alive_read, alive_write = os.pipe()  # rule 1: its end of file is "the front is gone"
    try:
        keeper = os.fork()
        if keeper == 0:
            os.close(report_read)
            os.close(alive_write)
            _in_child(report_write, lambda: _keep(argv, kind, environment, pass_fds, alive_read, report_write, before))
        os.close(report_write)
        os.close(alive_read)
        report_write = alive_read = -1
        if beside is not None:
            beside()
        code = _attend(keeper, passed)
        with os.fdopen(report_read, "rb") as report:
            report_read = -1
            reason = report.read().decode(errors="replace").strip()
        if reason:
            raise SandboxUnavailable(f"no sandbox ({kind}): {reason}", "run `hedgerow demo --explicit`: it needs none")
        return code
    finally:
        for descriptor in (report_read, report_write, alive_read, alive_write):
            if descriptor >= 0:
                os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _path(path: str | None = None) -> str:
    """``PATH`` with the directories where ip and nft live, which ordinary users often lack."""
    entries = (path if path is not None else os.environ.get("PATH", os.defpath)).split(os.pathsep)
    return os.pathsep.join([*entries, *(extra for extra in ("/usr/sbin", "/sbin") if extra not in entries)])


def _rehearse(kind: Confinement) -> str:
    """Try everything a mesh needs; the answer is why it failed, empty when it did not.

    :raises KeyboardInterrupt: when somebody wanted it to end, which says nothing of what is permitted
    """
    read, write = os.pipe()
    passed: list[int] = []
    try:
        argv = ["sh", "-c", f"exec >/proc/self/fd/{write} 2>&1; {_REHEARSAL}"]
        code, problem = _run(argv, kind, None, [write], None, passed), ""
    except SandboxUnavailable as error:
        code, problem = 0, error.message
    finally:
        os.close(write)
        with os.fdopen(read, "rb") as output:
            said = output.read().decode(errors="replace").strip()
    if passed:
        raise KeyboardInterrupt
    if problem:
        return problem
    return "" if code == 0 else said or f"the rehearsal ended with {code}"


def _in_child(report: int, body: Callable[[], int]) -> NoReturn:
    """Run the rest of a forked process' life: never return into the caller's frames, tell failures by ``report``."""
    code = 70  # EX_SOFTWARE of sysexits.h
    try:
        code = body()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        os.write(report, f"{error.strerror or error}{where}\n".encode())
    except BaseException:
        os.write(report, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _keep(
    argv: Sequence[str],
    kind: Confinement,
    env: dict[str, str],
    pass_fds: Sequence[int],
    alive: int,
    report: int,
    mask: set[signal.Signals],
) -> int:
    """The keeper: make the namespaces, start init in them, pass signals on and its code back."""
    os.setsid()  # a Ctrl-C at the terminal reaches the front alone, which passes it on once
    kernel.die_with_parent()
    if kind is Confinement.USER:
        uid, gid = os.geteuid(), os.getegid()
        os.unshare(os.CLONE_NEWUSER | _NAMESPACES)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    else:
        os.unshare(_NAMESPACES)
    kernel.die_with_parent()
    _check_alive(alive)
    keeper_read, keeper_write = os.pipe()
    init = os.fork()
    if init == 0:
        os.close(keeper_write)
        _in_child(report, lambda: _init(argv, kind, env, pass_fds, keeper_read, report, mask))
    os.close(report)
    return _attend(init, [])


def _check_alive(alive: int) -> None:
    """Exit when the parent died before :func:`kernel.die_with_parent` was in force."""
    os.set_blocking(alive, False)
    try:
        os.read(alive, 1)
    except BlockingIOError:
        return
    os._exit(128 + signal.SIGKILL)


def _init(
    argv: Sequence[str],
    kind: Confinement,
    env: dict[str, str],
    pass_fds: Sequence[int],
    alive: int,
    report: int,
    mask: set[signal.Signals],
) -> int:
    """Process 1: furnish the namespaces, start the program, reap orphans until the program ends."""
    kernel.die_with_parent()
    _check_alive(alive)
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    kernel.mount("tmpfs", "/run", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755")
    for directory in (Path("/run/netns"), Path("/run/lock"), STATE):
        directory.mkdir(mode=0o755)
    _MARKER.write_text(kind)
    kernel.set_host_name("hedgerow")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True, env=env)
    program = os.fork()
    if program == 0:
        _in_child(report, lambda: _become(argv, env, pass_fds, mask))
    os.close(report)
    return _attend(program, [], reap=True)


def _become(argv: Sequence[str], env: dict[str, str], pass_fds: Sequence[int], mask: set[signal.Signals]) -> NoReturn:
    for descriptor in pass_fds:
        os.set_inheritable(descriptor, True)
    for number in _FORWARDED:  # as the program will have them: no handler of ours is to take what waits
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        os.execvpe(argv[0], list(argv), env)  # noqa: S606 - becoming the program is the purpose
    except OSError as error:
        raise OSError(error.errno, error.strerror, argv[0]) from None


def _attend(child: int, passed: list[int], *, reap: bool = False) -> int:
    """Wait for ``child`` and pass signals on to it.

    :param passed: gets those signals, also what came too late for the child
    :param reap: reap every other child too, as process 1 must
    :returns: its exit code, 128 + n when signal n ended it
    """
    while True:
        # Collect before waiting: one SIGCHLD may stand for several children, or have come before this call.
        while True:
            try:
                pid, status = os.waitpid(-1 if reap else child, os.WNOHANG)
            except ChildProcessError:
                return 128 + signal.SIGKILL
            if pid == 0:
                break
            if pid == child:
                while (late := signal.sigtimedwait(_FORWARDED, 0)) is not None:
                    passed.append(late.si_signo)
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
        received = signal.sigwait({*_FORWARDED, signal.SIGCHLD})
        if received in _FORWARDED:
            passed.append(received)
            os.kill(child, signal.SIGKILL if passed.count(signal.SIGINT) >= _IMPATIENT else received)
