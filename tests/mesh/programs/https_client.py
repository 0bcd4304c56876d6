"""Calls something over HTTPS by its name, and trusts what SSL_CERT_FILE says, as applications do.

python https_client.py RESOLVER NAME PORT METHOD PATH...: all requests go over one connection.

Prints who vouches for the certificate that it was shown, then a status for each path; or ``refused`` and why.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import sys

resolver, name, port, method, *paths = sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:]
labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.settimeout(10)
    asking.sendto(struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1", (resolver, 53))
    data, _ = asking.recvfrom(4096)
address = socket.inet_ntoa(data[-4:])


class Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        sock = socket.create_connection((address, port), timeout=20)
        self.sock = context.wrap_socket(sock, server_hostname=name)


context = ssl.create_default_context()
connection = Connection(name, port, timeout=20)
try:
    connection.connect()
    issuer = dict(pair[0] for pair in connection.sock.getpeercert()["issuer"])
    print(issuer.get("organizationName", issuer["commonName"]))
    for path in paths:
        connection.request(method, path)
        answer = connection.getresponse()
        print(answer.status, answer.read().decode().strip())
except (OSError, http.client.HTTPException) as error:
    print("refused", type(error).__name__)
