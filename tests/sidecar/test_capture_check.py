"""Whether capture is in force, asked of the kernel with the right to, and tried by a connection without."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

from hedgerow.local.views import infrastructure_script
from sidecar import capture
from sidecar.capture_rules import CaptureRules
from tests.sidecar.dataplane.netns import ip

ROOT = Path(__file__).parents[2]
DOCUMENT = {
    "instance": "cart-1",
    "controller": "10.0.0.1:15012",
    "issuer": "10.0.0.1:15013",
    "trust_domain": "hedgerow.test",
    "trust_bundle": "/nowhere/bundle.pem",
    "state_dir": "/nowhere/state",
    "addresses": "10.0.0.7,fd00::7",
    "dns": {"proxy": False},
}
RULES = CaptureRules(sidecar_ports=(15006, 15020, 15021))


def said(prefix, user=0, **changes):
    """What ``python -m sidecar capture --check`` says as ``user``; empty when it passes."""
    command = [sys.executable, "-m", "sidecar", "capture", "--check", "--config-env", "HEDGEROW_SIDECAR"]
    if user:  # in a view of its own, because the interpreter may stand below a closed home directory
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--", *command]
        script = infrastructure_script(other_users=True) + "\nexec " + shlex.join(become)
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", script]
    environment = os.environ | {"HEDGEROW_SIDECAR": json.dumps(DOCUMENT | changes)}
    ended = subprocess.run(
        [*prefix, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode == 0) is (ended.stderr == ""), ended.stderr
    return ended.stderr


def test_with_the_right_to_exactly_our_rules_have_to_be_in_force(prefix):
    assert "not in force" in said(prefix)
    capture.install(RULES, prefix=prefix)
    assert said(prefix) == ""
    assert "not in force" in said(prefix, exclude_outbound_ports=[25])


def test_without_it_a_connection_tells(pod, prefix):
    pod.namespace.call(lambda: ip("route", "add", "default", "via", "10.213.7.254"))
    one = {"addresses": "10.0.0.7"}
    assert "192.0.2.1 was not redirected" in said(prefix, 1000, **one)
    capture.install(RULES, prefix=prefix)
    assert said(prefix, 1000, **one) == ""
    excluding = {"exclude_cidrs": ["192.0.2.0/24"], "exclude_outbound_ports": [9, 10]}
    assert said(prefix, 1000, **one, **excluding) == ""
    assert "exclude less" in said(prefix, 1000, **one, exclude_cidrs=["0.0.0.0/0"])
    assert "run the check as another user" in said(prefix, RULES.uid, **one)

    sidecar = pod.namespace.call(lambda: socket.create_server(("127.0.0.1", RULES.outbound_port)))
    with sidecar:
        assert said(prefix, 1000, **one) == "", "the sidecar runs already"
        capture.remove(prefix=prefix)
        assert "was not redirected" in said(prefix, 1000, **one)


def test_each_ip_version_of_the_pod_is_tried(pod, prefix):
    for version, gateway in (("-4", "10.213.7.254"), ("-6", "fd00:213:7::fe")):
        pod.namespace.call(lambda version=version, way=gateway: ip(version, "route", "add", "default", "via", way))
    capture.install(RULES, prefix=prefix)
    assert said(prefix, 1000) == ""
    rule = ("meta", "nfproto", "ipv6", "return")
    command = [*prefix, "nft", "insert", "rule", "inet", "hedgerow", "output", *rule]
    subprocess.run(command, check=True, timeout=30)
    assert said(prefix, 1000, addresses="10.0.0.7") == ""
    assert "2001:db8::1 was not redirected" in said(prefix, 1000)
