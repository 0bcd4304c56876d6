"""Capture: the netfilter rules that lead a pod's TCP connections to its sidecar.

Rules:

1. Rendering is pure; what is installed is a function of :class:`CaptureRules` and nothing else.
2. Installing is atomic and may be repeated: the kernel goes from the old rules to the new ones in one step.
3. What has no listener is refused, not let through: IPv6 is redirected as well.
4. The sidecar's own connections pass: by its uid, or by its mark where all programs of the pod have one uid.

``nft`` is used where it is; otherwise ``iptables-restore`` and ``ip6tables-restore``.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sidecar.errors import ConfigError, SidecarError

TABLE = "hedgerow"
_CHAINS = {"OUTPUT": "HEDGEROW_OUTPUT", "PREROUTING": "HEDGEROW_PREROUTING"}
#: Seconds that one command may take.
_TIMEOUT = 20.0

type Backend = Literal["nft", "iptables"]


class CaptureError(SidecarError):
    """The rules could not be installed, checked or removed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class CaptureRules:
    """What is captured.

    :param uid: of the sidecar, whose own connections pass; None when ``mark`` says it alone
    :param mark: ``SO_MARK`` of the sidecar's own connections; 0: none
    :param exclude_cidrs: destinations that are not captured
    :param sidecar_ports: the ports that the sidecar listens on, reached from outside without capture. Never name one
        here that nothing of ours holds: the application could listen there, past its sidecar
    """

    uid: int | None = 1337
    mark: int = 0
    exclude_cidrs: tuple[str, ...] = ()
    outbound_port: int = 15001
    inbound_port: int = 15006
    sidecar_ports: tuple[int, ...] = (15006, 15021)

    def __post_init__(self) -> None:
        if self.uid is None and not self.mark:
            raise ConfigError("capture: neither uid nor mark is set, so that the sidecar would capture itself; set one")
        if self.uid is not None and not 0 < self.uid < 1 << 32:
            raise ConfigError(f"uid: {self.uid} can not be the sidecar's; use a number above 0, such as 1337")
        if not 0 <= self.mark < 1 << 32:
            raise ConfigError(f"mark: {self.mark} is no packet mark; use a number from 1 to 4294967295")
        for port in (self.outbound_port, self.inbound_port, *self.sidecar_ports):
            if not 1 <= port <= 65535:
                raise ConfigError(f"capture: {port} is not a port; use a number from 1 to 65535")
        for cidr in self.exclude_cidrs:
            try:
                ipaddress.ip_network(cidr)
            except ValueError as error:
                raise ConfigError(f"exclude_cidrs: {error}; write a network such as 10.0.0.0/8") from None

    def excluded(self, version: int) -> list[str]:
        """The excluded networks of one IP version, without those that lie within another, in order."""
        networks = [ipaddress.ip_network(cidr) for cidr in self.exclude_cidrs]
        if version == 4:
            merged = ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv4Network))
            return [str(network) for network in merged]
        return [
            str(network)
            for network in ipaddress.collapse_addresses(n for n in networks if isinstance(n, ipaddress.IPv6Network))
        ]


# nft


def _nft_chains(rules: CaptureRules) -> dict[str, list[str]]:
    output = ["meta l4proto != tcp return"]
    if rules.uid is not None:
        output.append(f"meta skuid {rules.uid} return")
    if rules.mark:
        output.append(f"meta mark {rules.mark:#x} return")
    # By the device, never by the address: a socket bound to eth0 sends what is for 127.0.0.1 to the node.
    output.append('oifname "lo" return')
    for version, field in ((4, "ip"), (6, "ip6")):
        networks = rules.excluded(version)
        if networks:
            output.append(f"{field} daddr {{ {', '.join(networks)} }} return")
    output.append(f"meta l4proto tcp redirect to :{rules.outbound_port}")
    ports = ", ".join(str(port) for port in sorted(set(rules.sidecar_ports)))
    prerouting = ["meta l4proto != tcp return", 'iifname "lo" return']
    if ports:
        prerouting.append(f"tcp dport {{ {ports} }} return")
    prerouting.append(f"meta l4proto tcp redirect to :{rules.inbound_port}")
    return {"output": output, "prerouting": prerouting}


def fingerprint(rules: CaptureRules) -> str:
    """Names the rendered rules; stands in the comment of each, so that a look at them tells whether they are these."""
    return hashlib.sha256(json.dumps(_nft_chains(rules)).encode()).hexdigest()[:16]


def _nft_comment(rules: CaptureRules, number: int) -> str:
    return f"{TABLE} {fingerprint(rules)} {number}"


