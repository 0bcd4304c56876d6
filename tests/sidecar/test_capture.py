"""Capture: what the kernel does with its rules."""

from __future__ import annotations

import shutil
import socket
import subprocess

import pytest

from sidecar import capture
from sidecar.capture_rules import CaptureError, CaptureRules
from tests.sidecar.capturing import RULES, WHOLE


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
    for rules in (RULES, RULES, WHOLE, WHOLE, CaptureRules(dns_port=15053), CaptureRules()):
        assert capture.install(rules, prefix=prefix, using=tool) == tool
        assert capture.verify(rules, prefix=prefix, using=tool)
    assert not capture.verify(RULES, prefix=prefix, using=tool)
    capture.remove(prefix=prefix, using=tool)
    assert not capture.verify(CaptureRules(), prefix=prefix, using=tool)
    capture.remove(prefix=prefix, using=tool)
    assert "hedgerow" not in run(prefix, "nft", "list", "ruleset").lower()
    assert before == ""
    capture.install(WHOLE, prefix=prefix, using=tool)
    capture.remove(prefix=prefix, using=tool)
    assert "hedgerow" not in run(prefix, "nft", "list", "ruleset").lower()


@pytest.mark.parametrize(
    "tampering",
    [
        "flush chain inet hedgerow output",
        "delete table inet hedgerow",
        "insert rule inet hedgerow output accept",
        "add rule inet hedgerow prerouting accept",
        "add chain inet hedgerow other",
        "flush chain inet hedgerow drop_output",
        "insert rule inet hedgerow drop_prerouting accept",
    ],
)
def test_rules_that_somebody_changed_are_not_ours(prefix, tampering):
    capture.install(WHOLE, prefix=prefix)
    run(prefix, "nft", *tampering.split())
    assert not capture.verify(WHOLE, prefix=prefix)
    capture.install(WHOLE, prefix=prefix)
    assert capture.verify(WHOLE, prefix=prefix)


@pytest.mark.parametrize(
    "tampering",
    [
        *("nat -I HEDGEROW_OUTPUT -j ACCEPT", "nat -F HEDGEROW_OUTPUT", "nat -D OUTPUT 1"),
        *("mangle -I HEDGEROW_OUTPUT -j ACCEPT", "mangle -F HEDGEROW_PREROUTING", "mangle -D OUTPUT 1"),
    ],
)
def test_iptables_rules_that_somebody_changed_are_not_ours(prefix, tampering):
    capture.install(WHOLE, prefix=prefix, using="iptables")
    run(prefix, "iptables", "-t", *tampering.split())
    assert not capture.verify(WHOLE, prefix=prefix, using="iptables")
    capture.install(WHOLE, prefix=prefix, using="iptables")
    assert capture.verify(WHOLE, prefix=prefix, using="iptables")


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


def test_excluded_ports_are_not_captured(pod, prefix, tool):
    capture.install(CaptureRules(exclude_outbound_ports=(3306,)), prefix=prefix, using=tool)
    call = pod.namespace.call
    assert call(connect) == 15001
    assert call(lambda: connect(target=("10.96.0.7", 3306))) is None


def asked(family, target, kind):
    """Runs in the pod: whether the DNS port of loopback gets what is sent to ``target``, and can answer it as it."""
    loopback = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.socket(family, kind) as server, socket.socket(family, kind) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((loopback, 15053))
        server.settimeout(0.3)
        client.settimeout(0.3)
        try:
            if kind == socket.SOCK_STREAM:
                server.listen()
                client.connect(target)
                server.accept()[0].close()
                return True
            client.sendto(b"question", target)  # not connected, as some resolvers ask
            data, source = server.recvfrom(100)
            server.sendto(data, source)
            return client.recvfrom(100)[1][:2] == target
        except OSError:
            return False


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
@pytest.mark.parametrize("drop", [False, True])
def test_dns_goes_to_the_proxy_whoever_is_asked(pod, prefix, tool, kind, drop):
    rules = CaptureRules(dns_port=15053, mark=77, exclude_cidrs=("10.96.1.0/24",), drop_others=drop)
    capture.install(rules, prefix=prefix, using=tool)
    call = pod.namespace.call
    assert call(lambda: asked(socket.AF_INET, ("10.96.0.10", 53), kind))
    assert call(lambda: asked(socket.AF_INET6, ("fd00:213:7::99", 53), kind))
    assert not call(lambda: asked(socket.AF_INET, ("10.96.1.10", 53), kind)), "an excluded resolver"
    assert not call(lambda: asked(socket.AF_INET, ("10.96.0.10", 5353), kind))
    capture.install(CaptureRules(mark=77, drop_others=drop), prefix=prefix, using=tool)
    assert not call(lambda: asked(socket.AF_INET, ("10.96.0.10", 53), kind))


def test_without_the_right_the_error_says_which(prefix):
    nobody = (*prefix, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    with pytest.raises(CaptureError, match="CAP_NET_ADMIN"):
        capture.install(CaptureRules(), prefix=nobody)


def test_without_a_program_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CaptureError, match="nftables package"):
        capture.backend()
