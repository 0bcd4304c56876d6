"""Uses half_close_server.py in the way it is told and prints the digest of what it sent.

python half_close_client.py HOST PORT c|s BYTES
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys

host, port, first, size = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
data = os.urandom(size)
digest = hashlib.sha256(data).hexdigest()


def read_to_the_end(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


with socket.create_connection((host, port), timeout=30) as connection:
    connection.sendall(first.encode())
    if first == "c":
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        got = read_to_the_end(connection)
        assert got == digest.encode() + bytes(size), f"{len(got)} bytes came back, beginning with {got[:64]!r}"
    else:
        got = read_to_the_end(connection)  # the server has ended; we have not
        assert got == bytes(1_000_000), f"{len(got)} bytes came"
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
print(digest)
