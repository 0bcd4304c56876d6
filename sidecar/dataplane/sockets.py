"""Sockets as the data path needs them: non-blocking, closed with a reset where a client was refused, never blocking.

The original destination of a redirected connection comes from netfilter's connection tracking
(``SO_ORIGINAL_DST``, ``linux/netfilter_ipv4.h``; ``IP6T_SO_ORIGINAL_DST``, ``linux/netfilter_ipv6/ip6_tables.h``).
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from sidecar.errors import CannotListen, ConfigError

_SO_ORIGINAL_DST = 80  # the same number for IPv6, at level IPPROTO_IPV6
_SO_MARK = 36
_TCP_NOTSENT_LOWAT = 25
_ESTABLISHED = b"\x01"  # tcpi_state, the first of struct tcp_info (linux/tcp.h)
_LINGER_RESET = struct.pack("ii", 1, 0)
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")

#: Connections that the kernel accepts before we come to them.
BACKLOG = 4096

#: Results of a non-blocking connect that are no failure.
CONNECTING = (0, errno.EINPROGRESS)

#: Errors of a connection that was there, and was then reset. A connection that is refused has others.
RESET = (errno.ECONNRESET, errno.EPIPE)


class Address(NamedTuple):
    """An IP address and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, field: str = "address") -> Address:
        """Read ``192.0.2.1:80`` or ``[2001:db8::1]:80``.

        :raises ConfigError: naming ``field``
        """
        host, _, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        try:
            number = int(port) if port.isascii() and port.isdigit() else 0
            if not 1 <= number <= 65535:
                raise ValueError
            return cls(str(ipaddress.ip_address(host)), number)
        except ValueError:
            raise ConfigError(
                f"{field}: {text!r} is not an address and a port; write 192.0.2.1:80 or [2001:db8::1]:80"
            ) from None

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Inherited:
    """Listening sockets that another process gave us, until somebody takes them.

    :param listeners: by the address of the settings that each was opened for; of one address there can be several
        (:func:`share_port`)
    """

    def __init__(self, listeners: Iterable[tuple[Address, socket.socket]] = ()) -> None:
        self._listeners: dict[Address, list[socket.socket]] = {}
        for address, sock in listeners:
            self._listeners.setdefault(address, []).append(sock)

    def take(self, address: Address) -> socket.socket | None:
        """A socket that listens on ``address``, which is the caller's from here on; None when there is none left."""
        held = self._listeners.get(address)
        return held.pop(0) if held else None

    def take_all(self, address: Address) -> list[socket.socket]:
        """Every socket that listens on ``address``; they are the caller's from here on."""
        return self._listeners.pop(address, [])

    def close(self) -> None:
        """Close what nobody took."""
        for held in self._listeners.values():
            for sock in held:
                sock.close()
        self._listeners.clear()


def share_port(sock: socket.socket) -> None:
    """Let further sockets of this user listen where ``sock``, which is bound, does: the kernel deals the connections.

    Set after the first socket is bound, and not before: so that one does find out that another program has the port.

    :raises OSError: when the kernel knows no such thing
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def listener(address: Address, *, backlog: int = BACKLOG, mark: int = 0, shared: bool = False) -> socket.socket:
    """Listen on ``address``. Accepted sockets inherit TCP_NODELAY.

    :param shared: beside others of ours for which :func:`share_port` was called
    :raises CannotListen: saying why
    """
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if shared:
            share_port(sock)
        if address.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        sock.bind(tuple(address))
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        remedy = "stop the program that holds the port, or choose another"
        if error.errno == errno.EADDRNOTAVAIL:
            remedy = "use an address of this machine"
        elif error.errno in (errno.EACCES, errno.EPERM):
            remedy = "choose a port from 1024 up (a mark also needs CAP_NET_ADMIN)"
        raise CannotListen(*address, f"cannot listen on {address}: {error.strerror}; {remedy}") from error
    return sock


def outgoing(family: socket.AddressFamily, mark: int) -> socket.socket:
    """A non-blocking TCP socket of our own, marked so that capture lets it pass.

    :raises OSError: when there are no more descriptors, or the mark is not permitted
    """
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
    except OSError:
        sock.close()
        raise
    return sock


def accept(listener: socket.socket, family: int) -> socket.socket:
    """Take a connection, which does not block, from a listener of ``family``.

    It is :meth:`socket.socket.accept` without the peer's address and without asking the listener what it is, which is
    a third of its time (CPython's ``_accept``; where there is none, the public method).

    :raises OSError: BlockingIOError among them
    """
    take = getattr(listener, "_accept", None)
    if take is None:
        sock, _ = listener.accept()
    else:
        sock = socket.socket(family, socket.SOCK_STREAM, 0, take()[0])
    sock.setblocking(False)
    return sock


def tune_tunnel(sock: socket.socket) -> None:
    """Send small records at once, and keep what waits in the kernel short, so that small streams are not behind it."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, 262_144)


def original_destination(sock: socket.socket, family: int) -> Address | None:
    """Where the client of a redirected connection meant to go; None when the connection was not redirected, or only
    tracked: then it is this end of it.

    :param family: of ``sock``, which takes a while to tell it
    """
    try:
        if family == socket.AF_INET6:
            return _address6(sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28))
        return _address4(sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16))
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _address4(packed: bytes) -> Address:
    port, host = _SOCKADDR_IN.unpack(packed)
    return Address(socket.inet_ntop(socket.AF_INET, host), port)


@lru_cache(maxsize=1024)
def _address6(packed: bytes) -> Address:
    port, host = _SOCKADDR_IN6.unpack(packed)
    return Address(socket.inet_ntop(socket.AF_INET6, host), port)


def local_address(sock: socket.socket) -> Address | None:
    """This end of the connection; None when it is gone already."""
    try:
        name = sock.getsockname()
    except OSError:
        return None
    return Address(name[0], name[1])


def reset(sock: socket.socket) -> None:
    """Have the following close send a reset instead of an orderly end."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    except OSError:
        return  # the peer was faster


def refuse(sock: socket.socket) -> None:
    """Close a connection that nothing else knows of; the client sees a reset."""
    reset(sock)
    sock.close()


def is_connected(sock: socket.socket) -> bool:
    """Whether a connection attempt that has just begun has succeeded already, as it mostly has on one machine."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == _ESTABLISHED


def connect_error(sock: socket.socket) -> int:
    """The result of a connection attempt that has ended; 0 when it succeeded, one of :data:`RESET` when it did, and the
    connection has been reset since: what came on it before can still be read."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
