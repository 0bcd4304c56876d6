"""Whether a pod's connections are captured: for a container that fails the pod when they are not.

Two ways, and the rights of the process choose between them:

1. With NET_ADMIN the kernel is asked, and exactly our rules have to be in force (:func:`sidecar.capture.verify`).
2. Without it rules can not be listed, so a connection is made to an address that nobody can have (RFC 5737, RFC 3849).
   It comes to the sidecar's outbound port, or capture is missing. That takes another user than the sidecar's, whose
   connections are exempt. Inbound capture can not be tried from within the pod; nft installs both in one step.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from sidecar import capture
from sidecar.capture_rules import CaptureError, CaptureRules

#: Seconds that a connection may take. It goes to this very machine.
_TIMEOUT = 3.0
_NET_ADMIN = 12
_MISSING = "run `python -m sidecar capture` in an init container before this one"

_NOBODY = {4: ("192.0.2.1", "198.51.100.1", "203.0.113.1"), 6: ("2001:db8::1", "2001:db8:ffff::1")}


def check(rules: CaptureRules, addresses: Iterable[str]) -> None:
    """Return when what ``rules`` say is in force.

    :param addresses: the pod's own, which say what IP versions it has
    :raises CaptureError: when it is not, or that can not be found out; the message says what to do
    """
    if _may_list():
        if not capture.verify(rules):
            raise CaptureError(f"capture: the rules are not in force; {_MISSING}")
        return
    if rules.uid is not None and os.geteuid() == rules.uid:
        raise CaptureError(
            f"capture: can not be checked as user {rules.uid}, whose connections are exempt, without NET_ADMIN; "
            "run the check as another user"
        )
    for version in sorted({ipaddress.ip_address(address).version for address in addresses}):
        _try(rules, version)


def _may_list() -> bool:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> _NET_ADMIN & 1)
    return False


def _try(rules: CaptureRules, version: int) -> None:
    target = _target(rules, version)
    family, loopback = (socket.AF_INET, "127.0.0.1") if version == 4 else (socket.AF_INET6, "::1")
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.settimeout(_TIMEOUT)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours = _listen(listener, loopback, rules.outbound_port)
        client = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        client.settimeout(_TIMEOUT)
        nonce = secrets.token_bytes(16)
        try:
            client.connect(target)
            if ours:
                client.sendall(nonce)
                accepted = stack.enter_context(listener.accept()[0])
                accepted.settimeout(_TIMEOUT)
                arrived = accepted.recv(len(nonce), socket.MSG_WAITALL) == nonce
            else:  # the sidecar runs already; nobody else can have answered at that address
                arrived = True
        except OSError as error:
            raise CaptureError(
                f"capture: a connection to {target[0]} was not redirected ({error.strerror or error}); {_MISSING}"
            ) from None
    if not arrived:
        raise CaptureError(f"capture: a connection to {target[0]} went elsewhere; {_MISSING}")


def _listen(listener: socket.socket, host: str, port: int) -> bool:
    """Whether the port is ours now; not when the sidecar has it."""
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise CaptureError(
            f"capture: can not be checked, {host}:{port} can not be listened on ({error.strerror}); "
            "use an outbound port from 1024 on"
        ) from None
    return True


def _target(rules: CaptureRules, version: int) -> tuple[str, int]:
    """An address that nobody can have, and a port, that the rules do not exclude."""
    networks = [ipaddress.ip_network(network) for network in rules.excluded(version)]
    for host in _NOBODY[version]:
        if not any(ipaddress.ip_address(host) in network for network in networks):
            excluded = {53, *rules.exclude_outbound_ports}
            return host, next(port for port in range(9, 65536) if port not in excluded)
    raise CaptureError(
        f"capture: can not be checked, exclude_cidrs hold all of {', '.join(_NOBODY[version])}; exclude less"
    )
