"""What `make` installs on a machine, and when it only says what is missing.

The machine has no commands but those that a test puts there: an empty folder stands over /usr/sbin, and over PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a folder over /usr/sbin")

SCRIPT = Path(__file__).parents[2] / ".ci" / "system-packages"
NEEDED = ("nft", "ip", "nsenter", "curl", "nginx", "redis-server", "redis-cli", "psql", "pg_ctlcluster", "dot")
NEEDED = (*NEEDED, "chromium", "iptables-restore", "wrk", "faketime")

#: Says what it was asked for, and whether servers were kept from starting meanwhile.
APT_GET = """#!/bin/sh
echo "$(id -u): $*" >>{asked}
case "$*" in *install*) [ ! -x /usr/sbin/policy-rc.d ] || /usr/sbin/policy-rc.d; echo "starting: $?" >>{asked};; esac
exit {code}
"""


class Machine:
    """:param commands: those that are there"""

    def __init__(self, root: Path, *commands: str, uid: int = 0, apt: int | None = 0) -> None:
        self.root = root
        self.bin, self.sbin = root / "bin", root / "sbin"
        self._asked = root / "asked"
        for folder in (self.bin, self.sbin):
            folder.mkdir()
        for tool in ("chmod", "rm", "sh"):
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)
        self._put("id", f"#!/bin/sh\necho {uid}\n")
        for command in commands:
            self._put(command, "#!/bin/sh\n")
        if apt is not None:
            self._put("apt-get", APT_GET.format(asked=self._asked, code=apt))

    def _put(self, name: str, text: str) -> None:
        program = self.bin / name
        program.write_text(text)
        program.chmod(0o755)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        over = "mount --bind {0} /usr/sbin; [ -L /sbin ] || mount --bind {0} /sbin; PATH={1} exec {2} {3}"
        script = over.format(self.sbin, self.bin, SCRIPT, " ".join(arguments))
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    @property
    def asked(self) -> list[str]:
        return self._asked.read_text().splitlines() if self._asked.exists() else []


def all_but(*commands: str) -> tuple[str, ...]:
    assert set(commands) <= set(NEEDED)
    return tuple(name for name in NEEDED if name not in commands)


def test_nothing_is_done_where_everything_is_there(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *NEEDED)
    done = machine.run("test")
    assert (done.returncode, done.stdout, done.stderr, machine.asked) == (0, "", "", [])


def test_what_is_missing_is_said_with_its_purpose_and_installed_without_being_started(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *all_but("nginx", "dot"))
    done = machine.run("test")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^missing: (\S+) \((.*)\)$", done.stderr, re.MULTILINE) == [
        ("nginx-light", "a server whose traffic crosses the mesh"),
        ("graphviz", "reads the DOT exports back"),
    ]
    update, install, starting = machine.asked
    assert "update" in update.split()
    assert install.split()[-2:] == ["nginx-light", "graphviz"]
    assert "--no-install-recommends" in install
    assert starting == "starting: 101"  # what policy-rc.d says for "no"
    assert list(machine.sbin.iterdir()) == []


def test_the_demo_needs_less_than_the_tests(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "ip", "nsenter")
    done = machine.run("demo")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^missing: (\S+)", done.stderr, re.MULTILINE) == ["nftables"]
    assert machine.asked[1].endswith(" nftables")


def test_somebody_elses_policy_about_starting_stays(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *all_but("wrk"))
    policy = machine.sbin / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 104\n")
    policy.chmod(0o755)
    assert machine.run("test").returncode == 0
    assert machine.asked[-1] == "starting: 104"
    assert policy.read_text() == "#!/bin/sh\nexit 104\n"


@pytest.mark.parametrize(("uid", "apt"), [(1000, 0), (0, None)], ids=["not root", "another distribution"])
def test_who_can_not_install_is_told_what_to_do_and_goes_on(tmp_path: Path, uid: int, apt: int | None) -> None:
    machine = Machine(tmp_path, *all_but("nft", "wrk"), uid=uid, apt=apt)
    done = machine.run("test")
    assert done.returncode == 0
    assert "missing: nftables (captures the traffic of a pod)" in done.stderr
    assert "sudo apt-get install nftables wrk" in done.stderr.splitlines()[-1]
    assert machine.asked == []


def test_an_installation_that_fails_fails_and_leaves_no_policy(tmp_path: Path) -> None:
    machine = Machine(tmp_path, *all_but("wrk"), apt=100)
    assert machine.run("test").returncode == 100
    assert list(machine.sbin.iterdir()) == []
