"""What becomes of connections when a root is taken out of the trust bundle: who was believed for it is so no more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from dataclasses import dataclass

import pytest

from certs.bundle import TrustBundle
from certs.ca import CertificateAuthority
from sidecar.dataplane import tls
from sidecar.dataplane.complaints import Complaints
from sidecar.dataplane.lease import Lease, Proof, Shown
from sidecar.dataplane.reactor import Reactor
from sidecar.dataplane.standing import Standing
from tests.sidecar.dataplane.stand_ins import TRUST_DOMAIN, credentials, renew
from tests.sidecar.dataplane.test_frames import frame
from tests.sidecar.dataplane.test_renewal_alone import alive, echoing
from tests.sidecar.dataplane.timers import Loop
from tests.sidecar.dataplane.tunnelling import client
from tests.sidecar.dataplane.world import ACK, PING, SYN, UPDATE, World, ready


class Roots:
    """An authority that believes what another signs, too, for as long as it is said."""

    def __init__(self, own: CertificateAuthority, other: CertificateAuthority) -> None:
        self.trust_domain, self.sign_workload = own.trust_domain, own.sign_workload
        self._own, self._other = own.bundle().roots_der, other.bundle().roots_der
        self.both = True

    def bundle(self) -> TrustBundle:
        return TrustBundle(TRUST_DOMAIN, self._own + self._other if self.both else self._own)


@dataclass
class Mesh:
    """Two roots that are believed in. Somebody else has the key of the second one."""

    world: World
    ours: Roots
    theirs: Roots

    def take_out(self) -> None:
        """Believe in ours alone from now on."""
        self.ours.both = False
        renew(self.world.credentials, self.ours, 3600.0)


@pytest.fixture
def mesh(world, authority) -> Mesh:
    other = CertificateAuthority.create(TRUST_DOMAIN, time.time())
    made = Mesh(world, Roots(authority, other), Roots(other, authority))
    world.authority = made.ours
    return made


async def dropped(raw):
    """The tunnel ends, however it does."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            await raw.receive()


async def test_tunnels_of_a_root_that_was_taken_out_end(world, mesh):
    await world.start()
    bad = await world.dial(credentials(mesh.theirs, "shop", "front"))
    good = await world.dial(credentials(mesh.ours, "shop", "back"))
    await echoing(bad)
    await echoing(good)
    mesh.take_out()
    await dropped(bad)
    await alive(good)


async def test_a_renewal_alone_ends_nobody(world, mesh):
    await world.start()
    peers = [await world.dial(credentials(roots, "shop", "front")) for roots in (mesh.ours, mesh.theirs)]
    for raw in peers:
        await echoing(raw)
    renew(world.credentials, mesh.ours, 3600.0)
    for raw in peers:
        await alive(raw)


async def test_what_began_under_an_old_root_lives_on_once_its_pair_is_proved_under_the_new(world, mesh):
    await world.start()
    old = await world.dial(credentials(mesh.theirs, "shop", "front", lifetime=600.0))
    await echoing(old)
    new = await world.dial(credentials(mesh.ours, "shop", "front", lifetime=1200.0))
    await echoing(new)
    mesh.take_out()
    await alive(new)
    await alive(old)


async def test_a_later_proof_that_ends_sooner_does_not_speak_for_a_forged_one(world, mesh):
    await world.start()
    bad = await world.dial(credentials(mesh.theirs, "shop", "front", lifetime=1200.0))
    await echoing(bad)
    good = await world.dial(credentials(mesh.ours, "shop", "front", lifetime=600.0))
    await echoing(good)
    mesh.take_out()
    await dropped(bad)
    await alive(good)


async def test_tunnels_that_we_dialled_end_too(world, mesh):
    await world.start()
    arrived = await world.accept(credentials(mesh.theirs, "shop", "back"))
    reader, writer = await client(world)
    world.stack.callback(writer.close)
    raw = await ready(arrived)
    assert (await raw.receive())[:3] == (UPDATE, SYN, 1)
    raw.send(frame(UPDATE, ACK, 1, 0), frame(PING, SYN, 0, 7))
    assert await raw.receive() == (PING, ACK, 0, 7, b"")
    mesh.take_out()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    await world.until(lambda: not world.plane.outbound_tunnels)


