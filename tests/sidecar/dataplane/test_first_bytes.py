"""Clients whose first bytes are awaited, by a sidecar that is busy."""

from __future__ import annotations

import socket

import pytest

from tests.sidecar.dataplane import applications as apps


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n", b"GET / HT", b""])
async def test_who_has_spoken_in_time_is_heard_although_we_are_late(world, said):
    await world.start()
    plane = world.plane
    with socket.create_connection(("127.0.0.1", world.inbound)) as client:
        await apps.until(lambda: plane._inbound._arriving)
        (arrival,) = plane._inbound._arriving
        client.sendall(said)
        arrival._silent()  # its time is over before the loop has come round to what it said
        assert plane.detection.timeouts == (not said)
