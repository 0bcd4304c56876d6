"""Capture: what is rendered, and what the kernel does with it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess

import pytest

from sidecar import capture
from sidecar.capture import CaptureError, CaptureRules
from sidecar.errors import ConfigError
from tests.sidecar.dataplane.netns import Network

RULES = CaptureRules(exclude_cidrs=("10.1.0.0/16", "10.1.2.0/24", "fd00:1::/32"), mark=0x539)


def test_the_nft_rules():
    text = "\n".join(
        line.split(" comment ")[0].strip() for line in capture.render_nft(RULES).splitlines() if line.strip()
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
        capture.render_iptables(RULES, 4, jumps=["OUTPUT"])
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
    assert "-A HEDGEROW_OUTPUT -o lo -j RETURN" in capture.render_iptables(RULES, 6)
    assert "-A HEDGEROW_OUTPUT -d fd00:1::/32 -j RETURN" in capture.render_iptables(RULES, 6)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"uid": None}, "uid nor mark"),
        ({"uid": 0}, "uid: 0"),
        ({"uid": -1}, "uid: -1"),
        ({"mark": 1 << 32}, "mark: "),
        ({"inbound_port": 0}, "0 is not a port"),
        ({"sidecar_ports": (70000,)}, "70000 is not a port"),
        ({"exclude_cidrs": ("10.0.0.1/8",)}, "exclude_cidrs: "),
        ({"exclude_cidrs": ("10.0.0.0/8 } accept; #",)}, "exclude_cidrs: "),
    ],
)
def test_what_can_not_be_captured_says_which_field(change, field):
    with pytest.raises(ConfigError, match=field):
        CaptureRules(**change)


def test_different_rules_have_different_fingerprints():
    assert capture.fingerprint(CaptureRules()) == capture.fingerprint(CaptureRules())
    others = [CaptureRules(uid=1338), CaptureRules(mark=1), CaptureRules(exclude_cidrs=("10.0.0.0/8",))]
    assert len({capture.fingerprint(rules) for rules in [CaptureRules(), *others]}) == 4


def test_a_listing_that_is_no_json_is_an_error():
    with pytest.raises(CaptureError, match="update nftables"):
        capture.matches_nft(CaptureRules(), "table inet hedgerow {}")


@pytest.fixture
def pod():
    if os.geteuid() != 0:
        pytest.skip("needs root for network namespaces")
    network = Network()
    yield network.pod()
    network.remove()


@pytest.fixture
def prefix(pod):
    return "ip", "netns", "exec", pod.namespace.name


def run(prefix, *command):
    return subprocess.run([*prefix, *command], capture_output=True, text=True, check=True).stdout


@pytest.fixture(params=["nft", "iptables"])
def tool(request):
    if shutil.which("nft" if request.param == "nft" else "iptables-restore") is None:
        pytest.skip(f"needs {request.param}")
    return request.param


def test_installing_is_repeatable_and_removing_leaves_nothing(prefix, tool):
    before = run(prefix, "nft", "list", "ruleset")
    assert not capture.verify(RULES, prefix=prefix, using=tool)
    for rules in (RULES, RULES, CaptureRules()):
        assert capture.install(rules, prefix=prefix, using=tool) == tool
        assert capture.verify(rules, prefix=prefix, using=tool)
    assert not capture.verify(RULES, prefix=prefix, using=tool)
    capture.remove(prefix=prefix, using=tool)
    assert not capture.verify(CaptureRules(), prefix=prefix, using=tool)
    capture.remove(prefix=prefix, using=tool)
    assert "hedgerow" not in run(prefix, "nft", "list", "ruleset").lower()
    assert before == ""


@pytest.mark.parametrize(
    "tampering",
    [
        "flush chain inet hedgerow output",
        "delete table inet hedgerow",
        "insert rule inet hedgerow output accept",
        "add rule inet hedgerow prerouting accept",
        "add chain inet hedgerow other",
    ],
)
def test_rules_that_somebody_changed_are_not_ours(prefix, tampering):
    capture.install(RULES, prefix=prefix)
    run(prefix, "nft", *tampering.split())
    assert not capture.verify(RULES, prefix=prefix)
    capture.install(RULES, prefix=prefix)
    assert capture.verify(RULES, prefix=prefix)


@pytest.mark.parametrize("tampering", ["-I HEDGEROW_OUTPUT -j ACCEPT", "-F HEDGEROW_OUTPUT", "-D OUTPUT 1"])
def test_iptables_rules_that_somebody_changed_are_not_ours(prefix, tampering):
    capture.install(RULES, prefix=prefix, using="iptables")
    run(prefix, "iptables", "-t", "nat", *tampering.split())
    assert not capture.verify(RULES, prefix=prefix, using="iptables")
    capture.install(RULES, prefix=prefix, using="iptables")
    assert capture.verify(RULES, prefix=prefix, using="iptables")


def connect(mark=0, target=("10.96.0.7", 80), family=socket.AF_INET):
    """Runs in the pod: where a connection to ``target`` arrives; None when it is not redirected and finds nobody."""
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 15001))
        listener.listen()
        listener.settimeout(0.3)
        if mark:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        client.settimeout(0.3)
        try:
            client.connect(target)
        except OSError:
            return None
        accepted, _ = listener.accept()
        with accepted:
            return accepted.getsockname()[1]


def test_what_is_captured_and_what_is_not(pod, prefix, tool):
    capture.install(CaptureRules(mark=77, exclude_cidrs=("10.96.1.0/24",)), prefix=prefix, using=tool)
    call = pod.namespace.call
    assert call(connect) == 15001
    assert call(lambda: connect(mark=77)) is None
    assert call(lambda: connect(mark=78)) == 15001
    assert call(lambda: connect(target=("10.96.1.1", 80))) is None
    assert call(lambda: connect(target=(pod.address, 80))) is None, "within the pod nothing is captured"
    assert call(lambda: connect(target=("fd00:213:7::99", 80), family=socket.AF_INET6)) == 15001
    capture.remove(prefix=prefix, using=tool)
    assert call(connect) is None


def test_without_the_right_the_error_says_which(prefix):
    nobody = (*prefix, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    with pytest.raises(CaptureError, match="CAP_NET_ADMIN"):
        capture.install(CaptureRules(), prefix=nobody)


def test_without_a_program_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CaptureError, match="nftables package"):
        capture.backend()
