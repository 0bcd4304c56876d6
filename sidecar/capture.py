"""Capture: the netfilter rules that lead a pod's TCP connections, and its questions to DNS, to its sidecar.

Rules:

1. Rendering is pure; what is installed is a function of :class:`CaptureRules` and nothing else.
2. Installing is atomic and may be repeated: the kernel goes from the old rules to the new ones in one step.
3. What has no listener is refused, not let through: IPv6 is redirected as well.
4. The sidecar's own connections pass: by its uid, or by its mark where all programs of the pod have one uid.
5. What is neither TCP nor DNS is not proxied. It passes, or with ``drop_others`` it is dropped in both directions,
   before addresses are translated. ICMP passes, without which TCP does not work.

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
#: iptables has one table for translating and another for dropping (priority -150, before it).
_IPTABLES = ("nat", "mangle")
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
    :param exclude_outbound_ports: TCP ports of destinations that are not captured
    :param exclude_inbound_ports: TCP ports of the application that are reached without its sidecar
    :param dns_port: of the sidecar's DNS proxy; 0: DNS is not captured
    :param drop_others: drop what is neither TCP, ICMP nor DNS to the proxy, in both directions
    """

    uid: int | None = 1337
    mark: int = 0
    exclude_cidrs: tuple[str, ...] = ()
    outbound_port: int = 15001
    inbound_port: int = 15006
    sidecar_ports: tuple[int, ...] = (15006, 15021)
    exclude_outbound_ports: tuple[int, ...] = ()
    exclude_inbound_ports: tuple[int, ...] = ()
    dns_port: int = 0
    drop_others: bool = False

    def __post_init__(self) -> None:
        if self.uid is None and not self.mark:
            raise ConfigError("capture: neither uid nor mark is set, so that the sidecar would capture itself; set one")
        if self.uid is not None and not 0 < self.uid < 1 << 32:
            raise ConfigError(f"uid: {self.uid} can not be the sidecar's; use a number above 0, such as 1337")
        if not 0 <= self.mark < 1 << 32:
            raise ConfigError(f"mark: {self.mark} is no packet mark; use a number from 1 to 4294967295")
        excluded = (*self.exclude_outbound_ports, *self.exclude_inbound_ports)
        dns = (self.dns_port,) if self.dns_port else ()
        for port in (self.outbound_port, self.inbound_port, *self.sidecar_ports, *excluded, *dns):
            if not 1 <= port <= 65535:
                raise ConfigError(f"capture: {port} is not a port; use a number from 1 to 65535")
        for cidr in self.exclude_cidrs:
            try:
                ipaddress.ip_network(cidr)
            except ValueError as error:
                raise ConfigError(f"exclude_cidrs: {error}; write a network such as 10.0.0.0/8") from None

    @property
    def open_ports(self) -> list[int]:
        """The ports that are reached from outside without capture, in order."""
        return sorted({*self.sidecar_ports, *self.exclude_inbound_ports})

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


@dataclass(frozen=True, slots=True)
class _Chain:
    """A base chain of our nft table."""

    hook: str
    type: str
    priority: int
    statements: list[str]


def _nft_exempt(rules: CaptureRules) -> list[str]:
    """What leaves the pod untouched."""
    exempt = []
    if rules.uid is not None:
        exempt.append(f"meta skuid {rules.uid} return")
    if rules.mark:
        exempt.append(f"meta mark {rules.mark:#x} return")
    # By the device, never by the address: a socket bound to eth0 sends what is for 127.0.0.1 to the node.
    exempt.append('oifname "lo" return')
    for version, field in ((4, "ip"), (6, "ip6")):
        networks = rules.excluded(version)
        if networks:
            exempt.append(f"{field} daddr {{ {', '.join(networks)} }} return")
    return exempt


