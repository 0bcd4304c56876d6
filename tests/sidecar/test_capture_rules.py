"""The rules of capture: what is rendered."""

from __future__ import annotations

import pytest

from sidecar import capture_rules
from sidecar.capture_rules import CaptureError, CaptureRules
from sidecar.errors import ConfigError
from tests.sidecar.capturing import RULES, WHOLE


def test_the_nft_rules_with_dns_excluded_ports_and_without_other_protocols():
    text = "\n".join(
        line.split(" comment ")[0].strip() for line in capture_rules.render_nft(WHOLE).splitlines()[3:] if line.strip()
    )
    assert (
        text
        == """\
chain output {
type nat hook output priority -100; policy accept;
meta l4proto != { tcp, udp } return
meta skuid 1337 return
oifname "lo" return
ip daddr { 10.1.0.0/16 } return
tcp dport { 25, 3306 } return
udp dport 53 redirect to :15053
tcp dport 53 redirect to :15053
meta l4proto tcp redirect to :15001
}
chain prerouting {
type nat hook prerouting priority -100; policy accept;
meta l4proto != tcp return
iifname "lo" return
tcp dport { 9100, 15006, 15021 } return
meta l4proto tcp redirect to :15006
}
chain drop_output {
type filter hook output priority -150; policy accept;
meta skuid 1337 return
oifname "lo" return
ip daddr { 10.1.0.0/16 } return
udp dport 53 return
meta l4proto { tcp, icmp, ipv6-icmp } return
drop
}
chain drop_prerouting {
type filter hook prerouting priority -150; policy accept;
iifname "lo" return
ct state established,related return
meta l4proto { tcp, icmp, ipv6-icmp } return
drop
}
}"""
    )


def test_the_iptables_rules_with_dns_excluded_ports_and_without_other_protocols():
    assert (
        capture_rules.render_iptables(WHOLE, 6)
        == """\
*nat
:HEDGEROW_OUTPUT - [0:0]
:HEDGEROW_PREROUTING - [0:0]
-A HEDGEROW_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A HEDGEROW_OUTPUT -o lo -j RETURN
-A HEDGEROW_OUTPUT -p tcp --dport 25 -j RETURN
-A HEDGEROW_OUTPUT -p tcp --dport 3306 -j RETURN
-A HEDGEROW_OUTPUT -p udp --dport 53 -j REDIRECT --to-ports 15053
-A HEDGEROW_OUTPUT -p tcp --dport 53 -j REDIRECT --to-ports 15053
-A HEDGEROW_OUTPUT -p tcp -j REDIRECT --to-ports 15001
-A HEDGEROW_PREROUTING -i lo -j RETURN
-A HEDGEROW_PREROUTING -p tcp --dport 9100 -j RETURN
-A HEDGEROW_PREROUTING -p tcp --dport 15006 -j RETURN
-A HEDGEROW_PREROUTING -p tcp --dport 15021 -j RETURN
-A HEDGEROW_PREROUTING -p tcp -j REDIRECT --to-ports 15006
-A OUTPUT -p tcp -j HEDGEROW_OUTPUT
-A PREROUTING -p tcp -j HEDGEROW_PREROUTING
-A OUTPUT -p udp -j HEDGEROW_OUTPUT
COMMIT
"""
    )
    assert (
        capture_rules.render_iptables(WHOLE, 4, "mangle")
        == """\
*mangle
:HEDGEROW_OUTPUT - [0:0]
:HEDGEROW_PREROUTING - [0:0]
-A HEDGEROW_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A HEDGEROW_OUTPUT -o lo -j RETURN
-A HEDGEROW_OUTPUT -d 10.1.0.0/16 -j RETURN
-A HEDGEROW_OUTPUT -p udp --dport 53 -j RETURN
-A HEDGEROW_OUTPUT -p tcp -j RETURN
-A HEDGEROW_OUTPUT -p icmp -j RETURN
-A HEDGEROW_OUTPUT -j DROP
-A HEDGEROW_PREROUTING -i lo -j RETURN
-A HEDGEROW_PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A HEDGEROW_PREROUTING -p tcp -j RETURN
-A HEDGEROW_PREROUTING -p icmp -j RETURN
-A HEDGEROW_PREROUTING -j DROP
-A OUTPUT -j HEDGEROW_OUTPUT
-A PREROUTING -j HEDGEROW_PREROUTING
COMMIT
"""
    )
    assert "-p ipv6-icmp -j RETURN" in capture_rules.render_iptables(WHOLE, 6, "mangle")


