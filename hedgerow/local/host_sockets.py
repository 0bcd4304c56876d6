"""TCP sockets of the host's network for a program in a sandbox.

A socket belongs to the network namespace that it was made in, wherever it is used. The front process, which is
outside, makes listening and unconnected sockets and hands them in; so the page is reachable for the people of this
machine, and the demo can call the controller's API there, while the sandbox keeps having no way out of its own.
"""

from __future__ import annotations

import contextlib
import socket
import threading

import aiohttp

from hedgerow.local.errors import LocalMeshError

_REQUEST = b"s"


def listen_on_loopback(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1.

    :param port: 0 takes a free one
    :raises LocalMeshError: when the port is taken, or is not ours to take
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise LocalMeshError(
            f"--port: cannot listen on 127.0.0.1:{port}: {error.strerror}", "name another port, or 0 for a free one"
        ) from None
    return listener


class SocketGiver:
    """The front's end: gives a new unconnected TCP socket for every request on ``channel``."""

    def __init__(self) -> None:
        self._mine, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def start(self) -> None:
        """Serve from a thread of its own until the other end is closed, which happens when the sandbox ends."""
        self.theirs.close()
        threading.Thread(target=self._serve, name="host-sockets", daemon=True).start()

    def _serve(self) -> None:
        with self._mine, contextlib.suppress(OSError):
            while self._mine.recv(len(_REQUEST)):
                with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
                    socket.send_fds(self._mine, [_REQUEST], [made.fileno()])


class SocketTaker:
    """The sandbox's end.

    :param descriptor: the inherited descriptor of :attr:`SocketGiver.theirs`
    """

    def __init__(self, descriptor: int) -> None:
        self._channel = socket.socket(fileno=descriptor)
        self._channel.settimeout(5.0)

    def take(self) -> socket.socket:
        """A new unconnected TCP socket of the host's network.

        :raises OSError: when the front is gone
        """
        self._channel.sendall(_REQUEST)
        _, descriptors, _, _ = socket.recv_fds(self._channel, len(_REQUEST), 1)
        if not descriptors:
            raise OSError("the front process gives no sockets any more")
        made = socket.socket(fileno=descriptors[0])
        made.setblocking(False)
        return made

    def close(self) -> None:
        """Give the channel back; the giver ends."""
        self._channel.close()

    def connector(self) -> aiohttp.BaseConnector:
        """A connector for aiohttp that is in the host's network."""
        return aiohttp.TCPConnector(socket_factory=lambda address: self.take())