def _nft_chains(rules: CaptureRules) -> dict[str, _Chain]:
    output = ["meta l4proto != { tcp, udp } return" if rules.dns_port else "meta l4proto != tcp return"]
    output += _nft_exempt(rules)
    if rules.exclude_outbound_ports:
        output.append(f"tcp dport {_nft_set(rules.exclude_outbound_ports)} return")
    if rules.dns_port:
        output += [f"{protocol} dport 53 redirect to :{rules.dns_port}" for protocol in ("udp", "tcp")]
    output.append(f"meta l4proto tcp redirect to :{rules.outbound_port}")
    prerouting = ["meta l4proto != tcp return", 'iifname "lo" return']
    if rules.open_ports:
        prerouting.append(f"tcp dport {_nft_set(rules.open_ports)} return")
    prerouting.append(f"meta l4proto tcp redirect to :{rules.inbound_port}")
    chains = {
        "output": _Chain("output", "nat", -100, output),
        "prerouting": _Chain("prerouting", "nat", -100, prerouting),
    }
    if rules.drop_others:
        proxied = ["meta l4proto { tcp, icmp, ipv6-icmp } return"]
        dns = ["udp dport 53 return"] if rules.dns_port else []
        answers = ['iifname "lo" return', "ct state established,related return"]
        chains["drop_output"] = _Chain("output", "filter", -150, [*_nft_exempt(rules), *dns, *proxied, "drop"])
        chains["drop_prerouting"] = _Chain("prerouting", "filter", -150, [*answers, *proxied, "drop"])
    return chains


def _nft_set(ports: Sequence[int]) -> str:
    return f"{{ {', '.join(str(port) for port in sorted(set(ports)))} }}"


def fingerprint(rules: CaptureRules) -> str:
    """Names the rendered rules; stands in the comment of each, so that a look at them tells whether they are these."""
    chains = {name: [chain.statements, chain.priority] for name, chain in _nft_chains(rules).items()}
    return hashlib.sha256(json.dumps(chains).encode()).hexdigest()[:16]


def _nft_comment(rules: CaptureRules, number: int) -> str:
    return f"{TABLE} {fingerprint(rules)} {number}"


def render_nft(rules: CaptureRules) -> str:
    """The input of ``nft -f -``: replaces our table as one transaction."""
    # Adding the table first makes deleting it possible whether it was there or not.
    lines = [f"table inet {TABLE}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    for name, chain in _nft_chains(rules).items():
        placed = f"type {chain.type} hook {chain.hook} priority {chain.priority}; policy accept;"
        lines += [f"  chain {name} {{", f"    {placed}"]
        for number, statement in enumerate(chain.statements):
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
            (item["chain"]["name"], *(item["chain"].get(part) for part in ("hook", "type", "prio", "policy")))
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
        name: [_nft_comment(rules, number) for number in range(len(chain.statements))] for name, chain in chains.items()
    }
    placed = {(name, chain.hook, chain.type, chain.priority, "accept") for name, chain in chains.items()}
    return hooks == placed and found == wanted


# iptables


def _iptables_exempt(rules: CaptureRules, version: int) -> list[list[str]]:
    """What leaves the pod untouched."""
    output = _CHAINS["OUTPUT"]
    exempt: list[list[str]] = []
    if rules.uid is not None:
        exempt.append([output, "-m", "owner", "--uid-owner", str(rules.uid), "-j", "RETURN"])
    if rules.mark:
        exempt.append([output, "-m", "mark", "--mark", f"{rules.mark:#x}", "-j", "RETURN"])
    exempt.append([output, "-o", "lo", "-j", "RETURN"])
    exempt += [[output, "-d", network, "-j", "RETURN"] for network in rules.excluded(version)]
    return exempt


