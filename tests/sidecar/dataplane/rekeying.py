"""A TLS client that can ask for new keys, which Python's ``ssl`` does not offer: OpenSSL itself, by ctypes."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from certs.certificate import pem_text
from certs.keys import key_to_pem


def _libssl() -> ctypes.CDLL:
    """The library that the ssl module uses."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libssl" in line:
            return _declared(ctypes.CDLL(line.split()[-1]))
    name = ctypes.util.find_library("ssl")
    assert name, "no libssl: install OpenSSL's shared library"
    return _declared(ctypes.CDLL(name))


def _declared(lib: ctypes.CDLL) -> ctypes.CDLL:
    for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(lib, name).restype = ctypes.c_void_p
    lib.SSL_CTX_new.argtypes = lib.SSL_new.argtypes = lib.SSL_free.argtypes = [ctypes.c_void_p]
    lib.SSL_shutdown.argtypes = [ctypes.c_void_p]
    lib.SSL_CTX_free.argtypes = lib.SSL_connect.argtypes = lib.SSL_do_handshake.argtypes = [ctypes.c_void_p]
    lib.SSL_CTX_use_certificate_chain_file.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.SSL_CTX_use_PrivateKey_file.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    lib.SSL_set_fd.argtypes = lib.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
    lib.SSL_set_alpn_protos.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint]
    lib.SSL_write.argtypes = lib.SSL_read.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    return lib


class Rekeying:
    """A client that can ask for new keys. It blocks: for a thread.

    :param chain_der: its certificate and those above it
    :param folder: of its own; the chain and the key are written there
    """

    def __init__(
        self,
        port: int,
        chain_der: Sequence[bytes],
        key: ec.EllipticCurvePrivateKey,
        folder: Path,
        alpn: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "chain").write_text(pem_text(chain_der))
        (folder / "key").write_bytes(key_to_pem(key))
        self._lib = lib = _libssl()
        self._sock = socket.create_connection((host, port), timeout=60)
        self._sock.settimeout(None)
        self._context = lib.SSL_CTX_new(lib.TLS_client_method())
        assert lib.SSL_CTX_use_certificate_chain_file(self._context, bytes(folder / "chain")) == 1
        assert lib.SSL_CTX_use_PrivateKey_file(self._context, bytes(folder / "key"), 1) == 1
        self._ssl = lib.SSL_new(self._context)
        if alpn:
            offered = b"".join(bytes((len(name),)) + name.encode() for name in alpn)
            assert lib.SSL_set_alpn_protos(self._ssl, offered, len(offered)) == 0
        assert lib.SSL_set_fd(self._ssl, self._sock.fileno()) == 1
        assert lib.SSL_connect(self._ssl) == 1

    def rekey(self, *, asking: bool) -> bool:
        """Send with new keys from here on, and ask the other end to do so too; whether it could be sent."""
        return self._lib.SSL_key_update(self._ssl, int(asking)) == 1 and self._lib.SSL_do_handshake(self._ssl) == 1

    def write(self, data: bytes) -> bool:
        return self._lib.SSL_write(self._ssl, data, len(data)) == len(data)

    def read(self) -> bytes:
        buffer = ctypes.create_string_buffer(1000)
        size = self._lib.SSL_read(self._ssl, buffer, 1000)
        return buffer.raw[:size] if size > 0 else b""

    def end(self) -> None:
        """Say that nothing more will be sent."""
        assert self._lib.SSL_shutdown(self._ssl) in (0, 1)

    def close(self) -> None:
        self._lib.SSL_free(self._ssl)
        self._lib.SSL_CTX_free(self._context)
        self._sock.close()
