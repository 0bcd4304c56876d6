"""Tries to get one echo from each of several addresses, in whatever way is asked for, all at the same time.

python knock.py ATTEMPTS: a JSON list of objects with ``host`` and ``port`` and, if wanted, ``protocol`` (a number of
``IPPROTO_*``), ``device`` (to bind the socket to) and ``source`` (an address to bind it to, its own or not).

Prints a JSON list of what came back for each, as text, empty for nothing.
"""

from __future__ import annotations

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PATIENCE = 3.0
_IP_FREEBIND = 15


def knock(attempt: dict[str, Any]) -> str:
    family = socket.AF_INET6 if ":" in attempt["host"] else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM, attempt.get("protocol", 0)) as sock:
            sock.settimeout(PATIENCE)
            if "device" in attempt:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, attempt["device"].encode())
            if "source" in attempt:
                sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
                sock.bind((attempt["source"], 0))
            sock.connect((attempt["host"], attempt["port"]))
            sock.sendall(b"knock")
            return sock.recv(5).decode(errors="replace")
    except OSError:
        return ""


attempts = json.loads(sys.argv[1])
with ThreadPoolExecutor(max(1, len(attempts))) as pool:
    print(json.dumps(list(pool.map(knock, attempts))))
