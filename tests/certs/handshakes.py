"""Real TLS handshakes between two contexts, in memory: what each end's OpenSSL says, without sockets and timing."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

#: Flights of a TLS 1.3 handshake are three; more rounds than these would be a fault in the test.
_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Handshake:
    """How a handshake went at both ends; an error is why that end gave up.

    :param client: the client's connection, finished when ``client_error`` is None
    """

    client: ssl.SSLObject
    server: ssl.SSLObject
    client_error: ssl.SSLError | None
    server_error: ssl.SSLError | None

    @property
    def succeeded(self) -> bool:
        return self.client_error is None and self.server_error is None


def handshake(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> Handshake:
    """Let two contexts talk until both are done or gave up."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_side=False)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    errors: dict[ssl.SSLObject, ssl.SSLError] = {}
    done: set[ssl.SSLObject] = set()
    for _ in range(_ROUNDS):
        for end in (client, server):
            if end in done or end in errors:
                continue
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                errors[end] = error
    # a TLS 1.3 client finishes before the server judges its certificate: the verdict arrives as an alert
    if client in done and client not in errors:
        try:
            client.read(1)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            errors[client] = error
    assert all(end in done or end in errors for end in (client, server)) or errors
    return Handshake(client, server, errors.get(client), errors.get(server))


def load_chain(context: ssl.SSLContext, pem: str) -> None:
    """Give a context a certificate chain and key from a text, as the peer of a test.

    :raises ssl.SSLError: when OpenSSL does not take it
    """
    descriptor = os.memfd_create("peer")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(pem.encode("ascii"))
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
