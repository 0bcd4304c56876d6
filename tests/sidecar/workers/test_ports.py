"""Listening sockets of several workers, on real ports."""

from __future__ import annotations

import socket

import pytest

from sidecar.dataplane.settings import DataPlaneSettings, ExplicitInbound, ExplicitOutbound
from sidecar.dataplane.sockets import Address, Inherited, listener
from sidecar.errors import CannotListen
from sidecar.workers.ports import Ports
from tests.sidecar.processes import free_port

THERE = Address("10.0.0.1", 1)


@pytest.fixture
def addresses():
    return Address("127.0.0.1", free_port()), Address("127.0.0.1", free_port())


def settings(addresses):
    outbound, inbound = addresses
    return DataPlaneSettings(
        outbound_listen=(),
        inbound_listen=(),
        explicit_outbound=(ExplicitOutbound(outbound, THERE),),
        explicit_inbound=(ExplicitInbound(inbound, THERE),),
    )


@pytest.fixture
def make(addresses):
    made = []

    def one(count, inherited=None):
        ports = Ports(settings(addresses), count)
        made.append(ports)
        ports.listen(inherited)
        return ports

    yield one
    for ports in made:
        ports.close()


def accepted(sockets):
    """How many connections wait on each; they are closed."""
    counts = []
    for sock in sockets:
        count = 0
        while True:
            try:
                sock.accept()[0].close()
            except BlockingIOError:
                break
            count += 1
        counts.append(count)
    return counts


def test_the_kernel_deals_connections_to_every_worker(make, addresses):
    ports = make(3)
    dealt = [dict(ports.of(index)) for index in range(3)]
    assert all(set(one) == set(addresses) for one in dealt)
    clients = [socket.create_connection(addresses[0]) for _ in range(100)]
    counts = accepted([one[addresses[0]] for one in dealt])
    assert sum(counts) == 100
    assert min(counts) > 0
    for client in clients:
        client.close()


def test_another_program_on_the_port_is_noticed(addresses, make):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # it would even share
        other.bind(addresses[1])
        other.listen()
        with pytest.raises(CannotListen) as refused:
            make(2)
        assert (refused.value.host, refused.value.port) == addresses[1]
    with socket.socket() as free:  # what was opened before is closed again
        free.bind(addresses[0])


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 2), (3, 1)])
def test_sockets_of_the_process_before_are_all_taken_over(make, addresses, before, after):
    """Connections that waited in any of them are not lost, whatever the numbers."""
    old = make(before) if before > 1 else None
    given = old.listeners if old is not None else [(one, listener(one)) for one in addresses]
    clients = [socket.create_connection(addresses[1]) for _ in range(30)]
    ports = make(after, Inherited([(address, sock.dup()) for address, sock in given]))
    for _, sock in given:
        sock.close()
    clients += [socket.create_connection(addresses[1]) for _ in range(30)]
    counts = [
        sum(accepted([sock for address, sock in ports.of(index) if address == addresses[1]])) for index in range(after)
    ]
    assert sum(counts) == 60
    assert min(counts) > 0
    for client in clients:
        client.close()


def test_inbound_can_be_closed_alone(make, addresses):
    ports = make(2)
    outbound, inbound = addresses
    ports.close_inbound()
    assert {address for address, _ in ports.listeners} == {outbound}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(inbound)
    socket.create_connection(outbound).close()
    ports.close()
    ports.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(outbound)
