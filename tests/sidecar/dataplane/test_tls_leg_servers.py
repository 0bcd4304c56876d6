"""TLS connections to another mesh's servers, and new keys, as only OpenSSL itself can make them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket

import pytest

from sidecar.dataplane.tls_leg import SILENT_RECORDS
from tests.sidecar.dataplane import applications as apps
from tests.sidecar.dataplane.foreign import (
    BACK,
    FRONT,
    HERE,
    HOST,
    POLICY,
    Contextual,
    ForeignWorld,
    TlsPeer,
    enforce,
    free_port,
    lost,
)
from tests.sidecar.dataplane.rekeying import Rekeying


@pytest.fixture
async def world(authority):
    async with contextlib.AsyncExitStack() as stack:
        yield ForeignWorld(authority, stack)


class Served:
    """A server of the other mesh; hands out the TLS end of each connection of ours."""

    def __init__(self, world):
        self._context = Contextual(world.authority, BACK).server
        self._listener = socket.create_server((HOST, 0))
        self._listener.setblocking(False)
        world.stack.callback(self._listener.close)
        self._stack = world.stack
        self.port = self._listener.getsockname()[1]

    async def accept(self) -> TlsPeer:
        async with asyncio.timeout(60):
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            peer = TlsPeer(sock, self._context, server_side=True)
            self._stack.callback(peer.close)
            await peer.shake_hands()
        return peer


@pytest.fixture
async def served(world):
    served = Served(world)
    await world.start(POLICY, server=served.port)
    return served


# A server that our application calls ----------------------------------------------------------------------------------


async def test_a_server_sees_both_ends_in_good_order(world, served):
    reader, writer = await apps.connect(HERE, HOST, world.outbound)
    peer = await served.accept()
    assert peer.session.version() == "TLSv1.3"
    writer.write(b"question")
    writer.write_eof()
    assert await peer.read_all() == b"question"
    await peer.write(b"answer")
    await peer.end()
    assert await reader.read() == b"answer"
    await apps.close(writer)
    record = await world.ended()
    assert (record.bytes_sent, record.bytes_received, record.failed) == (8, 6, False)


@pytest.mark.parametrize("how", ["truncate", "reset"])
async def test_a_server_that_ends_without_saying_so_is_lost(world, served, how):
    reader, writer = await apps.connect(HERE, HOST, world.outbound)
    peer = await served.accept()
    await peer.write(b"half an ans")
    assert await reader.readexactly(11) == b"half an ans"
    getattr(peer, how)()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    await apps.close(writer)
    assert not (await world.ended()).failed, "it had been reached"


async def test_a_reset_of_our_application_is_one_for_the_server(world, served):
    _, writer = await apps.connect(HERE, HOST, world.outbound)
    peer = await served.accept()
    writer.write(b"hello")
    assert await peer.read() == b"hello"
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()
    await lost(peer)
    await world.ended()


async def test_a_server_that_is_not_there_is_a_failure(world):
    await world.start(POLICY, server=free_port())
    await apps.refused(HERE, HOST, world.outbound)
    assert (await world.ended()).failed


async def test_a_server_that_never_answers_is_a_failure(world):
    with socket.create_server((HOST, 0)) as silent:
        await world.start(POLICY, server=silent.getsockname()[1], handshake_timeout=0.2)
        await apps.refused(HERE, HOST, world.outbound)
    assert (await world.ended()).failed


async def test_a_deny_while_we_still_dial_ends_the_attempt(world):
    with socket.create_server((HOST, 0)) as silent:
        await world.start(POLICY, server=silent.getsockname()[1])
        reader, writer = await apps.connect(HERE, HOST, world.outbound)
        silent.setblocking(False)
        dialled, _ = await asyncio.get_running_loop().sock_accept(silent)
        with dialled:
            world.policy.apply(enforce(version=2))
            with pytest.raises(ConnectionResetError):
                await reader.read()
            dialled.setblocking(False)
            async with asyncio.timeout(60):
                while await asyncio.get_running_loop().sock_recv(dialled, 1 << 16):
                    """the client hello, and then the end"""
        await apps.close(writer)
    await world.ended()


# New keys, as only OpenSSL itself can make them -----------------------------------------------------------------------


def rekeying(world, folder):
    own = Contextual(world.authority, FRONT)
    return asyncio.to_thread(Rekeying, world.inbound, own.chain.chain_der, own.key, folder)


def rekey_now_and_then(client: Rekeying) -> None:
    try:
        assert client.write(b"ECHO\n")
        for number in range(8):
            assert client.rekey(asking=bool(number % 2))
            assert client.write(b"%d" % number)
            assert client.read() == b"%d" % number
    finally:
        client.close()


async def test_new_keys_are_taken_and_answered(world, tmp_path):
    await world.start(POLICY, mtls_ports=frozenset({world.inbound}))
    client = await rekeying(world, tmp_path)
    await asyncio.to_thread(rekey_now_and_then, client)
    record = await world.ended()
    assert (record.bytes_sent, record.bytes_received) == (5 + 8, 8)


def rekey_after_the_servers_end(client: Rekeying) -> None:
    try:
        assert client.write(b"HALF\n")
        assert client.read() == b"bye\n"
        assert client.read() == b""
        for number in range(4):
            assert client.rekey(asking=True)
            assert client.write(b"%d" % number)
        client.end()
    finally:
        client.close()


async def test_new_keys_after_our_end_are_taken_and_not_answered(world, tmp_path):
    await world.start(POLICY, mtls_ports=frozenset({world.inbound}))
    apps.HALF_DIGESTS.clear()
    client = await rekeying(world, tmp_path)
    await asyncio.to_thread(rekey_after_the_servers_end, client)
    record = await world.ended()
    assert (record.bytes_sent, record.bytes_received, record.failed) == (5 + 4, 4, False)
    await apps.until(lambda: apps.HALF_DIGESTS)
    assert [hashlib.sha256(b"0123").hexdigest()] == apps.HALF_DIGESTS


def rekey_without_end(client: Rekeying, asking: bool) -> int:
    """How many were taken before the connection was lost."""
    try:
        assert client.write(b"ECHO\nhello")
        assert client.read() == b"hello"
        for number in range(100_000):
            if not client.rekey(asking=asking):
                return number
        return 100_000
    finally:
        client.close()


@pytest.mark.parametrize("asking", [False, True])
async def test_new_keys_without_end_lose_the_connection(world, tmp_path, caplog, asking):
    await world.start(POLICY, mtls_ports=frozenset({world.inbound}))
    client = await rekeying(world, tmp_path)
    assert await asyncio.to_thread(rekey_without_end, client, asking) < 100_000
    await world.ended()
    assert f"more than {SILENT_RECORDS} records a second without data" in caplog.text
