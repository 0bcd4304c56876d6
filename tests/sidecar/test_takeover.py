"""Two sidecars hand over from one to the other, or one of them does not keep to what was agreed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading

import pytest

from sidecar.dataplane.sockets import Address, listener
from sidecar.errors import StateBusy
from sidecar.state import LOCK, StateDirectory
from sidecar.takeover import SOCKET, Offer, Refused, take_over
from tests.sidecar.fake_controller import until


class Running:
    """A sidecar that runs, as far as a successor can see."""

    def __init__(self, path, count=2, deadline=30.0):
        self.state = StateDirectory(path)
        self.sockets = [listener(Address("127.0.0.1", 0)) for _ in range(count)]
        self.addresses = [Address(*sock.getsockname()) for sock in self.sockets]
        self.prepared = self.replaced = 0
        self.offer = Offer(self.state, "cart-1", self.listeners, self.prepare, self.was_replaced, deadline)
        self.offer.start()

    def listeners(self):
        return list(zip(self.addresses, self.sockets, strict=True))

    async def prepare(self):
        self.prepared += 1
        self.state.write("directory", b"newest")

    def was_replaced(self):
        self.replaced += 1

    async def end(self):
        await self.offer.stop()
        for sock in self.sockets:
            sock.close()
        self.state.close()


@pytest.fixture
async def running(tmp_path):
    made = Running(tmp_path / "state")
    yield made
    await made.end()


def writes(state):
    """Whether what is written arrives."""
    state.write("probe", os.urandom(8))
    mark = os.urandom(8)
    state.write("probe", mark)
    return state.read("probe") == mark


async def test_everything_goes_over(running):
    taken = await take_over(running.state.path, "cart-1")
    assert running.prepared == 1
    assert running.replaced == 0
    assert not writes(running.state), "the directory is the new one's"
    state = StateDirectory(running.state.path, taken.lock)
    assert state.read("directory") == b"newest"
    assert writes(state)
    await taken.confirm()
    await until(lambda: running.replaced == 1)
    for address in running.addresses:
        sock = taken.inherited.take(address)
        assert taken.inherited.take(address) is None
        with socket.create_connection(address) as client:
            accepted, _ = sock.accept()
            client.sendall(b"x")
            accepted.setblocking(True)
            assert accepted.recv(1) == b"x"
            accepted.close()
        sock.close()
    taken.close()
    await running.end()
    with pytest.raises(StateBusy):
        StateDirectory(state.path)
    assert (state.path / SOCKET).exists(), "the name may be the new one's by now"
    state.close()


async def test_a_disk_that_hangs_past_the_deadline_ends_no_writing(tmp_path, monkeypatch):
    running = Running(tmp_path / "state", deadline=0.2)
    goes_on, hangs, suspended = threading.Event(), threading.Event(), threading.Event()
    real_write, real_resume = running.state._write, running.state.resume

    def write(name, data):
        if name == "policy":
            hangs.set()
            assert goes_on.wait(30)
        real_write(name, data)

    def resume():
        suspended.set()
        real_resume()

    monkeypatch.setattr(running.state, "_write", write)
    monkeypatch.setattr(running.state, "resume", resume)
    writing = threading.Thread(target=running.state.write, args=("policy", b"7"))

    async def prepare():
        writing.start()
        await asyncio.to_thread(hangs.wait, 30)

    over = asyncio.Event()
    real_take_back = running.offer._write_again

    async def write_again(suspending):
        over.set()  # the deadline is over
        await real_take_back(suspending)

    monkeypatch.setattr(running.offer, "_write_again", write_again)
    running.offer._prepare = prepare
    taking = asyncio.ensure_future(take_over(running.state.path, "cart-1"))
    await asyncio.wait_for(over.wait(), 30)
    assert not suspended.is_set()
    goes_on.set()
    with pytest.raises(Refused):
        await taking
    await asyncio.to_thread(writing.join)
    assert suspended.is_set()
    assert writes(running.state)
    assert running.state.read("policy") == b"7"
    assert running.replaced == 0
    await running.end()


async def test_many_sockets_go_over_in_several_packets(tmp_path):
    running = Running(tmp_path / "state", count=150)
    taken = await take_over(running.state.path, "cart-1")
    for address in running.addresses:
        sock = taken.inherited.take(address)
        assert Address(*sock.getsockname()) == address
        sock.close()
    taken.close()
    os.close(taken.lock)
    await running.end()


async def test_no_descriptor_is_left_behind(running):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        taken = await take_over(running.state.path, "cart-1")
        taken.close()
        os.close(taken.lock)
        await until(lambda: not running.offer._asking)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_new_one_that_leaves_changes_nothing(running):
    taken = await take_over(running.state.path, "cart-1")
    running.state.write("policy", b"received meanwhile")
    assert running.state.read("policy") is None
    taken.close()
    os.close(taken.lock)
    await until(lambda: running.state.read("policy") == b"received meanwhile")
    assert running.replaced == 0
    assert writes(running.state)
    with pytest.raises(StateBusy):
        StateDirectory(running.state.path)
    again = await take_over(running.state.path, "cart-1")
    await again.confirm()
    await until(lambda: running.replaced == 1)
    again.close()
    os.close(again.lock)


async def test_a_new_one_that_takes_too_long_is_too_late(tmp_path):
    running = Running(tmp_path / "state", deadline=0.3)
    taken = await take_over(running.state.path, "cart-1")
    await until(lambda: writes(running.state))
    with pytest.raises(Refused, match=r"the running sidecar (goes on|refuses)"):
        await taken.confirm()
    assert running.replaced == 0
    taken.close()
    os.close(taken.lock)
    await running.end()


async def test_one_at_a_time(running):
    first = await take_over(running.state.path, "cart-1")
    with pytest.raises(Refused, match="another one is being handed over to"):
        await take_over(running.state.path, "cart-1")
    await first.confirm()
    await until(lambda: running.replaced == 1)
    first.close()
    os.close(first.lock)


async def test_another_instance_gets_nothing(running):
    with pytest.raises(Refused, match="in use by instance 'cart-1'; give every instance its own"):
        await take_over(running.state.path, "cart-2")
    assert running.prepared == 0
    assert writes(running.state)


async def test_nobody_answers(tmp_path):
    state = StateDirectory(tmp_path / "state")
    assert await take_over(state.path, "cart-1") is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(state.path / SOCKET))
    assert await take_over(state.path, "cart-1") is None, "what a killed one left"
    state.close()


async def test_a_socket_of_a_killed_one_is_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        (tmp_path / "state").mkdir(mode=0o700)
        dead.bind(str(tmp_path / "state" / SOCKET))
    running = Running(tmp_path / "state")
    taken = await take_over(running.state.path, "cart-1")
    taken.close()
    os.close(taken.lock)
    await running.end()
    assert not (tmp_path / "state" / SOCKET).exists()


async def test_the_path_may_be_longer_than_a_socket_address(tmp_path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    running = Running(deep)
    taken = await take_over(deep, "cart-1")
    taken.close()
    os.close(taken.lock)
    await running.end()


# --- what is not agreed


def connected(path):
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.connect(str(path / SOCKET))
    return peer


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"{", "no message|is none"),
        (b"[1]", "is none"),
        (b'{"helo": 1}', "unknown message"),
        (b'{"hello": 2, "instance": "cart-1"}', "version 2 and we 1"),
        (b'{"hello": 1}', "in use by instance"),
        (b'{"hello": 1, "instance": ["cart-1"]}', "in use by instance"),
        (b"x" * 70_000, "too long"),
        (b"[" * 30_000, "is none"),
    ],
)
async def test_what_is_no_request_gets_nothing(running, said, answer):
    with connected(running.state.path) as peer:
        peer.sendall(said)
        peer.setblocking(False)
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(peer, 65_536), 10)
        message = json.loads(data)
        assert list(message) == ["refused"]
        assert re.search(answer, message["refused"]), message
    assert running.prepared == running.replaced == 0
    assert writes(running.state)


async def test_descriptors_that_nobody_asked_for_are_closed(running):
    before = len(os.listdir("/proc/self/fd"))
    with connected(running.state.path) as peer, socket.socket() as file:
        socket.send_fds(peer, [b'{"hello": 9}'], [file.fileno()] * 20)
        peer.setblocking(False)
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(peer, 65_536), 10)
    await until(lambda: not running.offer._asking)
    assert len(os.listdir("/proc/self/fd")) == before


ASK = """
import os, socket, sys
os.setgroups([]); os.setresgid(1, 1, 1); os.setresuid(1, 1, 1)
peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    peer.connect(sys.argv[1])
except PermissionError:
    sys.exit("kept out by its mode")
