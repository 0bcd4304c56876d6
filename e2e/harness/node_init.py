"""Process 1 of the node: furnishes its namespaces, starts programs in them, reaps orphans.

Started by :mod:`e2e.harness.node` inside fresh mount, process, host-name and cgroup namespaces. It reads commands from
standard input, a JSON object a line, and answers the same way on standard output:

- ``{"start": name, "argv": [...], "log": path}`` → ``{"started": name, "pid": pid}``;
- a program that ends by itself → ``{"ended": name, "code": code}``.

The end of standard input ends it, and with process 1 the kernel ends everything on the node and its mounts.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

#: The kubelet insists on these values. The machine keeps its own: files that say so are mounted over them, on the node.
_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def furnish(directory: Path, name: str) -> None:
    """Make the node's mounts.

    :param directory: the node's state: ``kubelet`` and ``log`` are in it
    """
    _mount("--make-rprivate", "/")
    _mount("-t", "sysfs", "sysfs", "/sys")
    _cgroups()
    _mount("-t", "tmpfs", "-o", "mode=755", "run", "/run")
    Path("/run/lock").mkdir()
    for inside, outside in (("/var/lib/kubelet", directory / "kubelet"), ("/var/log", directory / "log")):
        outside.mkdir(exist_ok=True)
        _mount("--bind", outside, inside)
    shown = Path("/run/sysctls")
    shown.mkdir()
    for setting, value in _SYSCTLS.items():
        path = Path("/proc/sys") / setting
        if path.exists():
            copy = shown / setting.replace("/", ".")
            copy.write_text(f"{value}\n")
            _mount("--bind", copy, path)
    _mount("--make-rshared", "/")
    subprocess.run(["hostname", name], check=True)


def _cgroups() -> None:
    """Mount the control groups as this namespace sees them; its root is the node's own group."""
    root = Path("/sys/fs/cgroup")
    hierarchies = [line.split(":", 2)[1] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    if hierarchies == [""]:  # version 2 alone
        _mount("-t", "cgroup2", "cgroup2", root)
        own = root / "init"  # a group with members may not hand controllers down
        own.mkdir(exist_ok=True)
        (own / "cgroup.procs").write_text(str(os.getpid()))
        for controller in (root / "cgroup.controllers").read_text().split():
            (root / "cgroup.subtree_control").write_text(f"+{controller}")
        return
    _mount("-t", "tmpfs", "-o", "mode=755", "cgroup", root)
    for controllers in hierarchies:
        directory = root / (controllers.removeprefix("name=") or "unified")
        directory.mkdir()
        if controllers:
            _mount("-t", "cgroup", "-o", controllers, "cgroup", directory)
        else:
            _mount("-t", "cgroup2", "cgroup2", directory)


class _Programs:
    """What runs on the node; the orphans of containers are reaped beside it."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._lock = threading.Lock()

    def start(self, name: str, argv: list[str], log: str) -> None:
        with self._lock, Path(log).open("ab") as output:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            self._names[process.pid] = name
        _say({"started": name, "pid": process.pid})

    def reap(self) -> None:
        while True:
            with self._lock:  # a program is known by its name before its end is seen
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    return
                name = self._names.pop(pid, "")
            if pid == 0:
                return
            if name:
                _say({"ended": name, "code": os.waitstatus_to_exitcode(status)})


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(directory: Path, name: str) -> int:
    furnish(directory, name)
    programs = _Programs()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    _say({"furnished": name})
    pending = b""
    while True:
        readable, _, _ = select.select([0, wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 4096)
            programs.reap()
        if 0 in readable:
            received = os.read(0, 65536)
            if not received:
                return 0
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                command = json.loads(line)
                programs.start(command["start"], command["argv"], command["log"])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
