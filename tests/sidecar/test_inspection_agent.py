"""The inspection agent against a real gRPC service: what it asks for, what it believes, what it writes down."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import grpc
import grpc.aio
import pytest

from certs.certificate import pem_text
from certs.inspection import InspectionAuthority
from graph.model import InspectedHost
from graph.wire import hedgerow_pb2 as pb
from graph.wire import hedgerow_pb2_grpc as rpc
from sidecar import inspection_agent
from sidecar.authority import PolicyAuthority
from sidecar.channel import Session
from sidecar.errors import ConfigError, ControllerRefused, ControllerUnavailable
from sidecar.inspect.certificates import Certificates
from sidecar.inspect.settings import EgressSettings
from sidecar.inspection_agent import BUNDLE_FILE, ROOT_FILE, InspectionAgent, system_roots
from sidecar.settings import Settings, Unsynced
from tests.sidecar.dataplane.web import WebAuthority
from tests.sidecar.fake_controller import IDENTITY, TRUST_DOMAIN, snapshot, until

API, OTHER = "api.partner.example", "www.partner.example"


class Clock:
    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


class Signs(rpc.InspectionServicer):
    """A controller that signs for the hosts that it knows of."""

    def __init__(self, clock):
        self.clock = clock
        self.authority = InspectionAuthority.create(TRUST_DOMAIN, time.time())
        self.hosts = [API]
        self.asked = 0
        self.refusal = None

    async def Sign(self, request, context):
        self.asked += 1
        if self.refusal is not None:
            await context.abort(*self.refusal)
        chain = self.authority.sign(request.csr_der, "shop/cart", self.hosts, self.clock())
        return pb.InspectionResponse(chain_der=chain, hosts=self.hosts)


class World:
    def __init__(self, tmp_path):
        self.clock = Clock()
        self.controller = Signs(self.clock)
        loop = asyncio.get_running_loop()
        self.authority = PolicyAuthority(IDENTITY, Unsynced.DENY, ("10.0.0.1",), self.clock, loop.call_later)
        self.version = 0
        self.roots = tmp_path / "system.pem"
        self.roots.write_bytes(WebAuthority().pem)
        self.settings = EgressSettings(tmp_path / "trust", self.roots)
        self.certificates = Certificates(self.roots, self.clock)
        self.make()

    def make(self):
        self.agent = InspectionAgent(self.authority, self.certificates, self.settings, Random(7), self.clock)

    def inspect(self, *hosts):
        self.version += 1
        inspects = tuple(InspectedHost(host) for host in sorted(hosts))
        self.authority.apply(snapshot(self.version, inspects=inspects))

    @contextlib.asynccontextmanager
    async def session(self):
        """One session with the controller; its task."""
        server = grpc.aio.server()
        rpc.add_InspectionServicer_to_server(self.controller, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self.established = 0
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            task = asyncio.create_task(self.agent.session(Session(channel, self._established)))
            try:
                yield task
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await server.stop(None)

    def _established(self):
        self.established += 1


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.authority.close()


async def test_it_asks_for_nothing_until_the_snapshot_names_a_host(world):
    async with world.session():
        world.inspect()
        assert world.agent.missing() == []
        world.inspect(API)
        (missing,) = world.agent.missing()
        assert BUNDLE_FILE in missing
        await until(lambda: not world.certificates.why_not(API))
        assert world.controller.asked == 1
        assert world.established == 1
        assert world.agent.missing() == []
        world.inspect()
        await until(lambda: world.certificates.signer is None)
        assert "has not signed" in world.certificates.why_not(API)


async def test_what_the_application_trusts_is_written_for_others_to_read(world):
    async with world.session():
        world.inspect(API)
        await until(lambda: not world.certificates.why_not(API))
    own = pem_text([world.controller.authority.root_der])
    directory = world.settings.directory
    assert (directory / ROOT_FILE).read_text() == own
    assert (directory / BUNDLE_FILE).read_text() == world.roots.read_text() + own
    assert (directory / BUNDLE_FILE).stat().st_mode & 0o777 == 0o644
    assert {path.name for path in directory.iterdir()} == {ROOT_FILE, BUNDLE_FILE}
    assert "PRIVATE" not in (directory / BUNDLE_FILE).read_text()


async def test_other_hosts_and_time_bring_another_certificate(world):
    async with world.session():
        world.inspect(API)
        await until(lambda: not world.certificates.why_not(API))
        shown = world.certificates.shown(API, "h2")
        assert world.certificates.shown(API, "h2") is shown, "made once"
        world.controller.hosts = [API, OTHER]
        world.inspect(API, OTHER)
        await until(lambda: not world.certificates.why_not(OTHER))
        assert world.certificates.shown(API, "h2") is not shown, "with the key that it was made with"
        assert world.controller.asked == 2
        world.clock.ahead += 80_000
        world.inspect(API, OTHER)  # whatever wakes it
        await until(lambda: world.controller.asked == 3)
        world.clock.ahead += 80_000
        await until(lambda: not world.certificates.why_not(API))  # asked is not answered yet


async def test_a_controller_that_knows_fewer_hosts_is_asked_again_and_not_all_the_time(world):
    async with world.session():
        world.inspect(API, OTHER)
        await until(lambda: not world.certificates.why_not(API))
        assert "other hosts" in world.certificates.why_not(OTHER)
        assert world.controller.asked == 1
        world.controller.hosts = [API, OTHER]
        world.inspect(API, OTHER)
        await until(lambda: not world.certificates.why_not(OTHER))


async def test_an_answer_for_other_hosts_is_not_believed(world):
    world.controller.hosts = [API, OTHER]
    world.inspect(API)
    async with world.session() as task:
        with pytest.raises(ControllerRefused, match="not constrained"):
            await asyncio.wait_for(task, 20)
    assert world.certificates.signer is None
    assert not world.settings.directory.exists()


@pytest.mark.parametrize(
    ("code", "error"),
    [(grpc.StatusCode.INVALID_ARGUMENT, ControllerRefused), (grpc.StatusCode.UNAVAILABLE, ControllerUnavailable)],
)
async def test_a_refusal_ends_the_session_and_what_is_held_stays(world, code, error):
    world.inspect(API)
    async with world.session():
        await until(lambda: not world.certificates.why_not(API))
    held = world.certificates.signer
    world.controller.refusal = (code, "no")
    world.inspect(API, OTHER)
    async with world.session() as task:
        with pytest.raises(error):
            await asyncio.wait_for(task, 20)
    assert world.certificates.signer is held


async def test_roots_that_can_not_be_read_are_named(world):
    world.roots.write_text("no roots")
    world.inspect(API)
    async with world.session() as task:
        with pytest.raises(ControllerRefused, match=r"inspect\.egress"):
            await asyncio.wait_for(task, 20)
    assert world.certificates.why_not(API)


def test_the_settings_are_paths():
    def parse(egress):
        return Settings.parse(
            {
                "instance": "cart-1", "controller": "192.0.2.1:15012", "issuer": "192.0.2.1:15013",
                "trust_domain": TRUST_DOMAIN, "trust_bundle": "/x", "state_dir": "/y", "addresses": ["10.0.0.1"],
                "inspect": {"egress": egress},
            }
        ).inspect.egress  # fmt: skip

    assert parse({"directory": "/trust"}) == EgressSettings(Path("/trust"), None)
    for wrong, field in (({"directory": "trust"}, "directory"), ({"root": "/x"}, "root")):
        with pytest.raises(ConfigError, match=rf"inspect\.egress\.{field}"):
            parse(wrong)


def test_this_system_has_roots():
    found = system_roots()
    assert found is None or found.read_bytes().count(b"BEGIN CERTIFICATE") > 10


# --- a pod that names its hosts


def named(world, *hosts):
    """The same agent in a pod whose annotation asks for these."""
    world.settings = replace(world.settings, hosts=frozenset(map(InspectedHost, hosts)))
    loop = asyncio.get_running_loop()
    world.authority.close()
    world.authority = PolicyAuthority(
        IDENTITY, Unsynced.DENY, ("10.0.0.1",), world.clock, loop.call_later, world.settings.hosts
    )
    world.make()


async def test_of_what_its_workload_inspects_a_pod_does_what_it_asks_for_itself(world):
    named(world, API)
    async with world.session():
        world.inspect(API, OTHER)
        await until(lambda: not world.certificates.why_not(API))
        assert world.agent.hosts == (API,)
        assert (world.authority.inspects(API, 443), world.authority.inspects(OTHER, 443)) == (True, False)
        assert world.authority.snapshot.inspects == (InspectedHost(API), InspectedHost(OTHER))
    named(world)
    world.inspect(API, OTHER)
    assert world.agent.hosts == ()
    assert world.agent.missing() == []


async def test_without_permission_the_application_begins_with_what_the_system_trusts(world, monkeypatch):
    monkeypatch.setattr(inspection_agent, "_GRANT", 0.05)
    named(world, API)
    bundle, root = (world.settings.directory / name for name in (BUNDLE_FILE, ROOT_FILE))
    async with world.session():
        (missing,) = world.agent.missing()
        assert "may still let us" in missing
        world.inspect()
        await until(lambda: world.agent.missing() == [])
        assert bundle.read_text() == world.roots.read_text()
        assert not root.exists()
        assert world.controller.asked == 0
        world.inspect(API)  # permitted after all
        (missing,) = world.agent.missing()
        assert "has not signed" in missing
        await until(lambda: world.agent.missing() == [])
        assert bundle.read_text() == world.roots.read_text() + root.read_text()
        assert not world.certificates.why_not(API)


async def test_a_permission_that_comes_a_moment_later_is_waited_for(world, monkeypatch):
    monkeypatch.setattr(inspection_agent, "_GRANT", 600.0)
    named(world, API)
    async with world.session():
        for _ in range(3):  # snapshots that say nothing of it
            world.inspect()
            await asyncio.sleep(0)
        assert not (world.settings.directory / BUNDLE_FILE).exists()
        world.inspect(API)
        await until(lambda: not world.certificates.why_not(API))
    assert (world.settings.directory / ROOT_FILE).exists()


def test_with_a_kubernetes_token_a_pod_inspects_what_it_asks_for_and_nothing_else():
    whole = {
        "instance": "cart-1", "controller": "c:15012", "issuer": "c:15013", "trust_domain": "hedgerow.test",
        "trust_bundle": "/t.pem", "state_dir": "/s", "addresses": ["10.0.0.1"],
    }  # fmt: skip
    on_cluster = whole | {"service_account_token_file": "/token"}
    assert Settings.parse(whole).inspect.egress.hosts is None
    assert Settings.parse(on_cluster).inspect.egress.hosts == frozenset()
    asking = {"inspect": {"egress": {"hosts": [f"{API}:8443", OTHER]}}}
    wanted = frozenset({InspectedHost(API, 8443), InspectedHost(OTHER)})
    assert Settings.parse(on_cluster | asking).inspect.egress.hosts == wanted
    for wrong in ([f"*.{API}"], ["https://x.example"], [API] * 65, API, [f"{API}:0"]):
        with pytest.raises(ConfigError, match=r"inspect\.egress\.hosts"):
            Settings.parse(whole | {"inspect": {"egress": {"hosts": wrong}}})