try:
    peer.send(b'{"hello": 1, "instance": "cart-1"}')
    print("answered:", peer.recv(65536).decode())
except ConnectionError:
    print("answered:")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_gets_nothing(tmp_path, caplog):
    running = Running(tmp_path / "state")

    async def ask(path):
        return await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", ASK, path], capture_output=True, text=True, timeout=60, check=False
        )

    # by a descriptor that leads into the closed directory, were it open
    os.fchmod(running.state._directory, 0o755)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o011)
    path = str(running.state.path / SOCKET)
    assert (await ask(path)).stderr.strip() == "kept out by its mode"
    os.chmod(path, 0o777)
    asked = await ask(path)
    assert asked.stdout.strip() == "answered:", asked.stderr
    assert "another user asked" in caplog.text
    assert running.prepared == running.replaced == 0
    await running.end()


class Impostor:
    """Answers a new one with whatever a test wants."""

    def __init__(self, path, *packets):
        self.state = StateDirectory(path)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(path / SOCKET))
        self._listening.listen()
        self._packets = packets

    def __enter__(self):
        def answer():
            peer, _ = self._listening.accept()
            with peer:
                peer.recv(65_536)
                for message, descriptors in self._packets:
                    data = message if isinstance(message, bytes) else json.dumps(message).encode()
                    socket.send_fds(peer, [data], descriptors)
                peer.settimeout(20)
                peer.recv(1)

        self._answering = asyncio.get_running_loop().run_in_executor(None, answer)
        return self

    def __exit__(self, *_):
        self._listening.close()
        self.state.close()