def iptables_rules(rules: CaptureRules, version: int, table: str = "nat") -> list[list[str]]:
    """The rules of our two chains in one table for one IP version, as arguments of ``iptables -A``.

    :param table: ``nat``, or ``mangle``, which has none unless something is dropped
    """
    output, prerouting = _CHAINS["OUTPUT"], _CHAINS["PREROUTING"]
    found = _iptables_exempt(rules, version)

    def passing(chain: str, protocol: str, *match: str) -> list[str]:
        return [chain, "-p", protocol, *match, "-j", "RETURN"]

    def leading(chain: str, protocol: str, port: int, *match: str) -> list[str]:
        return [chain, "-p", protocol, *match, "-j", "REDIRECT", "--to-ports", str(port)]

    if table == "nat":
        found += [passing(output, "tcp", "--dport", str(port)) for port in sorted(set(rules.exclude_outbound_ports))]
        if rules.dns_port:
            found += [leading(output, protocol, rules.dns_port, "--dport", "53") for protocol in ("udp", "tcp")]
        found.append(leading(output, "tcp", rules.outbound_port))
        found.append([prerouting, "-i", "lo", "-j", "RETURN"])
        found += [passing(prerouting, "tcp", "--dport", str(port)) for port in rules.open_ports]
        found.append(leading(prerouting, "tcp", rules.inbound_port))
        return found
    if not rules.drop_others:
        return []
    if rules.dns_port:
        found.append(passing(output, "udp", "--dport", "53"))
    answers = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
    into = [[prerouting, "-i", "lo", "-j", "RETURN"], [prerouting, *answers, "-j", "RETURN"]]
    for chain, before in ((output, found), (prerouting, into)):
        before += [passing(chain, protocol) for protocol in ("tcp", "icmp" if version == 4 else "ipv6-icmp")]
        before.append([chain, "-j", "DROP"])
    return [*found, *into]


def iptables_jumps(rules: CaptureRules, table: str = "nat") -> list[list[str]]:
    """The rules that lead from the built-in chains of a table to ours, as arguments of ``iptables -A``."""
    if table == "nat":
        jumps = [[hook, "-p", "tcp", "-j", chain] for hook, chain in _CHAINS.items()]
        return [*jumps, ["OUTPUT", "-p", "udp", "-j", _CHAINS["OUTPUT"]]] if rules.dns_port else jumps
    return [[hook, "-j", chain] for hook, chain in _CHAINS.items()] if rules.drop_others else []


#: Every jump that any rules of ours have, for taking them away.
_JUMPS = {table: iptables_jumps(CaptureRules(dns_port=15053, drop_others=True), table) for table in _IPTABLES}


def render_iptables(
    rules: CaptureRules, version: int, table: str = "nat", *, jumps: Sequence[Sequence[str]] | None = None
) -> str:
    """The input of ``iptables-restore --noflush`` (``ip6tables-restore`` for version 6).

    :param jumps: those that are not there yet; None: all
    """
    lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in _CHAINS.values())]
    lines += ["-A " + " ".join(rule) for rule in iptables_rules(rules, version, table)]
    lines += ["-A " + " ".join(jump) for jump in (iptables_jumps(rules, table) if jumps is None else jumps)]
    return "\n".join([*lines, "COMMIT"]) + "\n"


# acting

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
            for table in _IPTABLES:
                wanted = iptables_jumps(rules, table)
                if not wanted:
                    _remove_iptables(command, table)
                    continue
                for jump in (jump for jump in _JUMPS[table] if jump not in wanted):
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
        for table in _IPTABLES:
            wanted, jumps = iptables_rules(rules, version, table), iptables_jumps(rules, table)
            saved = _run([*prefix, f"{program}-save", "-t", table]).splitlines()
            ours = sum(line.startswith(tuple(f"-A {chain} " for chain in _CHAINS.values())) for line in saved)
            leading = sum(line.endswith(tuple(f" -j {chain}" for chain in _CHAINS.values())) for line in saved)
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
        for table in _IPTABLES:
            _remove_iptables([*prefix, program], table)


def _remove_iptables(command: Sequence[str], table: str) -> None:
    """Take our chains out of one table."""
    for jump in _JUMPS[table]:
        _remove_rule(command, table, jump)
    saved = _run([*command[:-1], f"{command[-1]}-save", "-t", table])
    for chain in _CHAINS.values():
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
