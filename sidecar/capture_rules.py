"""The netfilter rules of capture, as text: rendered, told apart by a fingerprint, recognised in a listing.

Rules:

1. Rendering is pure; what is installed is a function of :class:`CaptureRules` and nothing else.
2. What has no listener is refused, not let through: IPv6 is redirected as well.
3. The sidecar's own connections pass: by its uid, or by its mark where all programs of the pod have one uid.
4. What is neither TCP nor DNS is not proxied. It passes, or with ``drop_others`` it is dropped in both directions,
   before addresses are translated. ICMP passes, without which TCP does not work.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.errors import ConfigError, SidecarError

TABLE = "hedgerow"
CHAINS = {"OUTPUT": "HEDGEROW_OUTPUT", "PREROUTING": "HEDGEROW_PREROUTING"}
#: iptables has one table for translating and another for dropping (priority -150, before it).
IPTABLES = ("nat", "mangle")


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
    output = CHAINS["OUTPUT"]
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
    output, prerouting = CHAINS["OUTPUT"], CHAINS["PREROUTING"]
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
        jumps = [[hook, "-p", "tcp", "-j", chain] for hook, chain in CHAINS.items()]
        return [*jumps, ["OUTPUT", "-p", "udp", "-j", CHAINS["OUTPUT"]]] if rules.dns_port else jumps
    return [[hook, "-j", chain] for hook, chain in CHAINS.items()] if rules.drop_others else []


#: Every jump that any rules of ours have, for taking them away.
JUMPS = {table: iptables_jumps(CaptureRules(dns_port=15053, drop_others=True), table) for table in IPTABLES}


def render_iptables(
    rules: CaptureRules, version: int, table: str = "nat", *, jumps: Sequence[Sequence[str]] | None = None
) -> str:
    """The input of ``iptables-restore --noflush`` (``ip6tables-restore`` for version 6).

    :param jumps: those that are not there yet; None: all
    """
    lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in CHAINS.values())]
    lines += ["-A " + " ".join(rule) for rule in iptables_rules(rules, version, table)]
    lines += ["-A " + " ".join(jump) for jump in (iptables_jumps(rules, table) if jumps is None else jumps)]
    return "\n".join([*lines, "COMMIT"]) + "\n"
