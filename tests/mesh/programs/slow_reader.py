"""Asks for a file and does not read the answer until it gets SIGUSR1; then prints the digest of the body.

python slow_reader.py HOST PORT PATH
"""

from __future__ import annotations

import hashlib
import signal
import socket
import sys

host, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
with socket.socket() as connection:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 262_144)  # the kernel does not read ahead for us
    connection.settimeout(60)
    connection.connect((host, port))
    connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    print("asked", flush=True)
    signal.sigwait({signal.SIGUSR1})
    with connection.makefile("rb") as answer:
        while answer.readline() != b"\r\n":
            pass
        print("digest", hashlib.file_digest(answer, "sha256").hexdigest(), flush=True)
