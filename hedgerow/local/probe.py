"""Tries one connection and says, from the side of whoever tries, whether the application answered.

    python -m hedgerow.local.probe KIND HOST PORT [--forge SPIFFE_ID] [--hold SECONDS]

It says what a client of that KIND says first, and prints one JSON object: ``bytes`` that came back, the beginning of
what was ``said`` and the ``error`` that ended it. With ``--forge`` it shows a certificate that it signed itself. With
``--hold`` it goes on asking, prints ``{"event": "alive"}`` for every answer and ``{"event": "cut"}`` when the
connection ends.
"""

from __future__ import annotations

import argparse
import json
import socket
import ssl
import sys
import tempfile
import time
from dataclasses import asdict, dataclass

#: Seconds that an answer may take. A connection that is neither answered nor ended counts as not answered.
TIMEOUT = 4.0

_HTTP2_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # an empty SETTINGS frame, RFC 9113 section 6.5
OPENINGS = {
    "http": b"GET / HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n",
    "grpc": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _HTTP2_SETTINGS,
    "cache": b"*1\r\n$4\r\nPING\r\n",
    "database": b"PING\n",  # the database speaks before it is asked
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    bytes: int
    said: str = ""
    error: str = ""


def try_once(kind: str, host: str, port: int, forged: ssl.SSLContext | None = None, timeout: float = TIMEOUT) -> Answer:
    """One connection: say the opening of ``kind``, count the application's bytes that come back."""
    try:
        plain = socket.socket()
        # wrapped before it connects: wrapping a connection that the peer has reset already leaves its socket open
        with plain if forged is None else forged.wrap_socket(plain) as connection:
            connection.settimeout(timeout)
            connection.connect((host, port))
            connection.sendall(OPENINGS[kind])
            got = connection.recv(4096)
            return Answer(len(got), repr(got[:60]), "" if got else "closed without an answer")
    except TimeoutError:
        return Answer(0, error=f"no answer in {timeout:g} s")
    except OSError as error:
        return Answer(0, error=error.strerror or str(error))


def hold(kind: str, host: str, port: int, seconds: float) -> None:
    """Keep one connection busy until it ends, at most ``seconds``."""
    end = time.monotonic() + seconds
    try:
        with socket.create_connection((host, port), TIMEOUT) as connection:
            while time.monotonic() < end:
                connection.sendall(OPENINGS[kind])
                if not connection.recv(4096):
                    break
                _say(event="alive")
                time.sleep(0.1)
            else:
                _say(event="kept")
                return
    except OSError as error:
        _say(event="cut", error=error.strerror or str(error))
        return
    _say(event="cut", error="closed")


def forge(spiffe_id: str) -> ssl.SSLContext:
    """A client context with a certificate of any identity, signed by nobody whom the mesh trusts."""
    from datetime import UTC, datetime, timedelta  # only a forger pays for these

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    nobody = x509.Name([])
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(nobody)
        .issuer_name(nobody)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(True, *[False] * 8), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # an attacker does not care who answers
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate.public_bytes(serialization.Encoding.PEM))
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _say(**event: object) -> None:
    print(json.dumps(event), flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hedgerow.local.probe")
    parser.add_argument("kind", choices=sorted(OPENINGS))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--forge", default="", metavar="SPIFFE_ID")
    parser.add_argument("--hold", type=float, default=0.0, metavar="SECONDS")
    given = parser.parse_args(arguments)
    if given.hold:
        hold(given.kind, given.host, given.port, given.hold)
    else:
        answer = try_once(given.kind, given.host, given.port, forge(given.forge) if given.forge else None)
        _say(**asdict(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
