"""Each connection begins with one byte that says who ends its direction first.

python half_close_server.py PORT

``c``: reads to the end of the client's direction, and only then answers with the digest of what it read and as many
zeros as that had bytes. ``s``: sends a million zeros, ends its direction, and only then reads to the end; it prints the
digest of what it read.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import sys
import threading

ZEROS = 1_000_000


def read_to_the_end(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def serve(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(30)
        if connection.recv(1) == b"c":
            data = read_to_the_end(connection)
            connection.sendall(hashlib.sha256(data).hexdigest().encode() + bytes(len(data)))
        else:
            connection.sendall(bytes(ZEROS))
            connection.shutdown(socket.SHUT_WR)
            print(hashlib.sha256(read_to_the_end(connection)).hexdigest(), flush=True)


with socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=64) as listener:
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