async def test_what_is_received_is_checked(tmp_path):
    sock = listener(Address("127.0.0.1", 0))
    address = list(sock.getsockname())
    deaf = socket.socket()
    deaf.bind(("127.0.0.1", 0))
    both, sixth = (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=dual) for dual in (True, False)
    )
    file = os.open("/dev/null", os.O_RDONLY)
    lock = {"state": 1}
    for number, (packets, why) in enumerate(
        [
            ([({"listeners": [address]}, [])], "named other sockets"),
            ([({"listeners": []}, [sock.fileno()])], "named other sockets"),
            ([({"listeners": [[1, 2]]}, [sock.fileno()])], "named no address"),
            ([({"listeners": [["127.0.0.1", 1]]}, [sock.fileno()])], "no socket that listens on 127.0.0.1:1"),
            ([({"listeners": [list(deaf.getsockname())]}, [deaf.fileno()])], "no socket that listens"),
            ([({"listeners": [["127.0.0.1", both.getsockname()[1]]]}, [both.fileno()])], "no socket that listens"),
            ([({"listeners": [["0.0.0.0", sixth.getsockname()[1]]]}, [sixth.fileno()])], "no socket that listens"),
            ([({"listeners": [["0.0.0.0", both.getsockname()[1]]]}, [both.fileno()]), (lock, [])], "sent no lock"),
            ([({"listeners": [address]}, [file])], "does not hand over"),
            ([({"listeners": [address]}, [sock.fileno()]), (lock, [])], "sent no lock"),
            ([({"listeners": []}, []), (lock, [file])], "another lock"),
            ([(b"{", [])], "a message that is none"),
            ([({"refused": "not now"}, [])], "refuses: not now"),
        ]
    ):
        before = len(os.listdir("/proc/self/fd"))
        with Impostor(tmp_path / str(number), *packets) as impostor:
            with pytest.raises(Refused, match=why):
                await take_over(impostor.state.path, "cart-1")
            await asyncio.wait_for(impostor._answering, 20)
        assert len(os.listdir("/proc/self/fd")) == before, why
    os.close(file)
    for each in (sock, deaf, both, sixth):
        each.close()


async def test_a_lock_that_lies_elsewhere_is_none_of_ours(tmp_path):
    other = StateDirectory(tmp_path / "other")
    with Impostor(tmp_path / "state", ({"listeners": []}, []), ({"state": 1}, [other.lock])) as impostor:
        with pytest.raises(Refused, match="another lock"):
            await take_over(impostor.state.path, "cart-1")
        await asyncio.wait_for(impostor._answering, 20)
    with pytest.raises(StateBusy):
        StateDirectory(other.path)
    other.close()
    assert (tmp_path / "state" / LOCK).exists()


async def test_one_that_dies_before_it_says_yours_has_not_handed_over(tmp_path):
    with Impostor(tmp_path / "state") as impostor:
        impostor._packets = (({"listeners": []}, []), ({"state": 1}, [impostor.state.lock]))
        taken = await take_over(impostor.state.path, "cart-1")
        assert isinstance(taken.lock, int)
        with pytest.raises(Refused):
            await taken.confirm()
        await asyncio.wait_for(impostor._answering, 20)
        taken.close()
        os.close(taken.lock)
