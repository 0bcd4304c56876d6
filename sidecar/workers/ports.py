"""The listening sockets of all workers. The supervisor makes and keeps them, so that a worker's death closes none.

Of every address there is one socket for each worker at least, in one group (``SO_REUSEPORT``, socket(7)): the kernel
deals new connections among them. The first one is bound alone, so that another program on that port is noticed.

What the process before listened on is kept, also where that are more sockets than there are workers now: a connection
that waits in a socket is reset when the last holder closes it, and the kernel moves none to another by default
(``net.ipv4.tcp_migrate_req``, which would be the node's to set). So a worker takes connections from several, and a
sidecar that once had many workers keeps a descriptor for each.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from sidecar.dataplane import sockets
from sidecar.dataplane.settings import DataPlaneSettings
from sidecar.dataplane.sockets import Address, Inherited

type Listener = tuple[Address, socket.socket]


class Ports:
    """Makes and deals them.

    :param count: of workers
    """

    def __init__(self, settings: DataPlaneSettings, count: int) -> None:
        self._mark = settings.mark
        self._count = count
        self._outbound = (*settings.outbound_listen, *(one.listen for one in settings.explicit_outbound))
        self._inbound = (*settings.inbound_listen, *(one.listen for one in settings.explicit_inbound))
        self._held: dict[Address, list[socket.socket]] = {}

    def listen(self, inherited: Inherited | None) -> None:
        """Have them.

        :raises CannotListen: when an address can not be listened on; nothing is listened on then
        """
        try:
            for address in (*self._outbound, *self._inbound):
                held = self._held[address] = inherited.take_all(address) if inherited is not None else []
                if not held:
                    held.append(sockets.listener(address, mark=self._mark))
                for sock in held:
                    sockets.share_port(sock)
                while len(held) < self._count:
                    held.append(sockets.listener(address, mark=self._mark, shared=True))
        except BaseException:
            self.close()
            raise

    @property
    def listeners(self) -> list[Listener]:
        """All of them."""
        return [(address, sock) for address, held in self._held.items() for sock in held]

    def of(self, index: int) -> list[Listener]:
        """Those of one worker. There are more than workers when they come from a process with more of these."""
        return [(address, sock) for address, held in self._held.items() for sock in held[index :: self._count]]

    def close_inbound(self) -> None:
        """Listen no more where others connect to us, as far as it is up to this process."""
        self._close(self._inbound)

    def close(self) -> None:
        """Listen nowhere, likewise. Calling it again changes nothing."""
        self._close(tuple(self._held))

    def _close(self, addresses: Sequence[Address]) -> None:
        for address in addresses:
            for sock in self._held.pop(address, ()):
                sock.close()
