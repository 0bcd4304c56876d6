"""The two gRPC servers: one that asks for no client certificate and serves the issuer alone, and one on which both ends
prove who they are, which serves everything.

Their own certificate is renewed while they run: gRPC asks before every handshake whether there is a newer one, and open
connections keep theirs.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable

import grpc
import grpc.aio

from controller.errors import ControllerError
from controller.keyring import ServerMaterial
from controller.settings import Address

log = logging.getLogger("hedgerow.grpc")

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not something to share
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # a sidecar that vanished without a word is noticed within some 40 s
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 4),
]

#: A sidecar has three streams and a few single calls; the rest is room for bursts of the directory.
_MUTUAL = [
    *_OPTIONS,
    ("grpc.max_concurrent_streams", 128),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
]

#: Anybody may come here: few calls at once, small messages, and nobody stays.
_ATTESTING = [
    *_OPTIONS,
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.max_connection_idle_ms", 30_000),
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 10_000),
]
ATTESTING_CALLS = 512


class PortError(ControllerError):
    """A server could not begin to listen."""

    code = "port"


class Server:
    """One gRPC server.

    :param setting: the setting that its address comes from, for messages
    :param material: gives what handshakes use now; called on gRPC's threads
    :param mutual: whether clients must have a certificate
    """

    def __init__(self, setting: str, address: Address, material: Callable[[], ServerMaterial], *, mutual: bool) -> None:
        self._setting = setting
        self._address = address
        self.grpc = grpc.aio.server(
            options=_MUTUAL if mutual else _ATTESTING,
            maximum_concurrent_rpcs=None if mutual else ATTESTING_CALLS,
        )
        self._credentials = _credentials(material, mutual=mutual)
        self.bound = address

    async def start(self) -> Address:
        """Listen and serve.

        :returns: where, with the port that was given for port 0
        :raises PortError: naming the setting and the remedy
        """
        try:
            port = self.grpc.add_secure_port(str(self._address), self._credentials)
        except RuntimeError:
            raise unable_to_listen(self._setting, self._address) from None
        self.bound = Address(self._address.host, port)
        await self.grpc.start()
        return self.bound

    async def stop(self, grace: float) -> None:
        """Take no more calls, give the open ones ``grace`` seconds, then end them."""
        await self.grpc.stop(grace)


def _credentials(material: Callable[[], ServerMaterial], *, mutual: bool) -> grpc.ServerCredentials:
    first = material()
    given = first.version

    def newer() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        now = material()
        if now.version == given:
            return None
        given = now.version
        return _configuration(now)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first),
        newer,  # None: no newer one
        require_client_authentication=mutual,
    )


def _configuration(material: ServerMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key_pem, material.chain_pem)], root_certificates=material.roots_pem
    )


def unable_to_listen(setting: str, address: Address) -> PortError:
    """Find out why an address can not be listened on; gRPC does not say."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
            probe.listen(1)
    except OSError as error:
        return port_error(setting, address, error)
    return PortError(f"{address} can not be listened on", field=setting, remedy="try again, or set another port")


def port_error(setting: str, address: object, error: OSError) -> PortError:
    """The refusal for an ``OSError`` of ``bind``."""
    match error.errno:
        case errno.EADDRINUSE:
            problem, remedy = "another program listens there", f"stop it, or set {setting} to another port"
        case errno.EADDRNOTAVAIL:
            problem, remedy = (
                "this machine has no such address",
                f"set {setting} to one of its addresses, or to 0.0.0.0",
            )
        case errno.EACCES:
            problem, remedy = "a port below 1024 needs more rights", f"set {setting} to a port from 1024 on"
        case _:
            problem, remedy = os.strerror(error.errno or 0), f"set {setting} to another address"
    return PortError(f"{address}: {problem}", field=setting, remedy=remedy)