def test_the_nft_rules():
    text = "\n".join(
        line.split(" comment ")[0].strip() for line in capture_rules.render_nft(RULES).splitlines() if line.strip()
    )
    assert (
        text
        == """\
table inet hedgerow
delete table inet hedgerow
table inet hedgerow {
chain output {
type nat hook output priority -100; policy accept;
meta l4proto != tcp return
meta skuid 1337 return
meta mark 0x539 return
oifname "lo" return
ip daddr { 10.1.0.0/16 } return
ip6 daddr { fd00:1::/32 } return
meta l4proto tcp redirect to :15001
}
chain prerouting {
type nat hook prerouting priority -100; policy accept;
meta l4proto != tcp return
iifname "lo" return
tcp dport { 15006, 15021 } return
meta l4proto tcp redirect to :15006
}
}"""
    )


def test_the_iptables_rules():
    assert (
        capture_rules.render_iptables(RULES, 4, jumps=[["OUTPUT", "-p", "tcp", "-j", "HEDGEROW_OUTPUT"]])
        == """\
*nat
:HEDGEROW_OUTPUT - [0:0]
:HEDGEROW_PREROUTING - [0:0]
-A HEDGEROW_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A HEDGEROW_OUTPUT -m mark --mark 0x539 -j RETURN
-A HEDGEROW_OUTPUT -o lo -j RETURN
-A HEDGEROW_OUTPUT -d 10.1.0.0/16 -j RETURN
-A HEDGEROW_OUTPUT -p tcp -j REDIRECT --to-ports 15001
-A HEDGEROW_PREROUTING -i lo -j RETURN
-A HEDGEROW_PREROUTING -p tcp --dport 15006 -j RETURN
-A HEDGEROW_PREROUTING -p tcp --dport 15021 -j RETURN
-A HEDGEROW_PREROUTING -p tcp -j REDIRECT --to-ports 15006
-A OUTPUT -p tcp -j HEDGEROW_OUTPUT
COMMIT
"""
    )
    assert "-A HEDGEROW_OUTPUT -o lo -j RETURN" in capture_rules.render_iptables(RULES, 6)
    assert "-A HEDGEROW_OUTPUT -d fd00:1::/32 -j RETURN" in capture_rules.render_iptables(RULES, 6)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"uid": None}, "uid nor mark"),
        ({"uid": 0}, "uid: 0"),
        ({"uid": -1}, "uid: -1"),
        ({"mark": 1 << 32}, "mark: "),
        ({"inbound_port": 0}, "0 is not a port"),
        ({"sidecar_ports": (70000,)}, "70000 is not a port"),
        ({"exclude_outbound_ports": (0,)}, "0 is not a port"),
        ({"exclude_inbound_ports": (65536,)}, "65536 is not a port"),
        ({"dns_port": 65536}, "65536 is not a port"),
        ({"exclude_cidrs": ("10.0.0.1/8",)}, "exclude_cidrs: "),
        ({"exclude_cidrs": ("10.0.0.0/8 } accept; #",)}, "exclude_cidrs: "),
    ],
)
def test_what_can_not_be_captured_says_which_field(change, field):
    with pytest.raises(ConfigError, match=field):
        CaptureRules(**change)


def test_different_rules_have_different_fingerprints():
    assert capture_rules.fingerprint(CaptureRules()) == capture_rules.fingerprint(CaptureRules())
    others = [CaptureRules(uid=1338), CaptureRules(mark=1), CaptureRules(exclude_cidrs=("10.0.0.0/8",)), WHOLE]
    others += [CaptureRules(dns_port=15053), CaptureRules(drop_others=True), CaptureRules(exclude_outbound_ports=(1,))]
    assert len({capture_rules.fingerprint(rules) for rules in [CaptureRules(), *others]}) == 8


def test_a_listing_that_is_no_json_is_an_error():
    with pytest.raises(CaptureError, match="update nftables"):
        capture_rules.matches_nft(CaptureRules(), "table inet hedgerow {}")
