"""Calls something by its name, as an application does: asks DNS, connects to what it says, sends a request.

python egress_client.py RESOLVER NAME PORT [HOST]: HOST goes into the request instead of NAME.

Prints the address and the body of the answer; ``no address`` or ``refused`` where there is none.
"""

from __future__ import annotations

import http.client
import socket
import struct
import sys

resolver, name, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.settimeout(10)
    asking.sendto(struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1", (resolver, 53))
    data, source = asking.recvfrom(4096)
assert source == (resolver, 53), source
if not struct.unpack_from("!H", data, 6)[0]:
    print("no address")
    sys.exit()
address = socket.inet_ntoa(data[-4:])
calling = http.client.HTTPConnection(address, port, timeout=10)
try:
    calling.request("GET", "/", headers={"Host": sys.argv[4] if len(sys.argv) > 4 else name})
    print(address, calling.getresponse().read().decode().strip())
except (OSError, http.client.HTTPException):
    print(address, "refused")
