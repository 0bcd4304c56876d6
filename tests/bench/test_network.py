"""A captured bed leads peers' connections to them, on both sides, and leaves every other alone."""

from __future__ import annotations

import socket

import pytest

from bench.dataplane.network import CAPTURED, Bed, Namespace, make_switch
from hedgerow.local.sandbox import Confinement, confinement

in_roots_sandbox = pytest.mark.skipif(
    confinement() is not Confinement.ROOT, reason="needs the sandbox that the test session is started in as root"
)

FRONT, END, APPLICATION = 20_201, 21_001, 8080


@pytest.fixture(scope="module")
def bed() -> Bed:
    make_switch()
    return Bed.make("capture", 7, captured=True)


def listening(at: Namespace, host: str, port: int) -> socket.socket:
    return at.inside(lambda: socket.create_server((host, port)))


def goes_through(client: socket.socket, listener: socket.socket) -> bool:
    listener.settimeout(5.0)
    server, _ = listener.accept()
    with client, server:
        client.sendall(b"x")
        return server.recv(1) == b"x"


@in_roots_sandbox
def test_what_a_load_sends_to_the_server_comes_to_the_clients_end(bed: Bed) -> None:
    assert bed.front(FRONT) == (bed.server.address, FRONT + CAPTURED)
    with listening(bed.client, "127.0.0.1", FRONT) as listener:
        assert goes_through(bed.client.connect(bed.front(FRONT)), listener)


@in_roots_sandbox
def test_what_crosses_the_cable_comes_to_the_servers_end(bed: Bed) -> None:
    with listening(bed.server, "0.0.0.0", END) as listener:
        assert goes_through(bed.client.connect(bed.end(END)), listener)
        # and so does what the checks send, over the switch
        assert goes_through(socket.create_connection(bed.end(END), 5.0), listener)


@in_roots_sandbox
def test_other_ports_are_not_led_anywhere(bed: Bed) -> None:
    with listening(bed.server, "0.0.0.0", APPLICATION) as listener:
        assert goes_through(bed.client.connect((bed.server.address, APPLICATION)), listener)
    with pytest.raises(ConnectionRefusedError):
        bed.client.connect(bed.end(END))  # nobody listens there any more


def test_a_bare_bed_is_reached_where_its_peers_listen() -> None:
    bed = Bed(1, Namespace("c", "10.0.0.1"), Namespace("s", "10.0.0.2"))
    assert bed.front(FRONT) == ("127.0.0.1", FRONT)
    assert bed.end(END) == ("10.0.0.2", END)