def render_nft(rules: CaptureRules) -> str:
    """The input of ``nft -f -``: replaces our table as one transaction."""
    # Adding the table first makes deleting it possible whether it was there or not.
    lines = [f"table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    for chain, statements in _nft_chains(rules).items():
        lines += [f"  chain {chain} {{", f"    type nat hook {chain} priority -100; policy accept;"]
        for number, statement in enumerate(statements):
            lines.append(f'    {statement} comment "{_nft_comment(rules, number)}"')
        lines.append("  }")
    lines.append("}")
    return "\n".join(lines) + "\n"


def matches_nft(rules: CaptureRules, listing: str) -> bool:
    """Whether the JSON listing of our table shows exactly ``rules``: both hooks, every rule, in order, no other.

    :raises CaptureError: when the listing is not JSON of nft
    """
    try:
        items = json.loads(listing)["nftables"]
        hooks = {
            (item["chain"]["name"], item["chain"].get("hook"), item["chain"].get("type"), item["chain"].get("policy"))
            for item in items
            if "chain" in item
        }
        found: dict[str, list[str]] = {}
        for item in items:
            if "rule" in item:
                found.setdefault(item["rule"]["chain"], []).append(item["rule"].get("comment", ""))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CaptureError(f"capture: nft gave a listing that can not be read ({error}); update nftables") from error
    chains = _nft_chains(rules)
    wanted = {
        chain: [_nft_comment(rules, number) for number in range(len(statements))]
        for chain, statements in chains.items()
    }
    return hooks == {(chain, chain, "nat", "accept") for chain in chains} and found == wanted


# iptables


def iptables_rules(rules: CaptureRules, version: int) -> list[list[str]]:
    """The rules of our two chains for one IP version, as arguments of ``iptables -A``."""
    output, prerouting = _CHAINS["OUTPUT"], _CHAINS["PREROUTING"]
    found: list[list[str]] = []
    if rules.uid is not None:
        found.append([output, "-m", "owner", "--uid-owner", str(rules.uid), "-j", "RETURN"])
    if rules.mark:
        found.append([output, "-m", "mark", "--mark", f"{rules.mark:#x}", "-j", "RETURN"])
    found.append([output, "-o", "lo", "-j", "RETURN"])
    found += [[output, "-d", network, "-j", "RETURN"] for network in rules.excluded(version)]
    found.append([output, "-p", "tcp", "-j", "REDIRECT", "--to-ports", str(rules.outbound_port)])
    found.append([prerouting, "-i", "lo", "-j", "RETURN"])
    found += [
        [prerouting, "-p", "tcp", "--dport", str(port), "-j", "RETURN"] for port in sorted(set(rules.sidecar_ports))
    ]
    found.append([prerouting, "-p", "tcp", "-j", "REDIRECT", "--to-ports", str(rules.inbound_port)])
    return found


def iptables_jump(hook: str) -> list[str]:
    """The rule that leads from a built-in chain to ours, as arguments of ``iptables -A``."""
    return [hook, "-p", "tcp", "-j", _CHAINS[hook]]


def render_iptables(rules: CaptureRules, version: int, *, jumps: Sequence[str] = tuple(_CHAINS)) -> str:
    """The input of ``iptables-restore --noflush`` (``ip6tables-restore`` for version 6).

    :param jumps: the built-in chains that do not lead to ours yet
    """
    lines = ["*nat", *(f":{chain} - [0:0]" for chain in _CHAINS.values())]
    lines += ["-A " + " ".join(rule) for rule in iptables_rules(rules, version)]
    lines += ["-A " + " ".join(iptables_jump(hook)) for hook in jumps]
    return "\n".join([*lines, "COMMIT"]) + "\n"


# acting


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
        for version, program in ((4, "iptables"), (6, "ip6tables")):
            jumps = [hook for hook in _CHAINS if not _holds([*prefix, program], iptables_jump(hook))]
            text = render_iptables(rules, version, jumps=jumps)
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
    for version, program in ((4, "iptables"), (6, "ip6tables")):
        command = [*prefix, program]
        wanted = iptables_rules(rules, version)
        saved = _run([*prefix, f"{program}-save", "-t", "nat"]).splitlines()
        ours = sum(line.startswith(tuple(f"-A {chain} " for chain in _CHAINS.values())) for line in saved)
        if ours != len(wanted) or not all(_holds(command, rule) for rule in wanted):
            return False
        if not all(_holds(command, iptables_jump(hook)) for hook in _CHAINS):
            return False
    return True


def remove(*, prefix: Sequence[str] = (), using: Backend | None = None) -> None:
    """Take our rules away; nothing happens when there are none.

    :raises CaptureError: when they can not be taken away
    """
    if (using or backend()) == "nft":
        _run([*prefix, "nft", "-f", "-"], f"table inet {TABLE}\ndelete table inet {TABLE}\n")
        return
    for program in ("iptables", "ip6tables"):
        command = [*prefix, program, "--wait", "5", "-t", "nat"]
        for hook, chain in _CHAINS.items():
            while _holds([*prefix, program], iptables_jump(hook)):
                _run([*command, "-D", *iptables_jump(hook)])
            if f":{chain} " in _run([*prefix, f"{program}-save", "-t", "nat"]):
                _run([*command, "-F", chain])
                _run([*command, "-X", chain])


def _holds(command: Sequence[str], rule: Sequence[str]) -> bool:
    """Whether a rule of the nat table exists."""
    return _attempt([*command, "--wait", "5", "-t", "nat", "-C", *rule]).returncode == 0


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
