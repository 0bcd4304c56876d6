"""mitmdump's addon: verify the client's certificate and SPIFFE ID, allow one operation. Loaded by path, by mitmdump."""

from __future__ import annotations

import os

from cryptography import x509
from mitmproxy import http, tls
from OpenSSL import SSL
from OpenSSL.crypto import X509

_PATH = "/api"


def _is_client(_connection: SSL.Connection, certificate: X509, _error: int, depth: int, chained: int) -> bool:
    """OpenSSL has judged the chain; the leaf has to name the client, too."""
    if not chained or depth:
        return bool(chained)
    names = certificate.to_cryptography().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier) == [os.environ["BENCH_CLIENT"]]


def _context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.use_certificate_chain_file(os.environ["BENCH_CHAIN"])
    context.use_privatekey_file(os.environ["BENCH_CHAIN"])
    context.load_verify_locations(os.environ["BENCH_ROOTS"])
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _is_client)
    context.set_session_id(b"bench")  # without one OpenSSL fails every resumption, and HAProxy resumes
    context.set_alpn_select_callback(lambda _, offered: b"h2" if b"h2" in offered else SSL.NO_OVERLAPPING_PROTOCOLS)
    return context


class Rules:
    def __init__(self) -> None:
        self._context = _context()

    def tls_start_client(self, start: tls.TlsData) -> None:
        start.ssl_conn = SSL.Connection(self._context)
        start.ssl_conn.set_accept_state()

    def request(self, flow: http.HTTPFlow) -> None:
        if (flow.request.method, flow.request.path) != ("GET", _PATH):
            flow.response = http.Response.make(403, b"")


addons = [Rules()]
