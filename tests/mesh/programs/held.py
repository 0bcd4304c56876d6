"""Holds one connection to a web_server.py and asks on it all the time, until it is cut or this program is stopped.

python held.py HOST PORT

Prints a line of JSON for every answer, with the moment at which it was asked for, and one when the connection ends.
Moments are seconds since the epoch.
"""

from __future__ import annotations

import json
import socket
import sys
import time


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


def main() -> None:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as connection:
            while True:
                asked = time.time()
                connection.sendall(b"GET / HTTP/1.1\r\nHost: held\r\n\r\n")
                answer = connection.recv(4096)
                if not answer:
                    say(event="cut", at=time.time(), by="end of file")
                    return
                say(event="answered", asked=asked)
                time.sleep(0.01)
    except OSError as error:
        say(event="cut", at=time.time(), by=repr(error))


main()
