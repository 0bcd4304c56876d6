"""How a proxy of another mesh may end its TLS connection, and what our side sees of it, as a table.

Only a close_notify ends a direction in good order. Whatever else ends a connection may be anybody's doing on the way,
and must never look like all there is (RFC 8446 section 6.1): a truncated answer is a reset. And the other way round:
who ended in good order is not taken for one that broke off.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.foreign import BACK, FRONT, HOST, POLICY, Contextual, ForeignWorld, TlsPeer, lost
from tests.sidecar.dataplane.misbehaviour import Seen, reset
from tests.sidecar.dataplane.plain import Plain, accepted, listening

SAID = b"half an answer"


def notify(peer: TlsPeer) -> bytes:
    """The record of a close_notify, which is not sent yet."""
    with contextlib.suppress(ssl.SSLWantReadError):
        peer.session.unwrap()
    return peer._out.read()


def break_up(peer: TlsPeer) -> bytes:
    """A fatal alert: what it sends that was told something that nobody encrypted."""
    peer._in.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError):
        peer.session.read(1)
    return peer._out.read()


def record(peer: TlsPeer) -> bytes:
    peer.session.write(b"and the rest of it")
    return peer._out.read()


def changed(peer: TlsPeer) -> bytes:
    wire = notify(peer)
    return wire[:-1] + bytes([wire[-1] ^ 1])


def nothing(peer: TlsPeer) -> bytes:
    return b""


def stay(peer: TlsPeer) -> None:
    """It leaves the TCP connection open."""


@dataclass(frozen=True, slots=True)
class Row:
    """:param last: what the peer puts on the wire behind its last word
    :param then: what it does with the TCP connection
    :param ending: what our side sees of it
    :param hears: whether the peer still hears what our side says
    """

    name: str
    last: Callable[[TlsPeer], bytes]
    then: Callable[[TlsPeer], None]
    ending: str
    hears: bool = False


TABLE = [
    Row("close_notify", notify, stay, "end", hears=True),
    Row("close_notify, FIN", notify, TlsPeer.truncate, "end", hears=True),
    Row("close_notify, reset", notify, TlsPeer.reset, "end"),
    Row("close_notify, and more", lambda peer: notify(peer) + bytes(100), stay, "end", hears=True),
    Row("FIN", nothing, TlsPeer.truncate, "reset"),
    Row("reset", nothing, TlsPeer.reset, "reset"),
    Row("FIN within a record", lambda peer: record(peer)[:-1], TlsPeer.truncate, "reset"),
    Row("FIN within the head of a record", lambda peer: record(peer)[:4], TlsPeer.truncate, "reset"),
    Row("FIN within the close_notify", lambda peer: notify(peer)[:-1], TlsPeer.truncate, "reset"),
    Row("reset within a record", lambda peer: record(peer)[:-1], TlsPeer.reset, "reset"),
    Row("fatal alert", break_up, stay, "reset"),
    Row("fatal alert, FIN", break_up, TlsPeer.truncate, "reset"),
    Row("forged close_notify", lambda peer: b"\x15\x03\x03\x00\x02\x01\x00", stay, "reset"),
    Row("forged close_notify, FIN", lambda peer: b"\x15\x03\x03\x00\x02\x01\x00", TlsPeer.truncate, "reset"),
    Row("changed close_notify", changed, stay, "reset"),
]  # fmt: skip


class Joined:
    """A peer of the other mesh and our side, with the sidecar between them. Each has heard the other."""

    def __init__(self, authority, stack: contextlib.AsyncExitStack) -> None:
        self.world = ForeignWorld(authority, stack)
        self._stack = stack

    async def join(self, direction: str, **settings: object) -> None:
        start = self._inbound if direction == "inbound" else self._outbound
        sock, self.peer = await start(**settings)
        self._stack.callback(sock.close)
        self._stack.callback(self.peer.close)
        self.plain = Plain(sock)
        await self.plain.say(b"hello")
        assert await self.peer.read() == b"hello"

    async def _inbound(self, **settings: object) -> tuple[socket.socket, TlsPeer]:
        listener, world = listening(self._stack), self.world
        world.application = listener.getsockname()[1]
        await world.start(POLICY, None, opaque_ports=frozenset({world.inbound}), **settings)
        context = Contextual(world.authority, FRONT).client_offering("istio")
        peer = await TlsPeer.connect(world.inbound, context)
        return await accepted(listener), peer

    async def _outbound(self, **settings: object) -> tuple[socket.socket, TlsPeer]:
        listener, world = listening(self._stack), self.world
        await world.start(POLICY, None, server=listener.getsockname()[1], **settings)
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (HOST, world.outbound))
            peer = TlsPeer(await accepted(listener), Contextual(world.authority, BACK).server, server_side=True)
            await peer.shake_hands()
        except BaseException:
            sock.close()
            raise
        return sock, peer


@pytest.fixture
async def joined(authority):
    async with contextlib.AsyncExitStack() as stack:
        yield Joined(authority, stack)


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("said", [b"", SAID], ids=["without a word", "half-way"])
@pytest.mark.parametrize(
    ("row", "first"),
    [
        pytest.param(row, first, id=f"{row.name}, {'first' if first else 'behind us'}")
        for row in TABLE
        for first in (True, False)
        if first or row.last is not break_up  # who has heard our end reads nothing that could break
    ],
)
async def test_our_side_sees_an_end_where_there_was_one_and_nowhere_else(joined, row, first, said, at_once, direction):
    """:param first: the peer ends before our side has, or when it has heard our side's end
    :param at_once: the peer's last word and its end come in one segment, or one after the other
    """
    await joined.join(direction)
    peer, plain = joined.peer, joined.plain
    if not first:
        plain.sock.shutdown(socket.SHUT_WR)
        assert await peer.read_all() == b""
    wire = b""
    if said:
        peer.session.write(said)
        wire = peer._out.read()
    if not at_once:
        peer.sock.send(wire)
        assert await plain.see(len(said)) == Seen(said, "open") if said else True
        wire = b""
    if wire := wire + row.last(peer):
        peer.sock.send(wire)
    row.then(peer)
    assert await plain.see() == Seen(said, row.ending)
    if first and row.hears:
        await plain.say(b"more")
        plain.sock.shutdown(socket.SHUT_WR)
        assert await peer.read_all() == b"more", "and its end is a close_notify, too"
    elif first and row.ending == "end":
        await plain.say(b"more")
        await plain.broken()
    elif first and row.then is not TlsPeer.reset:
        with contextlib.suppress(ssl.SSLError):
            await lost(peer)
    plain.sock.close()
    flow = await joined.world.ended()
    unheard = direction == "outbound" and not said and row.ending == "reset"
    assert flow.failed is unheard, "a server has taken us when it has said something"
    assert joined.world.plane.buffered == 0


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
@pytest.mark.parametrize(("last", "ending"), [(nothing, "reset"), (notify, "end")])
async def test_what_a_peer_said_before_it_broke_off_is_heard_by_who_can_say_no_more(joined, last, ending, direction):
    """An upload is refused: the answer and the reset come while there is more for the peer than it takes."""
    await joined.join(direction)
    peer, plain = joined.peer, joined.plain
    await fill(joined)
    peer.session.write(SAID)
    peer.sock.send(peer._out.read() + last(peer))
    peer.reset()
    assert await plain.see() == Seen(SAID, ending)
    plain.sock.close()
    await joined.world.ended()
    assert joined.world.plane.buffered == 0


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
async def test_what_our_side_said_before_it_broke_off_is_heard(joined, direction):
    """Its last word and the reset are found at the same moment."""
    await joined.join(direction)
    peer, plain = joined.peer, joined.plain
    plain.sock.send(SAID)
    reset(plain.sock)
    assert await peer.read() == SAID
    await lost(peer)
    await joined.world.ended()


async def fill(joined: Joined) -> None:
    """Say so much that the peer, which does not read, and everything on the way to it take no more."""

    async def push() -> None:
        while True:
            await joined.plain.say(bytes(1 << 16))

    pushing = asyncio.create_task(push())
    await apps.until(lambda: joined.world.plane.buffered)
    pushing.cancel()  # or it would be told of the reset, which is told once
    with contextlib.suppress(asyncio.CancelledError):
        await pushing
