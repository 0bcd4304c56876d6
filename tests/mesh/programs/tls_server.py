"""Answers HTTP/1.1 within TLS with what it was asked for.

python tls_server.py CHAIN PORT: CHAIN is a PEM file with the key and its certificate.
"""

from __future__ import annotations

import http.server
import ssl
import sys


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = f"{self.command} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_DELETE = answer

    def log_message(self, format: str, *args: object) -> None:
        print(format % args, flush=True)


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
context.set_alpn_protocols(["http/1.1"])
with http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[2])), Answer) as server:
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()
