"""Sockets of one network, used in another."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from hedgerow.local.errors import LocalMeshError
from hedgerow.local.host_sockets import SocketGiver, SocketTaker, listen_on_loopback
from hedgerow.local.sandbox import run_in_sandbox

#: Connects in a sandbox: once with a socket of its own, once with one of ours.
INSIDE = """
import socket, sys
from pathlib import Path
from hedgerow.local.host_sockets import SocketTaker
taker, port, report = SocketTaker(int(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3])
try:
    socket.create_connection(("127.0.0.1", port), 5)
    own = "connected"
except OSError as error:
    own = error.strerror
given = taker.take()
given.setblocking(True)
given.connect(("127.0.0.1", port))
report.write_text(f"{own}|{given.recv(5).decode()}")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a sandbox as root")
def test_a_program_in_a_sandbox_reaches_us_by_a_given_socket_alone(tmp_path: Path) -> None:
    with listen_on_loopback(0) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"hello")

        server = threading.Thread(target=answer, daemon=True)
        giver = SocketGiver()
        report = tmp_path / "report"
        port = listener.getsockname()[1]
        channel = giver.theirs.fileno()

        def beside() -> None:
            giver.start()
            server.start()

        argv = [sys.executable, "-c", INSIDE, str(channel), str(port), str(report)]
        assert run_in_sandbox(argv, pass_fds=[channel], beside=beside) == 0
        server.join(10)
    assert report.read_text() == "Connection refused|hello"


async def test_aiohttp_connects_through_the_taker() -> None:
    giver = SocketGiver()
    taker = SocketTaker(os.dup(giver.theirs.fileno()))
    giver.start()

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.add_routes([web.get("/", hello)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        listener = listen_on_loopback(0)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        await web.SockSite(runner, listener).start()
        async with aiohttp.ClientSession(connector=taker.connector()) as session:
            for _ in range(3):
                async with session.get(address) as response:
                    assert await response.text() == "hello"
    finally:
        await runner.cleanup()
        taker.close()


def test_a_taker_whose_giver_is_gone_says_so() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    taker = SocketTaker(theirs.detach())
    with pytest.raises(OSError, match="Broken pipe"):
        taker.take()
    taker.close()


def test_a_busy_port_is_named_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalMeshError, match=rf"--port: .*127\.0\.0\.1:{port}.*in use; name another port"):
            listen_on_loopback(port)
