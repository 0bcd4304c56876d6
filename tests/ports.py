"""Ports to listen on later."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

#: Below those that the kernel gives to outgoing connections, of which tests make many: one of them may have taken a
#: port by the time that it is listened on.
_RANGE = range(24_000, 32_000)
_ports = itertools.cycle([*_RANGE[os.getpid() * 97 % len(_RANGE) :], *_RANGE[: os.getpid() * 97 % len(_RANGE)]])


def free_port(host: str = "127.0.0.1") -> int:
    """One that nobody listens on, and that was not given out before."""
    for port in itertools.islice(_ports, len(_RANGE)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise OSError(f"every port of {host} from {_RANGE.start} to {_RANGE.stop} is taken")
