"""Capture: puts in force the rules that lead a pod's TCP connections, and its questions to DNS, to its sidecar.

What the rules are says :mod:`sidecar.capture_rules`. Installing is atomic and may be repeated: the kernel goes from the
old rules to the new ones in one step.

``nft`` is used where it is; otherwise ``iptables-restore`` and ``ip6tables-restore``.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Literal

from sidecar.capture_rules import (
    CHAINS,
    IPTABLES,
    JUMPS,
    TABLE,
    CaptureError,
    CaptureRules,
    iptables_jumps,
    iptables_rules,
    matches_nft,
    render_iptables,
    render_nft,
)

#: Seconds that one command may take.
_TIMEOUT = 20.0

type Backend = Literal["nft", "iptables"]

_PROGRAMS = ((4, "iptables"), (6, "ip6tables"))


def backend() -> Backend:
    """Which program is there to install rules with.

    :raises CaptureError: when none is
    """
    if shutil.which("nft"):
        return "nft"
    if shutil.which("iptables-restore") and shutil.which("ip6tables-restore"):
        return "iptables"
    raise CaptureError(
        "capture: neither nft nor iptables-restore is installed; "
        "install the nftables package, or use `capture: explicit`"
    )


def install(rules: CaptureRules, *, prefix: Sequence[str] = (), using: Backend | None = None) -> Backend:
    """Put the rules in force in the current network namespace, and check that they are.

    :param prefix: a command that runs its arguments in another network namespace, such as ``ip netns exec NAME``
    :param using: the program to use; None chooses
    :raises CaptureError: when they are not in force afterwards
    """
    tool = using or backend()
    if tool == "nft":
        _run([*prefix, "nft", "-f", "-"], render_nft(rules))
    else:
        for version, program in _PROGRAMS:
            command = [*prefix, program]
            for table in IPTABLES:
                wanted = iptables_jumps(rules, table)
                if not wanted:
                    _remove_iptables(command, table)
                    continue
                for jump in (jump for jump in JUMPS[table] if jump not in wanted):
                    _remove_rule(command, table, jump)
                missing = [jump for jump in wanted if not _holds(command, table, jump)]
                text = render_iptables(rules, version, table, jumps=missing)
                _run([*prefix, f"{program}-restore", "--wait", "5", "--noflush"], text)
    if not verify(rules, prefix=prefix, using=tool):
        raise CaptureError(
            "capture: the rules were taken but are not in force; look at `nft list ruleset` for another program's rules"
        )
    return tool


def verify(rules: CaptureRules, *, prefix: Sequence[str] = (), using: Backend | None = None) -> bool:
    """Whether exactly these rules are in force.

    :raises CaptureError: when that can not be found out
    """
    if (using or backend()) == "nft":
        tables = _run([*prefix, "nft", "list", "tables", "inet"])
        if f"table inet {TABLE}" not in tables.splitlines():
            return False
        return matches_nft(rules, _run([*prefix, "nft", "-j", "list", "table", "inet", TABLE]))
    for version, program in _PROGRAMS:
        command = [*prefix, program]
        for table in IPTABLES:
            wanted, jumps = iptables_rules(rules, version, table), iptables_jumps(rules, table)
            saved = _run([*prefix, f"{program}-save", "-t", table]).splitlines()
            ours = sum(line.startswith(tuple(f"-A {chain} " for chain in CHAINS.values())) for line in saved)
            leading = sum(line.endswith(tuple(f" -j {chain}" for chain in CHAINS.values())) for line in saved)
            if (ours, leading) != (len(wanted), len(jumps)):
                return False
            if not all(_holds(command, table, rule) for rule in [*wanted, *jumps]):
                return False
    return True


def remove(*, prefix: Sequence[str] = (), using: Backend | None = None) -> None:
    """Take our rules away; nothing happens when there are none.

    :raises CaptureError: when they can not be taken away
    """
    if (using or backend()) == "nft":
        _run([*prefix, "nft", "-f", "-"], f"table inet {TABLE}\ndelete table inet {TABLE}\n")
        return
    for _, program in _PROGRAMS:
        for table in IPTABLES:
            _remove_iptables([*prefix, program], table)


def _remove_iptables(command: Sequence[str], table: str) -> None:
    """Take our chains out of one table."""
    for jump in JUMPS[table]:
        _remove_rule(command, table, jump)
    saved = _run([*command[:-1], f"{command[-1]}-save", "-t", table])
    for chain in CHAINS.values():
        if f":{chain} " in saved:
            _run([*command, "--wait", "5", "-t", table, "-F", chain])
            _run([*command, "--wait", "5", "-t", table, "-X", chain])


def _remove_rule(command: Sequence[str], table: str, rule: Sequence[str]) -> None:
    while _holds(command, table, rule):
        _run([*command, "--wait", "5", "-t", table, "-D", *rule])


def _holds(command: Sequence[str], table: str, rule: Sequence[str]) -> bool:
    """Whether a rule exists."""
    return _attempt([*command, "--wait", "5", "-t", table, "-C", *rule]).returncode == 0


def _run(command: Sequence[str], text: str = "") -> str:
    result = _attempt(command, text)
    if result.returncode:
        problem = " ".join((result.stderr or result.stdout).split()) or f"status {result.returncode}"
        raise CaptureError(f"capture: {command[-1] if not text else ' '.join(command)}: {problem}; {_remedy(problem)}")
    return result.stdout


def _attempt(command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except FileNotFoundError:
        raise CaptureError(f"capture: {command[0]} is not installed; install the nftables package") from None
    except subprocess.TimeoutExpired:
        raise CaptureError(
            f"capture: {' '.join(command)} did not end within {_TIMEOUT:g} s; "
            "see whether another program holds the lock of the rules"
        ) from None


def _remedy(problem: str) -> str:
    lowered = problem.lower()
    if "not permitted" in lowered or "permission denied" in lowered:
        return "capture needs CAP_NET_ADMIN in the pod's network namespace; grant it, or use `capture: explicit`"
    if "not supported" in lowered or "no such file" in lowered or "could not process rule" in lowered:
        return "the kernel lacks a netfilter module; load nft_redir and nft_nat on the node, or use `capture: explicit`"
    return "run the command by hand in the pod's network namespace to see more"