async def test_connections_of_another_meshs_proxies_end_too(world, mesh):
    await world.start()
    peers = []
    for roots in (mesh.ours, mesh.theirs):
        context = credentials(roots, "shop", "front").mesh_context(server_side=False, alpn=("istio",))
        peer = await asyncio.open_connection("127.0.0.1", world.inbound, ssl=context, server_hostname="x")
        world.stack.callback(peer[1].transport.abort)
        peers.append(peer)
        await echoes(*peer, b"ECHO\n")
    mesh.take_out()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        assert await peers[1][0].read() == b""
    await world.until(lambda: world.plane.live_connections == 1)
    await echoes(*peers[0])


async def echoes(reader, writer, command=b""):
    writer.write(command + b"ping")
    assert await asyncio.wait_for(reader.readexactly(4), 60) == b"ping"


async def test_one_of_whom_nothing_was_kept_is_not_believed(world, mesh, monkeypatch):
    monkeypatch.setattr(tls, "KEPT", 100)
    await world.start()
    raw = await world.dial(credentials(mesh.ours, "shop", "front"))
    await echoing(raw)
    renew(world.credentials, mesh.ours, 3600.0)
    await dropped(raw)


@pytest.fixture
def looks(authority):
    made = Looks(authority)
    yield made
    made.reactor.stop()


class Looks:
    """What looks at those in ``proved``, without connections; and two of them, of whom only the first is believed."""

    def __init__(self, authority) -> None:
        self.authority = authority
        self.mine = credentials(authority, "shop", "cart")
        self.loop, self.reactor = Loop(), Reactor()
        self.reactor.loop = self.loop
        self.proved: list[Late] = []
        complaints = Complaints(logging.getLogger(__name__), self.loop.call_later)
        Standing(self.reactor, self.mine, complaints, lambda: self.proved, 10.0).begin()
        other = CertificateAuthority.create(TRUST_DOMAIN, time.time())
        self.good, self.bad = Late(self._lease(authority, "back")), Late(self._lease(other, "front"))

    def _lease(self, authority, workload):
        theirs = credentials(authority, "shop", workload)
        ours = Shown(self.mine.identity, self.mine.instance, self.mine.not_after)
        peer = Shown(theirs.identity, theirs.instance, theirs.not_after)
        return Lease.of(Proof(ours, peer, "127.0.0.1", theirs.chain_der, time.time()))

    def renew(self) -> None:
        renew(self.mine, self.authority, 3600.0)

    def work(self) -> None:
        for _ in range(8):
            self.reactor.chores.work()


NOT_TRUSTED = "its certificate is not trusted any more"


def test_a_handshake_that_was_under_way_is_looked_at_too(looks):
    """It was judged by the roots of before, and carries when the first look is over."""
    looks.renew()
    looks.work()
    looks.proved += [looks.bad, looks.good]
    looks.loop.advance(10.0)
    looks.work()
    assert [looks.bad.ended, looks.good.ended] == [NOT_TRUSTED, ""]


def test_a_fault_at_the_end_of_one_keeps_none_of_the_others(looks, caplog):
    class Broken(Late):
        def abort(self, why):
            raise ValueError("a fault")

    looks.proved += [Broken(looks.bad.lease), looks.bad]
    looks.renew()
    looks.work()
    assert looks.bad.ended == NOT_TRUSTED
    assert "please report it" in caplog.text


def test_who_can_not_be_asked_again_is_not_believed(looks, caplog, monkeypatch):
    def verify(certificates, at):
        raise ValueError("a fault")

    monkeypatch.setattr(looks.mine, "verify_certificates", verify)
    looks.proved.append(looks.good)
    looks.renew()
    looks.work()
    assert looks.good.ended == NOT_TRUSTED
    assert "please report it" in caplog.text


@dataclass
class Late:
    lease: Lease
    ended: str = ""

    def abort(self, why: str) -> None:
        self.ended = why
